/**
 * Writes of data that nobody is expected to read soon, such as the blocks of a disk that is being copied: they should not
 * push what is read all the time out of the page cache, and their pages are needed for the ones that follow.
 *
 * The kernel does that by itself (`RWF_DONTCACHE`, Linux 6.14): it begins to write back at once, and then drops the pages.
 * Elsewhere the pages are dropped when a sync has made them clean.
 *
 * Measured (ext4, virtio disk, 2 GiB into a new file, a sync every 64 MiB): 1.7 GB/s and 0.23 s of CPU time a GiB with it,
 * 1.6 GB/s and 0.27 s with pages dropped after each sync, 0.6–1.4 GB/s and 0.2–0.75 s when they stay.
 */
import { EINVAL, errnoError, isUnsupported } from "./file-error.ts";
import { writeFully } from "./file-io.ts";
import type { NativeCalls } from "./native-calls.ts";

/** Below it, a write-back of its own would cost more than the page cache does. */
export const ONCE_BYTES_MIN = 128 * 1024;
/** Ranges remembered until the next sync; what has no place stays in the cache, which harms nobody. */
const RANGES_MAX = 64;

interface Range {
  readonly offset: number;
  end: number;
}

export class OnceWriter {
  readonly #fd: number;
  readonly #calls: NativeCalls;
  #kernelDrops: boolean;
  #written: Range[] = [];

  /** `kernelDrops` false: as on a kernel that cannot. */
  constructor(fd: number, calls: NativeCalls, kernelDrops = true) {
    this.#fd = fd;
    this.#calls = calls;
    this.#kernelDrops = kernelDrops;
  }

  /** Writes all of `bytes`, which must not change meanwhile. */
  write(offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void {
    if (this.#kernelDrops) void this.#writeDropping(offset, bytes).then(done);
    else this.#writeKeeping(offset, bytes, done);
  }

  /** A sync begins. What it returns is to be called when it has succeeded. */
  syncStarts(): () => void {
    const ranges = this.#written;
    this.#written = [];
    return () => {
      for (const { offset, end } of ranges) void this.#calls.dropCached(this.#fd, offset, end - offset);
    };
  }

  async #writeDropping(offset: number, bytes: Uint8Array): Promise<Error | null> {
    for (let at = 0; at < bytes.length; ) {
      const count = await this.#calls.writeDontCache(this.#fd, offset + at, bytes.subarray(at));
      if (isUnsupported(-count) || count === -EINVAL) {
        this.#kernelDrops = false;
        return await new Promise((resolve) => this.#writeKeeping(offset + at, bytes.subarray(at), resolve));
      }
      if (count < 0) return errnoError("the write failed", -count);
      // Nothing written, and no error: Node's way asks again, and says it.
      if (count === 0)
        return await new Promise((resolve) => this.#writeKeeping(offset + at, bytes.subarray(at), resolve));
      at += count;
    }
    return null;
  }

  #writeKeeping(offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void {
    writeFully(this.#fd, offset, bytes, (error) => {
      if (!error) this.#note(offset, offset + bytes.length);
      done(error);
    });
  }

  #note(offset: number, end: number): void {
    const before = this.#written.find((range) => range.end === offset);
    if (before !== undefined) before.end = end;
    else if (this.#written.length < RANGES_MAX) this.#written.push({ offset, end });
  }
}
