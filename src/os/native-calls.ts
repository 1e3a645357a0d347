/**
 * Linux calls on open files that Node has no name for. Those that may wait for a disk run on libuv's thread pool.
 * Results are as in the kernel: ≥ 0, or minus the error number.
 */
import { EINTR, ENOSYS } from "./file-error.ts";
import { BufferAddresses, type CType, type Native, type NativeFunction } from "./native.ts";

/** koffi keeps a stack for each asynchronous call, and the pool has few threads: more at once would gain nothing. */
const IN_FLIGHT_MAX = 16;
/** Hints that find this many calls waiting are dropped. */
const HINT_QUEUE_MAX = 32;

// linux/falloc.h
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;
// unistd.h
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
// fcntl.h
const POSIX_FADV_WILLNEED = 3;
const POSIX_FADV_DONTNEED = 4;
const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
const SYNC_FILE_RANGE_WRITE = 2;
const SYNC_FILE_RANGE_WAIT_AFTER = 4;
// linux/fs.h, from Linux 6.14 on
const RWF_DONTCACHE = 0x80;
const F_GETFL = 3;
const F_SETFL = 4;

interface Waiting {
  readonly call: NativeFunction;
  readonly args: readonly number[];
  readonly done: (result: number) => void;
}

export class NativeCalls {
  readonly native: Native;
  readonly #fallocate: NativeFunction | undefined;
  readonly #lseek: NativeFunction | undefined;
  readonly #fadvise: NativeFunction | undefined;
  readonly #syncFileRange: NativeFunction | undefined;
  readonly #fcntl: NativeFunction | undefined;
  readonly #flock: NativeFunction | undefined;
  readonly #pwritev2: NativeFunction | undefined;
  readonly #addresses: BufferAddresses;
  readonly #waiting: Waiting[] = [];
  #inFlight = 0;

  constructor(native: Native) {
    this.native = native;
    const bind = (name: string, parameters: readonly CType[], result: CType = "int") =>
      native.bind(name, result, parameters);
    this.#fallocate = bind("fallocate", ["int", "int", "int64_t", "int64_t"]);
    this.#lseek = bind("lseek", ["int", "int64_t", "int"], "int64_t");
    this.#fadvise = bind("posix_fadvise", ["int", "int64_t", "int64_t", "int"]);
    this.#syncFileRange = bind("sync_file_range", ["int", "int64_t", "int64_t", "uint32_t"]);
    this.#fcntl = bind("fcntl", ["int", "int", "uintptr_t"]);
    this.#flock = bind("flock", ["int", "int"]);
    this.#pwritev2 = bind("pwritev2", ["int", "uintptr_t", "int", "int64_t", "int"], "int64_t");
    this.#addresses = new BufferAddresses(native);
  }

  punchHole(fd: number, offset: number, length: number): Promise<number> {
    return this.#run(this.#fallocate, [fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length]);
  }

  zeroRange(fd: number, offset: number, length: number): Promise<number> {
    return this.#run(this.#fallocate, [fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length]);
  }

  /** The start of the first data at or after `offset`; −ENXIO: none. Moves the file position, which nobody uses. */
  seekData(fd: number, offset: number): Promise<number> {
    return this.#run(this.#lseek, [fd, offset, SEEK_DATA]);
  }

  seekHole(fd: number, offset: number): Promise<number> {
    return this.#run(this.#lseek, [fd, offset, SEEK_HOLE]);
  }

  /** The size of a block device. */
  seekEnd(fd: number): Promise<number> {
    return this.#run(this.#lseek, [fd, 0, SEEK_END]);
  }

  /** A hint: undefined when it was dropped. */
  willNeed(fd: number, offset: number, length: number): Promise<number> | undefined {
    return this.#hint(this.#fadvise, [fd, offset, length, POSIX_FADV_WILLNEED])?.then(negated);
  }

  /**
   * Writes, perhaps less than all of it; the pages are written back at once and then dropped. `bytes` must not change or be
   * detached meanwhile. −EOPNOTSUPP: this kernel or file system cannot; nothing was written.
   */
  async writeDontCache(fd: number, offset: number, bytes: Uint8Array): Promise<number> {
    const address = this.#addresses.of(bytes);
    // struct iovec: address, length.
    const iovec = new Uint32Array(new ArrayBuffer(16));
    iovec.set([address, address / 2 ** 32, bytes.length, 0]);
    const iovecAddress = this.native.addressOf(iovec.buffer);
    const result = await this.#run(this.#pwritev2, [fd, iovecAddress, 1, offset, RWF_DONTCACHE]);
    // Both have to live until here: the kernel was given their addresses.
    if (iovec.buffer.byteLength === 0 || bytes.buffer.byteLength === 0)
      throw new Error("a buffer was detached during a write");
    return result;
  }

  /** Takes clean pages out of the page cache. */
  dropCached(fd: number, offset: number, length: number): Promise<number> {
    return this.#run(this.#fadvise, [fd, offset, length, POSIX_FADV_DONTNEED]).then(negated);
  }

  /** A hint: undefined when it was dropped. */
  startWriteback(fd: number, offset: number, length: number): Promise<number> | undefined {
    return this.#hint(this.#syncFileRange, [fd, offset, length, SYNC_FILE_RANGE_WRITE]);
  }

  /** Writes the dirty pages of the range back and waits for it. Not durable: no device cache is flushed. */
  writeOut(fd: number, offset: number, length: number): Promise<number> {
    const flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    return this.#run(this.#syncFileRange, [fd, offset, length, flags]);
  }

  /** Writes the dirty pages of the whole file back and waits for it. Not durable: no device cache is flushed. */
  finishWriteback(fd: number): Promise<number> {
    return this.#run(this.#syncFileRange, [fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER]);
  }

  /** `argument` is an address (of memory that must live until then) or a number, as `command` has it. */
  fcntl(fd: number, command: number, argument: number): Promise<number> {
    return this.#run(this.#fcntl, [fd, command, argument]);
  }

  /** As `fcntl`, on this thread: for what waits neither for a disk nor for a network. */
  fcntlNow(fd: number, command: number, argument: number): number {
    return this.#now(this.#fcntl, [fd, command, argument]);
  }

  /** Pass LOCK_NB, or it may keep a thread for ever. */
  flock(fd: number, operation: number): Promise<number> {
    return this.#run(this.#flock, [fd, operation]);
  }

  /** As `flock`, on this thread: with LOCK_NB, on a file system of this host. */
  flockNow(fd: number, operation: number): number {
    return this.#now(this.#flock, [fd, operation]);
  }

  /** Takes O_NONBLOCK or another status flag off an open file. */
  clearStatusFlag(fd: number, flag: number): number {
    const flags = this.fcntlNow(fd, F_GETFL, 0);
    return flags < 0 ? flags : this.fcntlNow(fd, F_SETFL, flags & ~flag);
  }

  #now(call: NativeFunction | undefined, args: readonly number[]): number {
    if (!call) return -ENOSYS;
    const result = call(...args);
    return result < 0 ? -this.native.errno() : result;
  }

  #run(call: NativeFunction | undefined, args: readonly number[]): Promise<number> {
    if (!call) return Promise.resolve(-ENOSYS);
    return new Promise((resolve) => this.#start({ call, args, done: resolve }));
  }

  #hint(call: NativeFunction | undefined, args: readonly number[]): Promise<number> | undefined {
    return this.#waiting.length < HINT_QUEUE_MAX ? this.#run(call, args) : undefined;
  }

  #start(item: Waiting): void {
    if (this.#inFlight >= IN_FLIGHT_MAX) {
      this.#waiting.push(item);
      return;
    }
    this.#inFlight += 1;
    item.call.async(...item.args, (_, result) => {
      // First of all: the number belongs to whoever calls next.
      const errno = result < 0 ? this.native.errno() : 0;
      this.#inFlight -= 1;
      if (errno === EINTR) this.#start(item);
      else item.done(result < 0 ? -errno : result);
      const next = this.#waiting.shift();
      if (next) this.#start(next);
    });
  }
}

/** Unlike the others, posix_fadvise returns its error number, positive. */
function negated(result: number): number {
  return result > 0 ? -result : result;
}
