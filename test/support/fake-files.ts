/**
 * Files in memory, with faults on order. Sparse, in blocks of 4 KiB. Every disk keeps two states: what reads see, and what
 * would survive a power cut (brought up to date by `dataSync` alone), so that a missing sync shows.
 */
import {
  type File,
  FileError,
  type FileExtent,
  type FileFeatures,
  type Files,
  type LockMode,
  type OpenOptions,
} from "../../src/env/files.ts";

export const FAKE_BLOCK_BYTES = 4096;

export type FakeOperation = Exclude<keyof File, "path" | "kind" | "writable" | "features" | symbol> | "open";

/** Makes matching operations fail. `after` operations pass first; then `times` fail (default: all). */
export interface Fault {
  readonly operation: FakeOperation;
  readonly code: string;
  readonly after?: number;
  readonly times?: number;
}

type Blocks = Map<number, Uint8Array>;

/** What lies under a path: shared by every file opened on it. */
export class FakeDisk {
  readonly kind: File["kind"];
  blocks: Blocks = new Map();
  size = 0;
  durableBlocks: Blocks = new Map();
  durableSize = 0;
  readonly dirty = new Set<number>();
  readonly holders = new Map<FakeFile, LockMode>();

  constructor(kind: File["kind"] = "regular") {
    this.kind = kind;
  }

  get(offset: number, into: Uint8Array): number {
    const length = Math.max(0, Math.min(into.length, this.size - offset));
    eachBlock(offset, length, (block, within, done, count) => {
      const bytes = this.blocks.get(block);
      if (bytes === undefined) into.fill(0, done, done + count);
      else into.set(bytes.subarray(within, within + count), done);
    });
    return length;
  }

  put(offset: number, from: Uint8Array): void {
    eachBlock(offset, from.length, (block, within, done, count) => {
      this.#own(block).set(from.subarray(done, done + count), within);
    });
    this.size = Math.max(this.size, offset + from.length);
  }

  /** Zeroes the range; `drop` gives whole blocks back, otherwise all of them are held afterwards. */
  zero(offset: number, length: number, drop: boolean): void {
    if (drop) this.#punch(offset, offset + length);
    else eachBlock(offset, length, (block, within, _done, count) => this.#own(block).fill(0, within, within + count));
  }

  resize(size: number): void {
    if (size < this.size) this.zero(size, this.size - size, true);
    this.size = size;
  }

  /** What a sync that begins now would make durable. Those blocks count as clean from now on. */
  takeDirty(): () => void {
    const { size } = this;
    const taken = [...this.dirty].map((block) => [block, this.blocks.get(block)?.slice()] as const);
    this.dirty.clear();
    return () => {
      for (const [block, bytes] of taken) {
        if (bytes === undefined) this.durableBlocks.delete(block);
        else this.durableBlocks.set(block, bytes);
      }
      this.durableSize = size;
    };
  }

  /** Only what was synced is left, and nobody has the file open any more. */
  losePower(): void {
    this.blocks = new Map([...this.durableBlocks].map(([block, bytes]) => [block, bytes.slice()]));
    this.size = this.durableSize;
    this.dirty.clear();
    this.holders.clear();
  }

  #own(block: number): Uint8Array {
    const bytes = this.blocks.get(block) ?? new Uint8Array(FAKE_BLOCK_BYTES);
    this.blocks.set(block, bytes);
    this.dirty.add(block);
    return bytes;
  }

  #punch(offset: number, end: number): void {
    for (const [block, bytes] of this.blocks) {
      const start = block * FAKE_BLOCK_BYTES;
      const stop = Math.min(start + FAKE_BLOCK_BYTES, this.size);
      if (start >= end || stop <= offset) continue;
      if (start >= offset && stop <= end) this.blocks.delete(block);
      else bytes.fill(0, Math.max(offset - start, 0), Math.min(end - start, FAKE_BLOCK_BYTES));
      this.dirty.add(block);
    }
  }
}

export class FakeFiles implements Files {
  readonly disks = new Map<string, FakeDisk>();
  /** What the host can do. Features are looked up when a file is opened; the calls themselves look every time. */
  features: FileFeatures = { readNow: true, punchHole: true, zeroRange: true, extents: true };
  /** Every operation that began, in order: "write 0+512", "dataSync". */
  readonly log: string[] = [];
  readonly #faults: { fault: Fault; seen: number }[] = [];
  readonly #gates = new Map<FakeOperation, Promise<void>>();

  /** Puts a file there, durable, and returns its disk. */
  add(path: string, content: Uint8Array | number, kind: File["kind"] = "regular"): FakeDisk {
    const disk = new FakeDisk(kind);
    if (typeof content === "number") disk.resize(content);
    else disk.put(0, content);
    disk.takeDirty()();
    this.disks.set(path, disk);
    return disk;
  }

  inject(fault: Fault): void {
    this.#faults.push({ fault, seen: 0 });
  }

  clearFaults(): void {
    this.#faults.length = 0;
  }

  /** Operations of this name begin, and then wait, until the function returned is called. */
  hold(operation: FakeOperation): () => void {
    const gate = Promise.withResolvers<void>();
    this.#gates.set(operation, gate.promise);
    return () => {
      this.#gates.delete(operation);
      gate.resolve();
    };
  }

  count(prefix: string): number {
    return this.log.filter((line) => line.startsWith(prefix)).length;
  }

  async open({ path, writable, create }: OpenOptions): Promise<File> {
    await this.begin("open", path);
    const known = this.disks.get(path);
    if (create && known !== undefined) throw new FileError("EEXIST", `${path} exists`);
    if (!create && known === undefined) throw new FileError("ENOENT", `${path} does not exist`);
    return new FakeFile(this, path, known ?? this.add(path, 0), writable);
  }

  async exists(path: string): Promise<boolean> {
    return this.disks.has(path);
  }

  async rename(from: string, to: string): Promise<void> {
    const disk = this.disks.get(from);
    if (disk === undefined) throw new FileError("ENOENT", `${from} does not exist`);
    this.disks.delete(from);
    this.disks.set(to, disk);
  }

  async unlink(path: string): Promise<void> {
    if (!this.disks.delete(path)) throw new FileError("ENOENT", `${path} does not exist`);
  }

  async syncDirectory(path: string): Promise<void> {
    this.log.push(`syncDirectory ${path}`);
  }

  /** Logs the operation, and throws when it was ordered to fail. Synchronous, for `readNow` and `writeNow`. */
  beginNow(operation: FakeOperation, detail: string): void {
    this.log.push(`${operation} ${detail}`.trim());
    for (const entry of this.#faults) {
      const { operation: name, code, after = 0, times = Infinity } = entry.fault;
      if (name !== operation) continue;
      entry.seen += 1;
      if (entry.seen > after && entry.seen <= after + times)
        throw new FileError(code, `ordered to fail (${operation})`);
    }
  }

  async begin(operation: FakeOperation, detail: string): Promise<void> {
    this.beginNow(operation, detail);
    await this.#gates.get(operation);
  }
}

class FakeFile implements File {
  readonly path: string;
  readonly writable: boolean;
  readonly features: FileFeatures;
  readonly #files: FakeFiles;
  readonly #disk: FakeDisk;
  #closed = false;
  #syncFailure: Error | undefined;

  constructor(files: FakeFiles, path: string, disk: FakeDisk, writable: boolean) {
    this.path = path;
    this.writable = writable;
    this.features = { ...files.features };
    this.#files = files;
    this.#disk = disk;
  }

  get kind(): File["kind"] {
    return this.#disk.kind;
  }

  async sizeBytes(): Promise<number> {
    await this.#begin("sizeBytes");
    return this.#disk.size;
  }

  async allocatedBytes(): Promise<number> {
    await this.#begin("allocatedBytes");
    return this.kind === "regular" ? this.#disk.blocks.size * FAKE_BLOCK_BYTES : 0;
  }

  readNow(offset: number, into: Uint8Array): number {
    this.#assertOpen();
    if (!this.#files.features.readNow || offset + into.length > this.#disk.size) return -1;
    this.#files.beginNow("readNow", `${offset}+${into.length}`);
    return this.#disk.get(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<number> {
    await this.#begin("read", `${offset}+${into.length}`);
    return this.#disk.get(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    this.#assertOpen();
    if (!this.#files.features.readNow) return -1;
    this.#files.beginNow("writeNow", `${offset}+${from.length}`);
    this.#disk.put(offset, from);
    return from.length;
  }

  async write(offset: number, from: Uint8Array): Promise<void> {
    await this.#begin("write", `${offset}+${from.length}`);
    if (!this.writable) throw new FileError("EBADF", `${this.path} is open for reading`);
    this.#disk.put(offset, from);
  }

  async truncate(sizeBytes: number): Promise<void> {
    await this.#begin("truncate", `${sizeBytes}`);
    this.#disk.resize(sizeBytes);
  }

  async punchHole(offset: number, length: number): Promise<boolean> {
    await this.#begin("punchHole", `${offset}+${length}`);
    if (!this.#files.features.punchHole) return false;
    this.#disk.zero(offset, length, true);
    return true;
  }

  async zeroRange(offset: number, length: number): Promise<boolean> {
    await this.#begin("zeroRange", `${offset}+${length}`);
    if (!this.#files.features.zeroRange) return false;
    this.#disk.zero(offset, length, false);
    return true;
  }

  async extentAt(offset: number): Promise<FileExtent> {
    await this.#begin("extentAt", `${offset}`);
    const { blocks, size } = this.#disk;
    if (!this.#files.features.extents) return { kind: "data", end: size };
    const first = Math.floor(offset / FAKE_BLOCK_BYTES);
    const data = blocks.has(first);
    let end = first + 1;
    // Across a hole to the next block that is held, in one step; along data, block by block.
    if (!data) end = [...blocks.keys()].reduce((next, held) => (held > first && held < next ? held : next), Infinity);
    else while (blocks.has(end)) end += 1;
    return { kind: data ? "data" : "hole", end: Math.min(end * FAKE_BLOCK_BYTES, size) };
  }

  async dataSync(): Promise<void> {
    if (this.#syncFailure !== undefined) throw this.#syncFailure;
    const makeDurable = this.#disk.takeDirty();
    try {
      await this.#begin("dataSync");
    } catch (error) {
      // As the kernel does: the pages count as clean from now on, and their data is gone.
      this.#syncFailure = error as Error;
      throw error;
    }
    makeDurable();
  }

  willNeed(offset: number, length: number): void {
    this.#files.log.push(`willNeed ${offset}+${length}`);
  }

  startWriteback(offset: number, length: number): void {
    this.#files.log.push(`startWriteback ${offset}+${length}`);
  }

  async lock(mode: LockMode): Promise<void> {
    await this.#begin("lock", mode);
    const others = [...this.#disk.holders].filter(([holder]) => holder !== this).map(([, held]) => held);
    if (mode === "exclusive" ? others.length > 0 : others.includes("exclusive")) {
      throw new FileError("EAGAIN", `${this.path} is locked`);
    }
    this.#disk.holders.set(this, mode);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#files.log.push("close");
    this.#disk.holders.delete(this);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The real one does not look: by then its descriptor may be another file's. So this is a bug, not a failure. */
  #assertOpen(): void {
    if (this.#closed) throw new Error(`${this.path} was used after it was closed`);
  }

  async #begin(operation: FakeOperation, detail = ""): Promise<void> {
    this.#assertOpen();
    await this.#files.begin(operation, detail);
  }
}

type Visit = (block: number, within: number, done: number, count: number) => void;

/** Calls `visit` for each block that the range touches: its index, the offset within it, bytes before, bytes in it. */
function eachBlock(offset: number, length: number, visit: Visit): void {
  for (let done = 0; done < length; ) {
    const within = (offset + done) % FAKE_BLOCK_BYTES;
    const count = Math.min(FAKE_BLOCK_BYTES - within, length - done);
    visit((offset + done - within) / FAKE_BLOCK_BYTES, within, done, count);
    done += count;
  }
}
