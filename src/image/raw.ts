/**
 * A raw image: byte n of the device is byte n of a regular file or block device.
 *
 * Invariants
 * - The size is taken once, when the image is opened. A file that shrinks afterwards gives "io" where bytes are missing:
 *   nothing is ever filled up with zeroes.
 * - An extent is called a hole only when the file system says so; a hole reads as zeroes.
 * - An image of 0 bytes opens, as it does in qemu-nbd and nbdkit: every request on it has a well-defined answer. Whether
 *   serving one is sensible is for the caller to say.
 */
import type { BlockCapabilities, WriteOptions, ZeroOptions } from "../block/device.ts";
import { BlockError, checkRange } from "../block/error.ts";
import { appendExtent, type Extent } from "../block/extents.ts";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { InFlight } from "../util/in-flight.ts";
import { ZEROES, ZEROES_BYTES } from "../util/zeroes.ts";
import { blockErrorFrom, imageOpenErrorFrom } from "./errors.ts";
import type { Image, OpenImageOptions } from "./image.ts";
import { SyncLatch } from "./sync-latch.ts";

/** How often one call of `extents` may ask the file system. */
export const EXTENT_SEEKS_MAX = 1024;

/** Opens and locks a raw image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openRaw(env: Pick<Env, "files">, options: OpenImageOptions): Promise<RawImage> {
  const { path, readOnly, noFollow = false, lock = true } = options;
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: !readOnly, noFollow });
    if (lock) await file.lock(readOnly ? "shared" : "exclusive");
    return new RawImage(file, await file.sizeBytes());
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

export class RawImage implements Image {
  /** A raw image has no tables that a crash could leave half-written. */
  readonly dirty = false;
  readonly storage: Image["storage"];
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #file: File;
  readonly #latch: SyncLatch;
  readonly #inFlight = new InFlight();
  /** Ends of what `readNow` and `writeNow` may touch; −1 refuses everything, so that one comparison is the whole check. */
  #readNowEnd: number;
  #writeNowEnd: number;
  /** Takes `file` over: `close` closes it. `file` must be writable unless the image is to be read-only. */
  constructor(file: File, sizeBytes: number) {
    const { punchHole, zeroRange, extents } = file.features;
    this.storage = file.kind;
    this.sizeBytes = sizeBytes;
    this.capabilities = {
      readOnly: !file.writable,
      discard: file.writable && punchHole,
      fastZero: file.writable && (punchHole || zeroRange),
      extents,
      rotational: false,
      blockSizes: { minimum: 1, preferred: 4096 },
    };
    this.#file = file;
    this.#latch = new SyncLatch(file);
    this.#readNowEnd = sizeBytes;
    this.#writeNowEnd = file.writable ? sizeBytes : -1;
  }

  readNow(offset: number, into: Uint8Array): number {
    if (!(offset >= 0 && offset + into.length <= this.#readNowEnd)) return -1;
    return this.#file.readNow(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#enter();
    try {
      checkRange(offset, into.length, this.sizeBytes);
      if (into.length === 0) return;
      const count = await this.#file.read(offset, into);
      if (count !== into.length) throw this.#shrunk(offset + count);
    } catch (error) {
      throw blockErrorFrom(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  writeNow(offset: number, from: Uint8Array): number {
    if (!(offset >= 0 && offset + from.length <= this.#writeNowEnd) || this.#latch.latched) return -1;
    try {
      return this.#file.writeNow(offset, from);
    } catch (error) {
      throw this.#latch.writeFailed(error);
    }
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#write(offset, from, options);
  }

  /** As `write`, for what nobody is expected to read soon. */
  protected writeOnce(offset: number, from: Uint8Array): Promise<void> {
    return this.#write(offset, from, { once: true });
  }

  async #write(offset: number, from: Uint8Array, options?: WriteOptions & { readonly once?: boolean }): Promise<void> {
    this.#enter();
    try {
      this.#checkWrite(offset, from.length);
      if (from.length > 0) await this.#file.write(offset, from, options);
      if (options?.fua) await this.#latch.sync();
    } catch (error) {
      throw this.#latch.writeFailed(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    this.#enter();
    try {
      this.#checkWrite(offset, length);
      if (length > 0) await this.#zero(offset, length, options);
      if (options.fua) await this.#latch.sync();
    } catch (error) {
      throw this.#latch.writeFailed(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  async discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    this.#enter();
    try {
      this.#checkWrite(offset, length);
      // False: this file system keeps its space. A discard is a hint, so that is no failure.
      if (length > 0) await this.#patiently(() => this.#file.punchHole(offset, length));
      if (options?.fua) await this.#latch.sync();
    } catch (error) {
      throw this.#latch.writeFailed(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  async cache(offset: number, length: number): Promise<void> {
    this.#enter();
    try {
      checkRange(offset, length, this.sizeBytes);
      if (length > 0) this.#file.willNeed(offset, length);
    } finally {
      this.#inFlight.leave();
    }
  }

  async flush(): Promise<void> {
    this.#enter();
    try {
      if (!this.capabilities.readOnly) await this.#latch.sync();
    } finally {
      this.#inFlight.leave();
    }
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    this.#enter();
    try {
      checkRange(offset, length, this.sizeBytes);
      if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
      return await this.#extents(offset, offset + length, countMax);
    } catch (error) {
      throw blockErrorFrom(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  async allocatedBytes(): Promise<number> {
    this.#enter();
    try {
      return await this.#file.allocatedBytes();
    } catch (error) {
      throw blockErrorFrom(error);
    } finally {
      this.#inFlight.leave();
    }
  }

  async close(): Promise<void> {
    this.#readNowEnd = -1;
    this.#writeNowEnd = -1;
    await this.#inFlight.close();
    await this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #enter(): void {
    if (!this.#inFlight.enter()) throw new BlockError("shutting-down", `${this.#file.path} is closed`);
  }

  #checkWrite(offset: number, length: number): void {
    if (this.capabilities.readOnly) throw new BlockError("read-only", `${this.#file.path} is open read-only`);
    checkRange(offset, length, this.sizeBytes);
    this.#latch.check();
  }

  #shrunk(end: number): BlockError {
    return new BlockError(
      "io",
      `${this.#file.path} ends at ${end}, but had ${this.sizeBytes} bytes when it was opened`,
    );
  }

  /** Whether zeroing the range would change nothing. False is always right. */
  protected isHole(_offset: number, _length: number): Promise<boolean> {
    return Promise.resolve(false);
  }

  async #zero(offset: number, length: number, options: ZeroOptions): Promise<void> {
    if (!options.noHole && (await this.isHole(offset, length))) return;
    if (!options.noHole && (await this.#patiently(() => this.#file.punchHole(offset, length)))) return;
    if (await this.#patiently(() => this.#file.zeroRange(offset, length))) return;
    if (options.fastOnly) throw new BlockError("not-supported", `${this.#file.path} cannot be zeroed fast`);
    for (let done = 0; done < length; done += ZEROES_BYTES) {
      const count = Math.min(ZEROES_BYTES, length - done);
      await this.#file.write(offset + done, count === ZEROES_BYTES ? ZEROES : ZEROES.subarray(0, count));
    }
  }

  /**
   * To zero a block device, the kernel first drops its pages of the range. While somebody holds a claim on the device it
   * refuses to drop dirty ones ("EBUSY", nothing changed); once they are written back it can. If not, we cannot.
   */
  async #patiently(change: () => Promise<boolean>): Promise<boolean> {
    try {
      return await change();
    } catch (error) {
      if (!isBusy(error)) throw error;
    }
    await this.#latch.sync();
    return change().catch((error: unknown) => {
      if (isBusy(error)) return false;
      throw error;
    });
  }

  async #extents(offset: number, end: number, countMax: number): Promise<Extent[]> {
    const list: Extent[] = [];
    let at = offset;
    for (let seeks = 0; at < end && list.length < countMax && seeks < EXTENT_SEEKS_MAX; seeks++) {
      const run = await this.#file.extentAt(at);
      if (!(run.end > at)) throw this.#shrunk(at);
      const hole = run.kind === "hole";
      const stop = Math.min(run.end, end);
      appendExtent(list, { length: stop - at, hole, zero: hole });
      at = stop;
    }
    return list;
  }
}

function isBusy(error: unknown): boolean {
  return error instanceof FileError && error.code === "EBUSY";
}
