/**
 * An open file of the simulated disk. An asynchronous operation takes effect when it begins or when it ends, as the seed
 * has it, and touches the caller's buffer no sooner: a buffer that is used again too early is noticed.
 */
import { type File, FileError, type FileExtent, type FileFeatures, type LockMode } from "../../src/env/files.ts";
import { InFlight } from "../../src/util/in-flight.ts";
import type { SimDisk } from "./sim-disk.ts";
import { SECTOR_BYTES, type SimInode } from "./sim-inode.ts";
import type { SimProcess } from "./sim-process.ts";

const BLOCK_BYTES = 4096;

export interface SimFileParts {
  readonly disk: SimDisk;
  readonly process: SimProcess;
  readonly inode: SimInode;
  readonly path: string;
  readonly writable: boolean;
}

/** One operation, until it ends. `inPart` does as much of it as had been done when the process died. */
interface Work<T> {
  readonly label: string;
  readonly act: () => T;
  readonly inPart?: () => void;
}

export class SimFile implements File {
  readonly path: string;
  readonly kind: File["kind"];
  readonly writable: boolean;
  readonly features: FileFeatures;
  readonly #disk: SimDisk;
  readonly #process: SimProcess;
  readonly #inode: SimInode;
  readonly #onClose: () => void;
  readonly #inFlight = new InFlight();
  readonly #underWay = new Set<() => void>();
  #syncFailure: FileError | undefined;

  constructor(parts: SimFileParts, onClose: () => void) {
    this.path = parts.path;
    this.kind = parts.inode.kind;
    this.writable = parts.writable;
    this.features = { ...parts.disk.behaviour.features };
    this.#disk = parts.disk;
    this.#process = parts.process;
    this.#inode = parts.inode;
    this.#onClose = onClose;
  }

  sizeBytes(): Promise<number> {
    return this.#run({ label: "size", act: () => this.#inode.size });
  }

  allocatedBytes(): Promise<number> {
    return this.#run({ label: "allocated", act: () => this.#inode.allocatedBytes });
  }

  readNow(offset: number, into: Uint8Array): number {
    if (!this.features.readNow || this.#refuseNow()) return -1;
    if (offset + into.length > this.#inode.size) return -1;
    this.#disk.scheduler.trace("read now", offset, into.length);
    return this.#inode.read(offset, into);
  }

  read(offset: number, into: Uint8Array): Promise<number> {
    const act = (): number => {
      if (this.#fails("readError")) throw new FileError("EIO", `cannot read ${this.path}`);
      return this.#inode.read(offset, into);
    };
    return this.#run({ label: "read", act });
  }

  writeNow(offset: number, from: Uint8Array): number {
    if (!this.writable || this.#refuseNow()) return -1;
    this.#disk.scheduler.trace("write now", offset, from.length);
    this.#write(offset, from);
    return from.length;
  }

  write(offset: number, from: Uint8Array): Promise<void> {
    const inPart = (): void => this.#writePart(offset, from);
    return this.#change({ label: "write", act: () => this.#write(offset, from), inPart });
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#change({ label: "truncate", act: () => this.#inode.truncate(sizeBytes) });
  }

  async punchHole(offset: number, length: number): Promise<boolean> {
    if (!this.features.punchHole) return false;
    await this.#change({ label: "punch", act: () => this.#inode.zero(offset, length, true) });
    return true;
  }

  async zeroRange(offset: number, length: number): Promise<boolean> {
    if (!this.features.zeroRange) return false;
    await this.#change({ label: "zero", act: () => this.#inode.zero(offset, length, false) });
    return true;
  }

  extentAt(offset: number): Promise<FileExtent> {
    const act = (): FileExtent =>
      this.features.extents ? this.#inode.extentAt(offset) : { kind: "data", end: this.#inode.size };
    return this.#run({ label: "extent", act });
  }

  dataSync(): Promise<void> {
    if (this.#syncFailure !== undefined && this.#disk.behaviour.filesRemember) return Promise.reject(this.#syncFailure);
    const point = this.#inode.syncPoint();
    const lose = (): void => {
      this.#disk.ioErrors += 1;
      this.#inode.failSync(point, this.#disk.rng);
    };
    const act = (): void => {
      if (this.#fails("syncError")) {
        lose();
        this.#syncFailure = new FileError("EIO", `cannot sync ${this.path}`);
        throw this.#syncFailure;
      }
      if (this.#syncFailure !== undefined && this.#disk.behaviour.filesRemember) throw this.#syncFailure;
      this.#inode.finishSync(point);
    };
    // The kernel goes on when the process has died, and then nobody is told.
    const inPart = (): void => void (this.#fails("syncError") && lose());
    return this.#run({ label: "sync", act, inPart }, false);
  }

  async dropClean(offset: number, length: number): Promise<boolean> {
    if (!this.features.readNow) return false;
    await this.#run({ label: "drop", act: () => this.#inode.dropClean(offset, length) });
    return true;
  }

  willNeed(): void {
    this.#disk.scheduler.trace("will need");
  }

  startWriteback(): void {
    this.#disk.scheduler.trace("start writeback");
  }

  lock(mode: LockMode): Promise<void> {
    const act = (): void => {
      for (const [holder, held] of this.#inode.holders) {
        const compatible = holder === this || (held === "shared" && mode === "shared");
        if (!compatible) throw new FileError("EAGAIN", `${this.path} is in use`);
      }
      this.#inode.holders.set(this, mode);
    };
    return this.#run({ label: "lock", act }, false);
  }

  async close(): Promise<void> {
    await this.#inFlight.close();
    this.#inode.holders.delete(this);
    this.#onClose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The process has died: what is under way happens in part, locks go. */
  abandon(): void {
    for (const inPart of this.#underWay) inPart();
    this.#underWay.clear();
    this.#inode.holders.delete(this);
  }

  #change(work: Work<void>): Promise<void> {
    if (this.writable) return this.#run(work);
    return Promise.reject(new FileError("EBADF", `${this.path} is open for reading only`));
  }

  #run<T>(work: Work<T>, mayBeEarly = true): Promise<T> {
    const { scheduler, rng } = this.#disk;
    if (!this.#inFlight.enter()) return Promise.reject(new FileError("EBADF", `${this.path} is closed`));
    const inPart = work.inPart ?? ((): void => {});
    let early: { result: T } | undefined;
    return new Promise<T>((resolve, reject) => {
      const end = (): void => {
        this.#underWay.delete(inPart);
        if (!this.#process.alive) return;
        try {
          resolve(early === undefined ? work.act() : early.result);
        } catch (error) {
          reject(error);
        }
        this.#inFlight.leave();
      };
      scheduler.after(this.#disk.latencyMs(), work.label, end);
      if (mayBeEarly && rng.chance(0.5)) early = this.#tryEarly(work);
      else this.#underWay.add(inPart);
    });
  }

  /** `undefined` when it failed: then it is tried again at the end. */
  #tryEarly<T>(work: Work<T>): { result: T } | undefined {
    try {
      return { result: work.act() };
    } catch {
      return undefined;
    }
  }

  #write(offset: number, from: Uint8Array): void {
    const code = this.#fails("noSpace") ? "ENOSPC" : this.#fails("writeError") ? "EIO" : undefined;
    if (code === undefined) {
      this.#inode.write(offset, from);
      return;
    }
    if (code === "EIO") this.#disk.ioErrors += 1;
    if (code === "EIO") this.#writePart(offset, from);
    else this.#writeBlocks(offset, from);
    throw new FileError(code, `cannot write ${this.path}`);
  }

  /** The first so many sectors, or none. */
  #writePart(offset: number, from: Uint8Array): void {
    const count = SECTOR_BYTES * this.#disk.rng.integer(0, Math.ceil(from.length / SECTOR_BYTES));
    this.#inode.write(offset, from.subarray(0, Math.min(count, from.length)));
  }

  /** Space is given by the block: as many as there were, but not all. */
  #writeBlocks(offset: number, from: Uint8Array): void {
    const blocks = this.#disk.rng.integer(0, Math.ceil(from.length / BLOCK_BYTES) - 1);
    this.#inode.write(offset, from.subarray(0, blocks * BLOCK_BYTES));
  }

  #refuseNow(): boolean {
    return this.#inFlight.closed || !this.#process.alive || this.#disk.rng.chance(this.#disk.behaviour.nowRefused);
  }

  #fails(fault: "readError" | "writeError" | "noSpace" | "syncError"): boolean {
    const { behaviour } = this.#disk;
    if (fault === "noSpace" && !this.path.endsWith(behaviour.noSpaceAt)) return false;
    const probability = behaviour[fault];
    return probability > 0 && this.#disk.rng.chance(probability);
  }
}
