/**
 * An open file. What the kernel has in memory is read and written on this thread; what may wait for a disk runs on
 * libuv's thread pool. All I/O is positional.
 *
 * Each operation is counted from start to end (`#inFlight`), so that closing cannot take the descriptor away from it, and
 * each change of the contents is bracketed by `ExtentFinder.invalidate`.
 */
import { close, fstat, ftruncate, type Stats } from "node:fs";
import { performance } from "node:perf_hooks";
import { type File, FileError, type FileExtent, type LockMode } from "../env/files.ts";
import { InFlight } from "../util/in-flight.ts";
import { EINVAL, errnoError, fileError, isUnsupported } from "./file-error.ts";
import { ExtentFinder } from "./file-extents.ts";
import { readFully, writeFully, writeFullyNow } from "./file-io.ts";
import { capacityOf, type FileKind, isLocal } from "./file-kind.ts";
import { ReadPace } from "./file-read-pace.ts";
import { DataSync } from "./file-sync.ts";
import { ONCE_BYTES_MIN, OnceWriter } from "./file-write-once.ts";
import { type DirtyBudget, FileWriteback } from "./file-writeback.ts";
import { ImageLock } from "./locks.ts";
import type { NativeCalls } from "./native-calls.ts";
import type { NowaitReader, PageWriter } from "./native-now.ts";

/** More than this is not moved on the event loop's thread: it takes 0.1 ms even when all is in memory. */
const NOW_BYTES_MAX = 2 ** 20;
/** The unit of `st_blocks`. */
const STAT_BLOCK_BYTES = 512;
/** Where a byte is read to that only has to be there. */
const PEEK = new Uint8Array(1);

export interface OpenedFile {
  readonly fd: number;
  readonly path: string;
  readonly kind: FileKind;
  readonly writable: boolean;
  readonly sizeBytes: number;
  /** A write of whole blocks needs nothing read first. */
  readonly blockBytes: number;
  /** The `statfs` type. */
  readonly fileSystem: number;
  /** Zeroing a range is not done by writing zeroes. */
  readonly zeroesWithoutWriting: boolean;
}

/** What a file shares with the others of its process. */
export interface FileServices {
  readonly calls: NativeCalls | undefined;
  readonly reader: NowaitReader | undefined;
  readonly writer: PageWriter | undefined;
  readonly budget: DirtyBudget;
}

export class RealFile implements File {
  readonly path: string;
  readonly kind: FileKind;
  readonly writable: boolean;
  readonly features: { readNow: boolean; punchHole: boolean; zeroRange: boolean; extents: boolean };
  readonly #fd: number;
  readonly #blockBytes: number;
  readonly #calls: NativeCalls | undefined;
  readonly #reader: NowaitReader | undefined;
  readonly #writer: PageWriter | undefined;
  readonly #inFlight = new InFlight();
  readonly #extents: ExtentFinder | undefined;
  readonly #readPace = new ReadPace(() => performance.now());
  readonly #writeback: FileWriteback;
  readonly #onceWriter: OnceWriter | undefined;
  readonly #sync: DataSync;
  readonly #lock: ImageLock;
  /** Writes up to here do not extend the file. */
  #sizeBytes: number;
  #readsNow: boolean;
  #writesNow: boolean;
  #closing: Promise<void> | undefined;

  constructor(opened: OpenedFile, { calls, reader, writer, budget }: FileServices) {
    const { fd, path, kind, writable } = opened;
    this.path = path;
    this.kind = kind;
    this.writable = writable;
    this.#fd = fd;
    this.#blockBytes = opened.blockBytes;
    this.#calls = calls;
    this.#reader = reader;
    this.#writer = writer;
    this.#sizeBytes = opened.sizeBytes;
    this.#readsNow = reader !== undefined;
    this.#writesNow = writable && isLocal(kind, opened.fileSystem);
    this.#extents = calls && kind === "regular" ? new ExtentFinder(calls, fd, path) : undefined;
    this.#writeback = new FileWriteback(fd, { calls, budget });
    this.#sync = new DataSync({ fd, path, writeback: this.#writeback });
    if (calls && kind === "regular") this.#onceWriter = new OnceWriter(fd, calls);
    this.#lock = new ImageLock(opened, calls);
    this.features = {
      readNow: this.#readsNow,
      punchHole: writable && calls !== undefined,
      zeroRange: writable && calls !== undefined && opened.zeroesWithoutWriting,
      extents: this.#extents !== undefined,
    };
  }

  async sizeBytes(): Promise<number> {
    this.#enter();
    try {
      this.#sizeBytes = await this.#currentSize();
      return this.#sizeBytes;
    } finally {
      this.#inFlight.leave();
    }
  }

  async allocatedBytes(): Promise<number> {
    this.#enter();
    try {
      return this.kind === "regular" ? (await this.#stat()).blocks * STAT_BLOCK_BYTES : 0;
    } finally {
      this.#inFlight.leave();
    }
  }

  readNow(offset: number, into: Uint8Array): number {
    const length = into.length;
    if (!this.#readsNow || length > NOW_BYTES_MAX || !this.#readPace.begins(length)) return -1;
    const count = (this.#reader as NowaitReader).read(this.#fd, offset, into);
    this.#readPace.ended(length);
    if (count === length) return count;
    if (count < 0 && isUnsupported(-count)) this.#readsNow = this.features.readNow = false;
    return -1;
  }

  read(offset: number, into: Uint8Array): Promise<number> {
    if (!this.#inFlight.enter()) return Promise.reject(this.#closedError());
    return new Promise((resolve, reject) => {
      readFully(this.#fd, offset, into, (error, count) => {
        this.#inFlight.leave();
        if (error) reject(fileError(`cannot read ${into.length} bytes at ${offset} of ${this.path}`, error));
        else resolve(count);
      });
    });
  }

  writeNow(offset: number, from: Uint8Array): number {
    const length = from.length;
    const end = offset + length;
    if (!this.#writesNow || end > this.#sizeBytes || length > NOW_BYTES_MAX) return -1;
    const startMs = performance.now();
    if (!this.#writeback.admits(length, startMs) || !this.#edgesAreCached(offset, end)) return -1;
    try {
      // Whatever else than success it is (a short write, a signal, an error), Node's way repeats the write and says it.
      if (this.#writer?.write(this.#fd, offset, from) !== length) writeFullyNow(this.#fd, offset, from);
    } catch (error) {
      throw fileError(`cannot write ${length} bytes at ${offset} of ${this.path}`, error);
    } finally {
      // Nothing else ran since the write began, so that saying it once is enough.
      this.#extents?.invalidate(offset, end);
      this.#writeback.timed(startMs, performance.now());
      this.#writeback.wrote(offset, length);
    }
    return length;
  }

  write(offset: number, from: Uint8Array, options?: { readonly once?: boolean }): Promise<void> {
    if (!this.#inFlight.enter()) return Promise.reject(this.#closedError());
    const end = offset + from.length;
    const writer = options?.once && from.length >= ONCE_BYTES_MIN ? this.#onceWriter : undefined;
    this.#extents?.invalidate(offset, end);
    this.#writeback.poolWriteStarts(performance.now());
    return new Promise((resolve, reject) => {
      const done = (error: Error | null): void => {
        this.#extents?.invalidate(offset, end);
        this.#writeback.poolWriteEnded(performance.now());
        this.#writeback.wrote(offset, from.length);
        if (!error && end > this.#sizeBytes) this.#sizeBytes = end;
        this.#inFlight.leave();
        if (error) reject(fileError(`cannot write ${from.length} bytes at ${offset} of ${this.path}`, error));
        else resolve();
      };
      if (writer) writer.write(offset, from, done);
      else writeFully(this.#fd, offset, from, done);
    });
  }

  async truncate(sizeBytes: number): Promise<void> {
    this.#sizeBytes = Math.min(this.#sizeBytes, sizeBytes);
    await this.#change(0, Number.POSITIVE_INFINITY, () => {
      return new Promise<void>((resolve, reject) => {
        ftruncate(this.#fd, sizeBytes, (error) => {
          if (error) reject(fileError(`cannot set the size of ${this.path} to ${sizeBytes}`, error));
          else resolve();
        });
      });
    });
    this.#sizeBytes = sizeBytes;
  }

  async punchHole(offset: number, length: number): Promise<boolean> {
    const calls = this.#calls;
    if (!this.features.punchHole || !calls) return false;
    if (length === 0) return true;
    const result = await this.#change(offset, offset + length, () =>
      calls.punchHole(this.#lock.owningFd, offset, length),
    );
    if (isUnsupported(-result)) this.features.punchHole = false;
    return this.#isDone(result, `cannot punch a hole of ${length} bytes at ${offset} into ${this.path}`);
  }

  async zeroRange(offset: number, length: number): Promise<boolean> {
    const calls = this.#calls;
    if (!this.features.zeroRange || !calls) return false;
    if (length === 0) return true;
    const result = await this.#change(offset, offset + length, () =>
      calls.zeroRange(this.#lock.owningFd, offset, length),
    );
    if (isUnsupported(-result)) this.features.zeroRange = false;
    return this.#isDone(result, `cannot zero ${length} bytes at ${offset} of ${this.path}`);
  }

  async extentAt(offset: number): Promise<FileExtent> {
    this.#enter();
    try {
      const extent = this.features.extents ? await this.#extents?.find(offset) : undefined;
      if (extent) return extent;
      this.features.extents = false;
      const end = await this.#currentSize();
      if (offset >= end) throw errnoError(`offset ${offset} is past the end of ${this.path}`, EINVAL);
      return { kind: "data", end };
    } finally {
      this.#inFlight.leave();
    }
  }

  async dataSync(): Promise<void> {
    this.#enter();
    try {
      await this.#sync.run();
    } finally {
      this.#inFlight.leave();
    }
  }

  willNeed(offset: number, length: number): void {
    if (length > 0) this.#hint((calls) => calls.willNeed(this.#fd, offset, length));
  }

  async dropClean(offset: number, length: number): Promise<boolean> {
    this.#enter();
    try {
      return this.#calls !== undefined && (await this.#calls.dropCached(this.#fd, offset, length)) >= 0;
    } finally {
      this.#inFlight.leave();
    }
  }

  startWriteback(offset: number, length: number): void {
    if (length > 0) this.#hint((calls) => calls.startWriteback(this.#fd, offset, length));
  }

  async lock(mode: LockMode): Promise<void> {
    this.#enter();
    try {
      await this.#lock.acquire(mode);
    } finally {
      this.#inFlight.leave();
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#readsNow = this.#writesNow = false;
    await this.#inFlight.close();
    await this.#writeback.close();
    await this.#lock.releaseClaim();
    await new Promise<void>((resolve, reject) => {
      close(this.#fd, (error) => (error ? reject(fileError(`cannot close ${this.path}`, error)) : resolve()));
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #currentSize(): Promise<number> {
    const stats = await this.#stat();
    return this.kind === "regular" ? stats.size : capacityOf(this.#fd, stats.rdev, this.#calls);
  }

  #stat(): Promise<Stats> {
    return new Promise((resolve, reject) => {
      fstat(this.#fd, (error, stats) =>
        error ? reject(fileError(`cannot stat ${this.path}`, error)) : resolve(stats),
      );
    });
  }

  /** Whether a write of [offset, end) needs nothing from the disk: its edges are block boundaries, or cached. */
  #edgesAreCached(offset: number, end: number): boolean {
    const blockBytes = this.#blockBytes;
    const before = offset % blockBytes;
    if (before !== 0 && !this.#isCached(offset)) return false;
    const inOneBlock = before !== 0 && end - offset <= blockBytes - before;
    return inOneBlock || end % blockBytes === 0 || this.#isCached(end - 1);
  }

  #isCached(offset: number): boolean {
    return this.readNow(offset, PEEK) === 1;
  }

  /** Brackets `work`, which changes what is data and what is a hole in [start, end). */
  async #change<T>(start: number, end: number, work: () => Promise<T>): Promise<T> {
    this.#enter();
    this.#extents?.invalidate(start, end);
    this.#writeback.obstacleStarts();
    try {
      return await work();
    } finally {
      this.#writeback.obstacleEnded();
      this.#extents?.invalidate(start, end);
      this.#inFlight.leave();
    }
  }

  /** What the result of a call means that may be impossible here, or not for this range (EINVAL). */
  #isDone(result: number, what: string): boolean {
    if (result >= 0) return true;
    if (result === -EINVAL || isUnsupported(-result)) return false;
    throw errnoError(what, -result);
  }

  #hint(give: (calls: NativeCalls) => Promise<number> | undefined): void {
    if (!this.#calls || !this.#inFlight.enter()) return;
    const given = give(this.#calls);
    if (given) void given.then(() => this.#inFlight.leave());
    else this.#inFlight.leave();
  }

  #enter(): void {
    if (!this.#inFlight.enter()) throw this.#closedError();
  }

  #closedError(): FileError {
    return new FileError("EBADF", `${this.path} was closed (EBADF)`);
  }
}
