/**
 * A device whose first bytes are kept elsewhere until all of it is whole: in a file of the host, the **held head**. On the
 * device there is a mark meanwhile, where a boot sector, a partition table or a file system would begin, so that nobody takes
 * what is there for a disk, or for the disk that it was before.
 *
 * Invariants
 * - As long as the head's file is there, durably or not, it counts, and what the device has in its place does not: nobody
 *   writes to the head on the device before the file is gone for good.
 * - The mark is the last thing on the device that goes: where it is not whole, the rest of the head is there already.
 * - Zeroes of the head are written out; those behind it are the device's affair.
 */
import { type File, FileError, type FileExtent, type FileFeatures, type LockMode } from "../env/files.ts";

export const MARK_BYTES = 512;

export interface HeldHeadOptions {
  /** At least the mark's. */
  readonly headBytes: number;
  /** Removes the head's file, for good. */
  readonly remove: () => Promise<void>;
}

export class HeldHead implements File {
  readonly kind = "block-device";
  readonly writable = true;
  readonly path: string;
  readonly #device: File;
  readonly #headBytes: number;
  readonly #remove: () => Promise<void>;
  /** Undefined once it has landed. */
  #head: File | undefined;
  #users = 0;
  #onIdle: (() => void) | undefined;
  #landing: Promise<void> | undefined;
  #failure: Error | undefined;

  /** Takes both over: `close` closes them. */
  constructor(device: File, head: File, { headBytes, remove }: HeldHeadOptions) {
    this.path = device.path;
    this.#device = device;
    this.#head = head;
    this.#headBytes = headBytes;
    this.#remove = remove;
  }

  /** What holes the device has says nothing of the head. */
  get features(): FileFeatures {
    return { ...this.#device.features, extents: false };
  }

  sizeBytes(): Promise<number> {
    return this.#device.sizeBytes();
  }

  allocatedBytes(): Promise<number> {
    return this.#device.allocatedBytes();
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#now(offset, into.length)?.readNow(offset, into) ?? -1;
  }

  writeNow(offset: number, from: Uint8Array): number {
    return this.#now(offset, from.length)?.writeNow(offset, from) ?? -1;
  }

  async read(offset: number, into: Uint8Array): Promise<number> {
    const below = this.#belowHead(offset, into.length);
    const count = below === 0 ? 0 : await this.#inHead((head) => head.read(offset, into.subarray(0, below)));
    if (count < below || below === into.length) return count;
    return below + (await this.#device.read(offset + below, into.subarray(below)));
  }

  async write(offset: number, from: Uint8Array, options?: { readonly once?: boolean }): Promise<void> {
    const below = this.#belowHead(offset, from.length);
    if (below > 0) await this.#inHead((head) => head.write(offset, from.subarray(0, below)));
    if (below < from.length) await this.#device.write(offset + below, from.subarray(below), options);
  }

  truncate(): Promise<void> {
    return Promise.reject(new FileError("EINVAL", `${this.path} is a device, which has the size that it has (EINVAL)`));
  }

  punchHole(offset: number, length: number): Promise<boolean> {
    return this.#zero(offset, length, (at, count) => this.#device.punchHole(at, count));
  }

  zeroRange(offset: number, length: number): Promise<boolean> {
    return this.#zero(offset, length, (at, count) => this.#device.zeroRange(at, count));
  }

  async extentAt(): Promise<FileExtent> {
    return { kind: "data", end: await this.#device.sizeBytes() };
  }

  async dataSync(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    await Promise.all([this.#device.dataSync(), this.#head?.dataSync()]);
  }

  willNeed(offset: number, length: number): void {
    this.#device.willNeed(offset, length);
  }

  async dropClean(offset: number, length: number): Promise<boolean> {
    if (offset < this.#headBytes && this.#head !== undefined) return false;
    return (await this.#device.dropClean?.(offset, length)) ?? false;
  }

  startWriteback(offset: number, length: number): void {
    this.#device.startWriteback(offset, length);
  }

  lock(mode: LockMode): Promise<void> {
    return this.#device.lock(mode);
  }

  async close(): Promise<void> {
    await this.#landing?.catch(() => undefined);
    await Promise.all([this.#device.close(), this.#head?.close()]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /**
   * Moves the head to where it belongs, and removes its file; durable when resolved. Whoever uses the head meanwhile waits.
   * Once the mark has been touched, or a sync was begun, a failure is for good.
   */
  async land(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    this.#landing ??= this.#land().finally(() => (this.#landing = undefined));
    await this.#landing;
  }

  async #land(): Promise<void> {
    const head = this.#head;
    if (head === undefined) return;
    if (this.#users > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
    const bytes = new Uint8Array(this.#headBytes);
    if ((await head.read(0, bytes)) !== bytes.length) throw new FileError("EIO", `${head.path} is too short (EIO)`);
    // What is found after a crash must be what is on the device by then, also where an earlier sync has failed unseen.
    await head.write(0, bytes);
    await this.#lastingly(() => head.dataSync());
    await this.#device.write(MARK_BYTES, bytes.subarray(MARK_BYTES));
    await this.#lastingly(() => this.#device.dataSync());
    await this.#lastingly(async () => {
      await this.#device.write(0, bytes.subarray(0, MARK_BYTES));
      await this.#device.dataSync();
      await this.#remove();
    });
    this.#head = undefined;
    await head.close();
  }

  /** Whoever syncs next must hear of a failure as well: it may have been of what they wrote. */
  async #lastingly(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#failure = error instanceof Error ? error : new Error(String(error));
      throw this.#failure;
    }
  }

  /** What has all of the range, if it can be used at once. */
  #now(offset: number, length: number): File | undefined {
    if (offset >= this.#headBytes) return this.#device;
    if (this.#landing !== undefined || this.#failure !== undefined) return undefined;
    if (this.#head === undefined) return this.#device;
    return offset + length <= this.#headBytes ? this.#head : undefined;
  }

  async #inHead<T>(work: (file: File) => Promise<T>): Promise<T> {
    while (this.#landing !== undefined) await this.#landing.catch(() => undefined);
    if (this.#failure !== undefined) throw this.#failure;
    this.#users += 1;
    try {
      return await work(this.#head ?? this.#device);
    } finally {
      this.#users -= 1;
      if (this.#users === 0) this.#onIdle?.();
    }
  }

  async #zero(
    offset: number,
    length: number,
    zero: (offset: number, length: number) => Promise<boolean>,
  ): Promise<boolean> {
    const below = this.#belowHead(offset, length);
    // First what may turn out not to be possible.
    if (below < length && !(await zero(offset + below, length - below))) return false;
    if (below > 0) await this.#inHead((head) => head.write(offset, new Uint8Array(below)));
    return true;
  }

  /** How much of [offset, offset + length) is of the head. */
  #belowHead(offset: number, length: number): number {
    return Math.min(Math.max(this.#headBytes - offset, 0), length);
  }
}
