/**
 * The file under an image with tables: reads that are whole or fail, writes that latch, and growth. Every failure is a
 * `BlockError`.
 *
 * The file always reaches as far as anything that was allocated in it: it is made longer *before* that is written, by
 * one call at a time, so that no call can cut off what another one has just written.
 */
import { BlockError } from "../../block/error.ts";
import type { File } from "../../env/files.ts";
import { ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import { blockErrorFrom } from "../errors.ts";
import { SyncLatch } from "../sync-latch.ts";

export class ImageFile {
  readonly file: File;
  readonly #latch: SyncLatch;
  /** The file has at least so many bytes. */
  #sizeBytes: number;
  #wantedBytes = 0;
  #growing: Promise<void> | undefined;

  /** Takes `file` over: whoever made this closes it. `sizeBytes` is its size. */
  constructor(file: File, sizeBytes: number) {
    this.file = file;
    this.#latch = new SyncLatch(file);
    this.#sizeBytes = sizeBytes;
  }

  get path(): string {
    return this.file.path;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get latched(): boolean {
    return this.#latch.latched;
  }

  /** Space of the file can be given back, or zeroed without writing zeroes. */
  get zeroesFast(): boolean {
    const { punchHole, zeroRange } = this.file.features;
    return this.file.kind === "regular" && (punchHole || zeroRange);
  }

  /** Throws `BlockError("io")` once an I/O error has lost data. */
  check(): void {
    this.#latch.check();
  }

  /** Looks at the size again: others may have changed the file. */
  async refresh(): Promise<void> {
    try {
      this.#sizeBytes = await this.file.sizeBytes();
    } catch (error) {
      throw blockErrorFrom(error);
    }
  }

  /** Lets everybody else have a turn: it goes by way of the thread pool, and waits for no disk. */
  async pause(): Promise<void> {
    await this.file.sizeBytes().catch(() => undefined);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    let count: number;
    try {
      count = await this.file.read(offset, into);
    } catch (error) {
      throw blockErrorFrom(error);
    }
    if (count !== into.length) throw new BlockError("io", `${this.path} ends at ${offset + count}: bytes are missing`);
  }

  /** As `read`; what lies behind the end of the file reads as zeroes. */
  async readPadded(offset: number, into: Uint8Array): Promise<void> {
    try {
      into.fill(0, await this.file.read(offset, into));
    } catch (error) {
      throw blockErrorFrom(error);
    }
  }

  /** As `write`, if it can be done at once: the length, or −1. */
  writeNow(offset: number, from: Uint8Array): number {
    if (this.#latch.latched) return -1;
    try {
      return this.file.writeNow(offset, from);
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  /** `once`: nobody is expected to read it soon. */
  async write(offset: number, from: Uint8Array, options?: { readonly once?: boolean }): Promise<void> {
    this.#latch.check();
    try {
      await this.file.write(offset, from, options);
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  /** Makes the range read as zeroes, giving its space back where that is possible. */
  async zero(offset: number, length: number): Promise<void> {
    this.#latch.check();
    try {
      if (this.zeroesFast && (await this.file.punchHole(offset, length))) return;
      if (this.zeroesFast && (await this.file.zeroRange(offset, length))) return;
      for (let done = 0; done < length; done += ZEROES_BYTES) {
        await this.file.write(offset + done, ZEROES.subarray(0, Math.min(ZEROES_BYTES, length - done)));
      }
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  /** Gives space back; what it held may stay. */
  async discard(offset: number, length: number): Promise<void> {
    if (this.file.kind !== "regular") return;
    this.#latch.check();
    try {
      await this.file.punchHole(offset, length);
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  /** Makes durable what was written before the call. */
  sync(): Promise<void> {
    return this.#latch.sync();
  }

  /** Resolves when the file has at least `endBytes`; what is new reads as zeroes. */
  async grow(endBytes: number): Promise<void> {
    while (this.#sizeBytes < endBytes) {
      this.#latch.check();
      this.#wantedBytes = Math.max(this.#wantedBytes, endBytes);
      this.#growing ??= this.#growOnce();
      await this.#growing;
    }
  }

  /** Cuts off what nothing refers to. Nobody may write or grow the file meanwhile. */
  async shrink(endBytes: number): Promise<void> {
    if (this.#sizeBytes <= endBytes) return;
    this.#latch.check();
    try {
      await this.file.truncate(endBytes);
      this.#sizeBytes = endBytes;
      this.#wantedBytes = endBytes;
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  async #growOnce(): Promise<void> {
    const target = this.#wantedBytes;
    try {
      await this.file.truncate(target);
      this.#sizeBytes = Math.max(this.#sizeBytes, target);
    } catch (error) {
      this.#wantedBytes = 0;
      throw this.#latch.writeFailed(error);
    } finally {
      this.#growing = undefined;
    }
  }
}

/** Throws `BlockError("no-space")` for what has no room behind its last cluster. */
export function checkGrowable({ file }: ImageFile): void {
  if (file.kind === "regular") return;
  throw new BlockError("no-space", `${file.path} is a block device: there is no room behind its last cluster`);
}
