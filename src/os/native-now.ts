/**
 * Reads and writes of the page cache on the event loop's own thread. These are the hottest calls of the program, so nothing
 * is allocated in them. Results are as in the kernel: ≥ 0, or minus the error number.
 */
import { EAGAIN } from "./file-error.ts";
import { BufferAddresses, type Native, type NativeFunction } from "./native.ts";

// linux/fs.h
const RWF_NOWAIT = 8;

/**
 * Reads from the page cache without ever waiting for a disk: `preadv2(RWF_NOWAIT)`.
 *
 * The one iovec {address u64, length u64} lives here, outside the heap, and is filled in by hand. 4 KiB that are cached take 0.65 µs in all, `RealFile.readNow` included
 * (`fs.readSync`, which may wait, takes as long). A miss takes 10 µs, for the kernel begins to read ahead before it says
 * EAGAIN: the read through the thread pool that follows finds its data on the way.
 */
export class NowaitReader {
  readonly #preadv2: NativeFunction;
  readonly #native: Native;
  readonly #iovec = new Uint32Array(new ArrayBuffer(16));
  readonly #iovecAddress: number;
  readonly #addresses: BufferAddresses;

  private constructor(native: Native, preadv2: NativeFunction) {
    this.#native = native;
    this.#preadv2 = preadv2;
    this.#addresses = new BufferAddresses(native);
    this.#iovecAddress = native.addressOf(this.#iovec.buffer);
  }

  static create(native: Native): NowaitReader | undefined {
    // off_t has 64 bits on all architectures that native.ts lets pass, so the plain name takes a whole offset.
    const preadv2 = native.bind("preadv2", "int64_t", ["int", "uintptr_t", "int", "int64_t", "int"]);
    return preadv2 && new NowaitReader(native, preadv2);
  }

  /** The bytes read (fewer than asked at the end of the file, or where the cached part ends), or minus the error number. */
  read(fd: number, offset: number, into: Uint8Array): number {
    const address = this.#addresses.of(into);
    const iovec = this.#iovec;
    iovec[0] = address; // The low half: storing into a Uint32Array reduces modulo 2^32.
    iovec[1] = address / 2 ** 32;
    iovec[2] = into.length; // A typed array is shorter than 2^32 bytes here: the high half stays 0.
    const count = this.#preadv2(fd, this.#iovecAddress, 1, offset, RWF_NOWAIT);
    return count >= 0 ? count : -this.#native.errno() || -EAGAIN;
  }
}

/**
 * Writes to the page cache: a plain `pwrite`, which the caller expects not to wait. Of a 4 KiB write through `fs.writeSync`,
 * a quarter is Node's own work; this saves it.
 */
export class PageWriter {
  readonly #pwrite: NativeFunction;
  readonly #native: Native;
  readonly #addresses: BufferAddresses;

  private constructor(native: Native, pwrite: NativeFunction) {
    this.#native = native;
    this.#pwrite = pwrite;
    this.#addresses = new BufferAddresses(native);
  }

  static create(native: Native): PageWriter | undefined {
    const pwrite = native.bind("pwrite", "int64_t", ["int", "uintptr_t", "int64_t", "int64_t"]);
    return pwrite && new PageWriter(native, pwrite);
  }

  /** The bytes written, perhaps fewer than asked, or minus the error number. */
  write(fd: number, offset: number, from: Uint8Array): number {
    const count = this.#pwrite(fd, this.#addresses.of(from), from.length, offset);
    return count >= 0 ? count : -this.#native.errno();
  }
}
