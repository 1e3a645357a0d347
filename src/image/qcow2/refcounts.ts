/**
 * The reference counts of an open image (docs/interop/qcow2, "Host cluster management"): a table of blocks of counts. One
 * change at a time. The table is held (4 MiB at most, or 6), blocks are not: counts are read and written by the range.
 *
 * Order, so that a crash leaves lost space and nothing worse
 * - A cluster's count is durable before anything can refer to the cluster (`reserve`), and so is the file's new length.
 * - A new block is durable before the table points to it; a new table, with all it points to, before the header does.
 * - What is freed was durably without references before (the callers').
 */
import { BlockError } from "../../block/error.ts";
import type { Chaos } from "../../env/chaos.ts";
import type { ClusterRange, SpaceSource } from "../tables/cluster-pool.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import { checkGrowable, type ImageFile } from "../tables/image-file.ts";
import { readU64BE, writeU64BE } from "../tables/u64-big.ts";
import type { EntryRules } from "./entry-rules.ts";
import {
  QCOW2_REFCOUNT_TABLE_BYTES_MAX,
  QCOW2_REFCOUNT_TABLE_FIELD,
  type Qcow2Geometry,
  type Qcow2Header,
} from "./header.ts";
import { readTable } from "./read-table.ts";
import { type CountCodec, countCodec } from "./refcount-codec.ts";
import { TableOffsets } from "./table-offsets.ts";

const ENTRY_BYTES = 8;
/** Clusters behind the end of the file that something counts already: more than a crash can leave is no accident. */
const SKIPPED_MAX = 2 ** 20;
/** Counts that are looked at together when space is reserved: as many as are reserved at most. */
const SEEN_AT_ONCE = 32_768;
/** Entries of a new table. */
const WRITTEN_AT_ONCE = 16_384;

export interface RefcountsParts {
  readonly file: ImageFile;
  readonly geometry: Qcow2Geometry;
  readonly rules: EntryRules;
  readonly chaos: Chaos;
}

/** For counts that are read, and for what they are read from. */
export interface CountsBuffer {
  readonly counts: Float64Array<ArrayBuffer>;
  readonly bytes: Buffer;
}

export function newCountsBuffer(count: number): CountsBuffer {
  // 64 bits at most, or a part of a byte before and after.
  return { counts: new Float64Array(count), bytes: Buffer.allocUnsafeSlow(8 * count + 2) };
}

export class Refcounts implements SpaceSource {
  /** Counts in one block. */
  readonly perBlock: number;
  readonly codec: CountCodec;
  readonly #parts: RefcountsParts;
  #table: TableOffsets;
  #tableOffset: number;
  /** All that is in use lies before this cluster. */
  #next: number;
  /** The change that is under way. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(parts: RefcountsParts, table: TableOffsets, tableOffset: number) {
    const { clusterBytes, refcountOrder } = parts.geometry;
    this.#parts = parts;
    this.#table = table;
    this.#tableOffset = tableOffset;
    this.codec = countCodec(refcountOrder);
    this.perBlock = (clusterBytes * 8) / this.codec.bits;
    this.#next = Math.ceil(parts.file.sizeBytes / clusterBytes);
  }

  /** Reads the table. Wrong entries are left for when they are needed. */
  static async load(parts: RefcountsParts, header: Qcow2Header): Promise<Refcounts> {
    const { file, geometry, rules } = parts;
    const { refcountTableClusters, refcountTableOffset: offset } = header;
    const count = (refcountTableClusters * geometry.clusterBytes) / ENTRY_BYTES;
    const table = new TableOffsets(count, geometry.clusterBytes);
    await readTable(file, { offset, count }, (view, at, index) => {
      const value = readU64BE(view, at);
      if (value !== 0) table.set(index, rules.isTable(value) ? value : Number.NaN);
    });
    return new Refcounts(parts, table, offset);
  }

  /** Not to be changed. */
  get blocks(): TableOffsets {
    return this.#table;
  }

  get tableEntries(): number {
    return this.#table.length;
  }

  /** 0: no block; NaN: wrong. */
  blockAt(index: number): number {
    return this.#table.get(index);
  }

  /** Where the table's entry is in the file. */
  entryOffset(index: number): number {
    return this.#tableOffset + index * ENTRY_BYTES;
  }

  get endCluster(): number {
    return this.#next;
  }

  /** Up to `wanted` clusters at the end of the file, counted once, durably. They read as zeroes. */
  reserve(wanted: number): Promise<ClusterRange> {
    return this.#alone(() => this.#reserve(wanted));
  }

  /** Clusters that were reserved and never used. */
  free({ first, count }: ClusterRange): Promise<void> {
    return this.#alone(async () => {
      for (let done = 0; done < count; ) {
        const some = Math.min(count - done, this.perBlock - ((first + done) % this.perBlock));
        await this.#change(first + done, some, () => 0);
        done += some;
      }
      if (first + count === this.#next) this.#next = first;
    });
  }

  /** One reference less. Resolves to whether it was the last one. */
  release(cluster: number): Promise<boolean> {
    return this.#alone(async () => {
      let left = 0;
      await this.#change(cluster, 1, (count) => {
        left = Math.max(0, count - 1);
        return left;
      });
      return left === 0;
    });
  }

  /** For repairs: sets the counts of clusters under one block. */
  set(first: number, counts: ArrayLike<number>): Promise<void> {
    return this.#alone(async () => {
      while (!(this.#blockOffset(first) > 0)) await this.#addBlock(Math.floor(first / this.perBlock));
      let index = 0;
      await this.#change(first, counts.length, () => counts[index++] ?? 0);
    });
  }

  /** Of an image that nobody uses: what a crash left counted behind the end of the file is free. */
  clearBehind(): Promise<void> {
    return this.#alone(async () => {
      for (let index = Math.floor(this.#next / this.perBlock); index < this.#table.length; index++) {
        if (!(this.blockAt(index) > 0)) continue;
        const end = (index + 1) * this.perBlock;
        for (let first = Math.max(this.#next, index * this.perBlock); first < end; first += SEEN_AT_ONCE) {
          const counts = await this.counts(first, Math.min(SEEN_AT_ONCE, end - first));
          if (counts.some((count) => count > 0)) await this.#change(first, counts.length, () => 0);
        }
      }
    });
  }

  /** Reads the counts of clusters under one block. `memory`: of another such call, whose counts are not needed any more. */
  async counts(first: number, count: number, memory = newCountsBuffer(count)): Promise<Float64Array> {
    const counts = memory.counts.subarray(0, count);
    const offset = this.#blockOffset(first);
    if (!(offset > 0)) return counts.fill(0);
    const { view, skipped } = await this.#read(offset, first % this.perBlock, count, memory.bytes);
    for (let i = 0; i < count; i++) counts[i] = this.codec.get(view, skipped + i);
    return counts;
  }

  async #alone<T>(act: () => Promise<T>): Promise<T> {
    const before = this.#last;
    const mine = before.then(act, act);
    this.#last = mine.catch(() => undefined);
    return await mine;
  }

  async #reserve(wanted: number): Promise<ClusterRange> {
    const { file, chaos } = this.#parts;
    checkGrowable(file);
    for (let skipped = 0; skipped <= SKIPPED_MAX; ) {
      if (!(await this.#haveBlock(this.#next))) continue;
      const seen = Math.min(SEEN_AT_ONCE, this.perBlock - (this.#next % this.perBlock));
      const counts = await this.counts(this.#next, seen);
      const free = counts.indexOf(0);
      const first = this.#next + (free === -1 ? seen : free);
      skipped += first - this.#next;
      this.#next = first;
      if (free === -1) continue;
      const used = counts.findIndex((value, index) => index > free && value !== 0);
      const count = Math.min(wanted, (used === -1 ? seen : used) - free);
      this.#next = first + count;
      await this.#growTo(this.#next);
      await this.#change(first, count, () => 1);
      if (!chaos.on("qcow2/count-unsynced")) await file.sync();
      return { first, count };
    }
    const why = `says that ${SKIPPED_MAX} clusters behind the end of the file are in use`;
    throw new ImageCorruptError(file.path, { field: "refcount table", at: this.#tableOffset, why });
  }

  /** False: something was added; look again. */
  async #haveBlock(cluster: number): Promise<boolean> {
    const index = Math.floor(cluster / this.perBlock);
    if (index >= this.#table.length) {
      await this.#growTable(index);
      return false;
    }
    if (this.#blockOffset(cluster) > 0) return true;
    await this.#addBlock(index);
    return false;
  }

  /** 0: none. Throws `ImageCorruptError`. */
  #blockOffset(cluster: number): number {
    const index = Math.floor(cluster / this.perBlock);
    const offset = this.#table.get(index);
    if (!Number.isNaN(offset)) return offset;
    const why = "points to no place where it may";
    const field = "refcount table entry";
    throw new ImageCorruptError(this.#parts.file.path, { field, at: this.entryOffset(index), why });
  }

  /** Makes the block of `index` at the end of the file; if need be the one that counts that place first. */
  async #addBlock(index: number): Promise<void> {
    const { file, rules, geometry, chaos } = this.#parts;
    if (index >= this.#table.length) return await this.#growTable(index);
    const own = Math.floor(this.#next / this.perBlock);
    if (own !== index && !(await this.#haveBlock(this.#next))) return;
    const cluster = this.#next;
    const offset = cluster * geometry.clusterBytes;
    const bytes = Buffer.alloc(geometry.clusterBytes);
    if (own === index) this.codec.set(viewOf(bytes), cluster % this.perBlock, 1);
    await this.#growTo(cluster + 1);
    this.#next = cluster + 1;
    if (own !== index) await this.#change(cluster, 1, () => 1);
    await file.write(offset, bytes);
    if (!chaos.on("qcow2/block-unsynced")) await file.sync();
    await this.#setEntry(index, offset);
    rules.addTable(offset);
  }

  async #setEntry(index: number, offset: number): Promise<void> {
    const entry = Buffer.alloc(ENTRY_BYTES);
    writeU64BE(viewOf(entry), 0, offset);
    await this.#parts.file.write(this.entryOffset(index), entry);
    this.#table.set(index, offset);
  }

  /** Makes a larger table at the end of the file, with the blocks that count it and all before it. */
  async #growTable(index: number): Promise<void> {
    const { file, rules, geometry, chaos } = this.#parts;
    const { clusterBytes } = geometry;
    const start = this.#next;
    const firstBlock = Math.floor(start / this.perBlock);
    const plan = this.#planTable(index, start);
    const table = this.#table.grown((plan.tableClusters * clusterBytes) / ENTRY_BYTES);
    const end = start + plan.blocks + plan.tableClusters;
    await this.#growTo(end);
    for (let i = 0; i < plan.blocks; i++) {
      const bytes = Buffer.alloc(clusterBytes);
      const blockStart = (firstBlock + i) * this.perBlock;
      const stop = Math.min(end, blockStart + this.perBlock);
      for (let cluster = Math.max(start, blockStart); cluster < stop; cluster++) {
        this.codec.set(viewOf(bytes), cluster - blockStart, 1);
      }
      table.set(firstBlock + i, (start + i) * clusterBytes);
      await file.write((start + i) * clusterBytes, bytes);
    }
    const tableOffset = (start + plan.blocks) * clusterBytes;
    await this.#writeTable(table, tableOffset);
    if (!chaos.on("qcow2/table-unsynced")) await file.sync();
    const old = { first: this.#tableOffset / clusterBytes, count: (this.#table.length * ENTRY_BYTES) / clusterBytes };
    await this.#pointTo(tableOffset, plan.tableClusters);
    this.#next = end;
    this.#table = table;
    this.#tableOffset = tableOffset;
    rules.addFixed({ offset: tableOffset, length: table.length * ENTRY_BYTES });
    for (let i = 0; i < plan.blocks; i++) rules.addTable((start + i) * clusterBytes);
    for (let i = 0; i < old.count; i++) await this.#change(old.first + i, 1, () => 0);
  }

  /** To where the file was grown, and reads as zeroes. */
  async #writeTable(table: TableOffsets, at: number): Promise<void> {
    for (let first = 0; first < table.length; first += WRITTEN_AT_ONCE) {
      const bytes = Buffer.alloc(Math.min(WRITTEN_AT_ONCE, table.length - first) * ENTRY_BYTES);
      for (let i = 0; i < bytes.length / ENTRY_BYTES; i++) {
        const offset = table.get(first + i);
        if (offset > 0) writeU64BE(viewOf(bytes), i * ENTRY_BYTES, offset);
      }
      await this.#parts.file.write(at + first * ENTRY_BYTES, bytes);
    }
  }

  /** How large the table is to be, and how many blocks count it. */
  #planTable(index: number, start: number): { tableClusters: number; blocks: number } {
    const { clusterBytes } = this.#parts.geometry;
    const perCluster = clusterBytes / ENTRY_BYTES;
    const firstBlock = Math.floor(start / this.perBlock);
    let blocks = 1;
    let tableClusters = 1;
    for (let again = true; again; ) {
      const entries = Math.max(index, firstBlock + blocks) + 1;
      tableClusters = Math.max(tableClusters, Math.ceil((entries * 1.5) / perCluster));
      const last = Math.floor((start + blocks + tableClusters - 1) / this.perBlock);
      again = last - firstBlock + 1 > blocks;
      blocks = Math.max(blocks, last - firstBlock + 1);
    }
    if (tableClusters * clusterBytes > QCOW2_REFCOUNT_TABLE_BYTES_MAX) {
      throw new BlockError(
        "no-space",
        `${this.#parts.file.path} cannot be larger: its refcount table would be too large`,
      );
    }
    return { tableClusters, blocks };
  }

  /** Both fields of the header in one write within one sector. */
  async #pointTo(offset: number, clusters: number): Promise<void> {
    const bytes = Buffer.alloc(12);
    writeU64BE(viewOf(bytes), 0, offset);
    bytes.writeUInt32BE(clusters, 8);
    await this.#parts.file.write(QCOW2_REFCOUNT_TABLE_FIELD, bytes);
    await this.#parts.file.sync();
  }

  async #growTo(endCluster: number): Promise<void> {
    await this.#parts.file.grow(endCluster * this.#parts.geometry.clusterBytes);
  }

  /** Counts under one block. Those without a block are 0 and stay so. */
  async #change(first: number, count: number, next: (count: number) => number): Promise<void> {
    const offset = this.#blockOffset(first);
    if (!(offset > 0)) return;
    const { view, bytes, at, skipped } = await this.#read(offset, first % this.perBlock, count);
    for (let i = skipped; i < skipped + count; i++) this.codec.set(view, i, next(this.codec.get(view, i)));
    await this.#parts.file.write(at, bytes);
  }

  /** Whole bytes around the counts; `skipped` counts come before. */
  async #read(block: number, index: number, count: number, memory?: Buffer) {
    const { bits } = this.codec;
    const start = Math.floor((index * bits) / 8);
    const length = Math.ceil(((index + count) * bits) / 8) - start;
    const bytes = memory?.subarray(0, length) ?? Buffer.alloc(length);
    await this.#parts.file.readPadded(block + start, bytes);
    return { bytes, view: viewOf(bytes), at: block + start, skipped: index - (start * 8) / bits };
  }
}

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
