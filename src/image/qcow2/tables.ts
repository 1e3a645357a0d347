/**
 * The two levels of tables of an open qcow2 image: which cluster is where. The L1 table is held as far as the disk's size
 * needs it (16 MiB at most, unless the file is huge); L2 tables are cached in slices.
 *
 * An entry is checked once, when it is loaded. In an image that was not closed cleanly a wrong one is what a crash left:
 * it reads as unallocated. In one that was closed cleanly it is corruption: whoever needs it gets `ImageCorruptError`.
 */
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import type { ImageFile } from "../tables/image-file.ts";
import type { TableRun } from "../tables/reading.ts";
import { SliceCache } from "../tables/slice-cache.ts";
import { Turns } from "../tables/turns.ts";
import { u64FromHalves } from "../tables/u64.ts";
import { CORRUPT_HIGH, decodeEntry, type Entry, QCOW2_ENTRY_BYTES, standardEntry } from "./entries.ts";
import type { EntryRules } from "./entry-rules.ts";
import type { Qcow2Geometry } from "./header.ts";
import { readTable } from "./read-table.ts";
import { TableOffsets, withoutFlag } from "./table-offsets.ts";

const SLICE_BYTES_MAX = 16 * 1024;
/** What a slice takes besides its entries. */
const SLICE_OVERHEAD_BYTES = 512;
/** What cached slices may take. */
export const QCOW2_CACHE_BYTES = 32 * 1024 * 1024;
/** What they may take together with the L1 table; but they have a part of theirs in any case. */
const HELD_BYTES_MAX = 36 * 1024 * 1024;
const CACHE_SHARE_MIN = 16;
/** In `#l1`: something else may refer to the table as well. Its offset is a multiple of 512. */
const SHARED = 1;
const STEPS_PER_LOOKUP = 32;
const HALF_FLAGS = 0xff00_0000;

/** A range of the disk of which one thing is true. */
export interface Run extends TableRun {
  /** Nothing else refers to that place. */
  copied: boolean;
}

export function newRun(): Run {
  return { kind: "unallocated", length: 0, fileOffset: 0, copied: false, compressedBytes: 0 };
}

/** What the entries of some clusters become: with `zero` they read as zeroes; offset 0: without a place of their own. */
export interface EntryChange {
  /** Of the first cluster. */
  readonly offset: number;
  readonly zero: boolean;
}

export interface Qcow2TablesParts {
  readonly file: ImageFile;
  readonly geometry: Qcow2Geometry;
  readonly rules: EntryRules;
  /** The image was not closed cleanly. */
  readonly dirty: boolean;
  readonly cacheBytes?: number | undefined;
}

export class Qcow2Tables {
  readonly #parts: Qcow2TablesParts;
  readonly #geometry: Qcow2Geometry;
  /** 0: none; NaN: wrong; otherwise the table's offset, plus `SHARED`. */
  readonly #l1: TableOffsets;
  readonly #turns: Turns;
  readonly #sliceBytes: number;
  readonly #sliceEntries: number;
  /** Two words for each entry, the upper one first. */
  readonly #slices: SliceCache<Uint32Array<ArrayBuffer>>;

  private constructor(parts: Qcow2TablesParts, l1: TableOffsets) {
    const { geometry, cacheBytes = QCOW2_CACHE_BYTES } = parts;
    this.#parts = parts;
    this.#geometry = geometry;
    this.#turns = new Turns(parts.file);
    this.#l1 = l1;
    this.#sliceBytes = Math.min(geometry.clusterBytes, SLICE_BYTES_MAX);
    this.#sliceEntries = this.#sliceBytes / QCOW2_ENTRY_BYTES;
    const left = Math.min(cacheBytes, HELD_BYTES_MAX - l1.heldBytes - parts.rules.heldBytes);
    const slicesBytes = Math.max(cacheBytes / CACHE_SHARE_MIN, left);
    this.#slices = new SliceCache({
      slicesMax: Math.max(1, Math.floor(slicesBytes / (this.#sliceBytes + SLICE_OVERHEAD_BYTES))),
      load: (key, old) => this.#loadSlice(key, old ?? new Uint32Array(2 * this.#sliceEntries)),
      reuse: true,
    });
  }

  /** Reads the L1 table; with `blocks`, those of the reference counts, tells `rules` where tables are. */
  static async load(parts: Qcow2TablesParts, blocks?: TableOffsets): Promise<Qcow2Tables> {
    const { file, geometry, rules, dirty } = parts;
    const { l1Offset: offset, l1Entries: count, clusterBytes } = geometry;
    const l1 = new TableOffsets(count, clusterBytes);
    await readTable(file, { offset, count }, (view, at, index) => {
      const value = decodeL1Entry(view, at);
      if (value === 0) return;
      if (rules.isTable(withoutFlag(value))) l1.set(index, value);
      else if (!dirty) l1.set(index, Number.NaN);
    });
    await rules.setTables(blocks === undefined ? [l1] : [blocks, l1], new Turns(file));
    return new Qcow2Tables(parts, l1);
  }

  /** What the L1 table takes. */
  get heldBytes(): number {
    return this.#l1.heldBytes;
  }

  get cachedBytes(): number {
    return this.#slices.size * this.#sliceBytes;
  }

  /** What `offset` is part of, for at most `length` bytes. False: the table is not cached. Throws `ImageCorruptError`. */
  lookupNow(offset: number, length: number, run: Run): boolean {
    const { clusterBytes, tableEntries, l2Covers } = this.#geometry;
    const l1Index = Math.floor(offset / l2Covers);
    const l2Offset = this.#l2Offset(l1Index);
    if (l2Offset === 0) {
      setRun(run, { kind: "unallocated" }, Math.min(length, (l1Index + 1) * l2Covers - offset));
      return true;
    }
    const cluster = Math.floor(offset / clusterBytes);
    const index = cluster - l1Index * tableEntries;
    const first = index % this.#sliceEntries;
    const key = l2Offset + (index - first) * QCOW2_ENTRY_BYTES;
    const slice = this.#slices.peek(key);
    if (slice === undefined) return false;
    this.#measure(slice, first, { run, within: offset - cluster * clusterBytes, length, key });
    return true;
  }

  /** As `lookupNow`, loading the table if need be. A request may ask millions of times. */
  async lookup(offset: number, length: number, run: Run): Promise<void> {
    if (this.#turns.over(STEPS_PER_LOOKUP)) await this.#turns.next();
    while (!this.lookupNow(offset, length, run)) {
      const key = this.#sliceOf(Math.floor(offset / this.#geometry.clusterBytes));
      await this.#slices.pin(key);
      try {
        // While it is pinned, nobody's need of another slice can take it away again.
        if (this.lookupNow(offset, length, run)) return;
      } finally {
        this.#slices.unpin(key);
      }
    }
  }

  /** Whether there is an L2 table for the cluster. Throws `ImageCorruptError` if there is one that cannot be changed. */
  hasL2(cluster: number): boolean {
    const index = this.l1IndexOf(cluster);
    const offset = this.#l2Offset(index);
    if (offset === 0 || this.#l1.get(index) === offset) return offset !== 0;
    const why = "is not marked as the only one of its table, and there are no snapshots";
    throw new ImageCorruptError(this.#parts.file.path, { field: "L1 table entry", at: this.#l1At(index), why });
  }

  l1IndexOf(cluster: number): number {
    return Math.floor(cluster / this.#geometry.tableEntries);
  }

  /** Puts a new, empty L2 table into the L1 table, in the file first. */
  async addL2(l1Index: number, l2Offset: number): Promise<void> {
    const { file, rules } = this.#parts;
    await file.write(this.#l1At(l1Index), encode([standardEntry(l2Offset, false)]));
    this.#l1.set(l1Index, l2Offset);
    rules.addTable(l2Offset);
  }

  /** Sets the entries of `count` clusters, in the file first. Their L2 tables must be there. */
  async update(cluster: number, count: number, { offset, zero }: EntryChange): Promise<void> {
    const step = offset === 0 ? 0 : this.#geometry.clusterBytes;
    for (let done = 0; done < count; ) {
      const first = cluster + done;
      const index = (first % this.#geometry.tableEntries) % this.#sliceEntries;
      const some = Math.min(count - done, this.#sliceEntries - index);
      const entries = Array.from({ length: some }, (_, i) => standardEntry(offset + (done + i) * step, zero));
      await this.#updateSlice(first, entries);
      done += some;
    }
  }

  async #updateSlice(cluster: number, entries: readonly { high: number; low: number }[]): Promise<void> {
    const key = this.#sliceOf(cluster);
    const index = (cluster % this.#geometry.tableEntries) % this.#sliceEntries;
    const slice = await this.#slices.pin(key);
    try {
      await this.#parts.file.write(key + index * QCOW2_ENTRY_BYTES, encode(entries));
      for (const [i, { high, low }] of entries.entries()) {
        slice[2 * (index + i)] = high;
        slice[2 * (index + i) + 1] = low;
      }
    } finally {
      this.#slices.unpin(key);
    }
  }

  /** The slice's key: where in the file the cluster's entry is, rounded down to slices. */
  #sliceOf(cluster: number): number {
    const index = cluster % this.#geometry.tableEntries;
    return this.#l2Offset(this.l1IndexOf(cluster)) + (index - (index % this.#sliceEntries)) * QCOW2_ENTRY_BYTES;
  }

  #l1At(index: number): number {
    return this.#geometry.l1Offset + index * QCOW2_ENTRY_BYTES;
  }

  #l2Offset(l1Index: number): number {
    const value = this.#l1.get(l1Index);
    if (Number.isNaN(value)) throw this.#corrupt("L1 table entry", this.#l1At(l1Index));
    return withoutFlag(value);
  }

  /** As many clusters from entry `first` of the slice on as belong together. */
  #measure(
    slice: Uint32Array,
    first: number,
    { run, within, length, key }: { run: Run; within: number; length: number; key: number },
  ): void {
    const { clusterBytes, clusterBits } = this.#geometry;
    const [high = 0, low = 0] = [slice[2 * first], slice[2 * first + 1]];
    const entry = decodeEntry(high, low, clusterBits);
    if (entry.kind === "corrupt") throw this.#corrupt("L2 table entry", key + first * QCOW2_ENTRY_BYTES);
    const wanted = within + length;
    let covered = clusterBytes;
    if (entry.kind !== "compressed") {
      const step = entry.kind === "unallocated" || entry.offset === 0 ? 0 : clusterBytes;
      for (let i = first + 1; covered < wanted && i < this.#sliceEntries; i++) {
        const value = u64FromHalves(low, high & ~HALF_FLAGS) + (i - first) * step;
        const [nextHigh = 0, nextLow = 0] = [slice[2 * i], slice[2 * i + 1]];
        if (((nextHigh ^ high) & HALF_FLAGS) !== 0 || u64FromHalves(nextLow, nextHigh & ~HALF_FLAGS) !== value) break;
        covered += clusterBytes;
      }
    }
    setRun(run, entry, Math.min(covered - within, length));
    if (run.fileOffset !== 0 && entry.kind !== "compressed") run.fileOffset += within;
  }

  /** Into `slice`, whose bytes are first those of the file. */
  async #loadSlice(key: number, slice: Uint32Array<ArrayBuffer>): Promise<Uint32Array<ArrayBuffer>> {
    await this.#parts.file.readPadded(key, new Uint8Array(slice.buffer));
    const view = new DataView(slice.buffer);
    for (let i = 0; i < slice.length; i += 2) {
      const [high, low] = [view.getUint32(4 * i), view.getUint32(4 * i + 4)];
      const isGood = (high === 0 && low === 0) || this.#isGood(decodeEntry(high, low, this.#geometry.clusterBits));
      slice[i] = isGood ? high : this.#parts.dirty ? 0 : CORRUPT_HIGH;
      slice[i + 1] = isGood ? low : 0;
    }
    return slice;
  }

  #isGood(entry: Entry): boolean {
    return isGoodEntry(entry, this.#parts.rules, this.#geometry);
  }

  #corrupt(field: string, at: number): ImageCorruptError {
    const why = "points to no place where it may";
    return new ImageCorruptError(this.#parts.file.path, { field, at, why });
  }
}

/** Whether an entry may be in an L2 table of such an image. */
export function isGoodEntry(entry: Entry, rules: EntryRules, { version }: Qcow2Geometry): boolean {
  switch (entry.kind) {
    case "unallocated":
      return true;
    case "corrupt":
      return false;
    case "compressed":
      return rules.isCompressed(entry.offset);
    case "zero":
      return version >= 3 && (entry.offset === 0 || rules.isData(entry.offset));
    case "data":
      return rules.isData(entry.offset);
  }
}

/** 0: no table. Otherwise its offset, plus `SHARED` unless the entry is marked as the only one; 2: reserved bits are set. */
export function decodeL1Entry(view: DataView, at: number): number {
  const high = view.getUint32(at);
  const low = view.getUint32(at + 4);
  if ((high | low) === 0) return 0;
  if ((high & 0x7f00_0000) !== 0 || (low & 0x1ff) !== 0) return 2;
  const place = u64FromHalves(low, high & 0x00ff_ffff);
  if (place === 0 || place === Infinity) return 2;
  return place + ((high & 0x8000_0000) === 0 ? SHARED : 0);
}

function encode(entries: readonly { high: number; low: number }[]): Buffer {
  const bytes = Buffer.alloc(entries.length * QCOW2_ENTRY_BYTES);
  for (const [i, { high, low }] of entries.entries()) {
    bytes.writeUInt32BE(high, i * QCOW2_ENTRY_BYTES);
    bytes.writeUInt32BE(low, i * QCOW2_ENTRY_BYTES + 4);
  }
  return bytes;
}

function setRun(run: Run, entry: Entry, length: number): void {
  run.length = length;
  run.fileOffset = 0;
  run.copied = false;
  run.compressedBytes = 0;
  if (entry.kind === "corrupt") return;
  run.kind = entry.kind;
  if (entry.kind === "unallocated") return;
  run.fileOffset = entry.offset;
  if (entry.kind === "compressed") run.compressedBytes = entry.length;
  else run.copied = entry.copied;
}
