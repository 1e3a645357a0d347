/**
 * A disk on the destination, as its guest uses it: before activation, while it is the owner, and after the disk was given
 * back. It is there, with its right size, long before the disk is: an incoming VMM opens it, and reads its first block.
 *
 * - Early reads go to the source and leave no trace here, or fail. Changes are refused; flushes have nothing to do.
 * - A guest's first change waits until it is written down that there was one: a disk is given back only if there was none,
 *   also by a process that knows no more than its records.
 * - `wrote` is set in the same turn in which that begins, and whoever gives the disk back shuts in the same turn in which it
 *   has looked.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../block/device.ts";
import { BlockError, checkRange } from "../block/error.ts";
import type { Extent } from "../block/extents.ts";

/** What guests use from activation on. */
export interface GuestTarget extends BlockDevice {
  /** As far as memory can tell at once. */
  isLocal(offset: number, length: number): boolean;
}

export interface ExportParts {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  /** Early reads; undefined: they are refused. */
  readonly early: Pick<BlockDevice, "read"> | undefined;
  /** A guest is about to change it. Durable when resolved; when it rejects, the change is not let through. */
  readonly noteWrite: () => Promise<void>;
}

export class ExportDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #parts: ExportParts;
  #live: GuestTarget | undefined;
  /** Changes that wait for the note. */
  #noting = 0;
  #noted = false;

  constructor(parts: ExportParts) {
    this.#parts = parts;
    this.sizeBytes = parts.sizeBytes;
    this.capabilities = { ...parts.capabilities, readOnly: false };
  }

  /** A guest's change was let through, or is about to be. */
  get wrote(): boolean {
    return this.#noted || this.#noting > 0;
  }

  /** From now on everything goes to `device`. `wrote`: guests may have changed it in an earlier life. */
  activate(device: GuestTarget, wrote: boolean): void {
    this.#live = device;
    this.#noted = wrote;
  }

  /** As before activation. */
  shut(): void {
    this.#live = undefined;
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#live?.readNow(offset, into) ?? -1;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    if (this.#live !== undefined) return await this.#insist(offset, into.length, (device) => device.read(offset, into));
    checkRange(offset, into.length, this.sizeBytes);
    const { early } = this.#parts;
    if (early === undefined) throw new BlockError("io", "the disk is not here yet, and early reads are refused");
    await early.read(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    if (this.#live === undefined || !this.#noted) return -1;
    return this.#live.writeNow(offset, from);
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#change(offset, from.length, (device) => device.write(offset, from, options));
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.#change(offset, length, (device) => device.writeZeroes(offset, length, options));
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#change(offset, length, (device) => device.discard(offset, length, options));
  }

  async cache(offset: number, length: number): Promise<void> {
    if (this.#live !== undefined) return await this.#live.cache(offset, length);
    checkRange(offset, length, this.sizeBytes);
  }

  async flush(): Promise<void> {
    await this.#live?.flush();
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    if (this.#live !== undefined) return await this.#live.extents(offset, length, countMax);
    checkRange(offset, length, this.sizeBytes);
    if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
    return [{ length, hole: false, zero: false }];
  }

  /** What is below is somebody else's. */
  async close(): Promise<void> {}

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #change(offset: number, length: number, act: (device: BlockDevice) => Promise<void>): Promise<void> {
    checkRange(offset, length, this.sizeBytes);
    if (this.#live === undefined) throw new BlockError("permission", "the disk does not belong to this host");
    if (!this.#noted) await this.#note();
    await this.#insist(offset, length, act);
  }

  /**
   * When the last missing block has come, the source is let go, and who still waits for its answer is told so. By then the
   * answer is here.
   */
  async #insist(offset: number, length: number, act: (device: BlockDevice) => Promise<void>): Promise<void> {
    if (this.#live === undefined) throw new BlockError("permission", "the disk does not belong to this host");
    try {
      await act(this.#live);
    } catch (error) {
      const late = error instanceof BlockError && error.code === "shutting-down" && length > 0;
      if (!late || this.#live?.isLocal(offset, length) !== true) throw error;
      await act(this.#live);
    }
  }

  async #note(): Promise<void> {
    this.#noting += 1;
    try {
      await this.#parts.noteWrite();
      this.#noted = true;
    } finally {
      this.#noting -= 1;
    }
  }
}
