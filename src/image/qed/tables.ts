/**
 * The two levels of tables of an open QED image: which cluster is where. The L1 table is held as far as the disk's size
 * needs it (2 MiB at most); L2 tables are cached in slices.
 *
 * An entry is checked once, when it is loaded. In an image that was not closed cleanly a wrong one is what a crash left:
 * it reads as unallocated. In one that was closed cleanly it is corruption: whoever needs it gets `ImageCorruptError`.
 * Either way it is counted. Entries that are held: 0 unallocated, 1 zero cluster, `NaN` corrupt, otherwise an offset.
 */
import type { BadEntry } from "../tables/check-report.ts";
import { LISTED_ENTRIES_MAX } from "../tables/check-report.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import type { ImageFile } from "../tables/image-file.ts";
import type { TableRun } from "../tables/reading.ts";
import { SliceCache } from "../tables/slice-cache.ts";
import { Turns } from "../tables/turns.ts";
import { readU64LE, writeU64LE } from "../tables/u64.ts";
import { EntryRules } from "./entry-rules.ts";
import type { QedGeometry } from "./header.ts";

export const QED_UNALLOCATED = 0;
export const QED_ZERO_CLUSTER = 1;
const ENTRY_BYTES = 8;
const STEPS_PER_LOOKUP = 32;
const SLICE_BYTES_MAX = 16 * 1024;
/** What cached slices may take. */
export const QED_CACHE_BYTES = 32 * 1024 * 1024;

/** A range of the disk of which one thing is true. Nothing is compressed, and zeroes have no place. */
export type Run = TableRun;

export function newRun(): Run {
  return { kind: "unallocated", length: 0, fileOffset: 0, compressedBytes: 0 };
}

export interface QedTablesParts {
  readonly file: ImageFile;
  readonly geometry: QedGeometry;
  /** The image was not closed cleanly. */
  readonly dirty: boolean;
  /** Everything that is allocated lies before this. */
  readonly allocatedEnd: () => number;
  readonly cacheBytes?: number;
}

export class QedTables {
  readonly rules: EntryRules;
  /** Wrong entries that were met, the first of them. */
  readonly badEntries: BadEntry[] = [];
  readonly #parts: QedTablesParts;
  readonly #geometry: QedGeometry;
  readonly #l1: Float64Array;
  readonly #turns: Turns;
  readonly #sliceBytes: number;
  readonly #sliceEntries: number;
  readonly #slices: SliceCache<Float64Array<ArrayBuffer>>;

  private constructor(parts: QedTablesParts) {
    const { geometry, cacheBytes = QED_CACHE_BYTES } = parts;
    this.#parts = parts;
    this.#geometry = geometry;
    this.#turns = new Turns(parts.file);
    this.#l1 = new Float64Array(geometry.l1Entries);
    this.#sliceBytes = Math.min(geometry.tableBytes, SLICE_BYTES_MAX);
    this.#sliceEntries = this.#sliceBytes / ENTRY_BYTES;
    this.rules = new EntryRules(geometry, parts.allocatedEnd);
    this.#slices = new SliceCache({
      slicesMax: Math.max(1, Math.floor(cacheBytes / this.#sliceBytes)),
      load: (key, old) => this.#loadSlice(key, old ?? new Float64Array(this.#sliceEntries)),
      reuse: true,
    });
  }

  /** Reads the L1 table. */
  static async load(parts: QedTablesParts): Promise<QedTables> {
    const tables = new QedTables(parts);
    const { l1Offset } = parts.geometry;
    const raw = await readL1(parts.file, parts.geometry);
    await tables.rules.setL2Tables(raw, new Turns(parts.file));
    const isGood = (value: number): boolean => tables.rules.isL2Table(value);
    tables.#check(raw, tables.#l1, { field: "L1 table entry", at: l1Offset, isGood });
    return tables;
  }

  get cachedBytes(): number {
    return this.#slices.size * this.#sliceBytes;
  }

  /** What `offset` is part of, for at most `length` bytes. False: the table is not cached. Throws `ImageCorruptError`. */
  lookupNow(offset: number, length: number, run: Run): boolean {
    const { clusterBytes, tableEntries, l2Covers } = this.#geometry;
    const l1Index = Math.floor(offset / l2Covers);
    const l2Offset = this.#l1Entry(l1Index);
    if (l2Offset === QED_UNALLOCATED) {
      setRun(run, "unallocated", Math.min(length, (l1Index + 1) * l2Covers - offset));
      return true;
    }
    const cluster = Math.floor(offset / clusterBytes);
    const index = cluster - l1Index * tableEntries;
    const first = index % this.#sliceEntries;
    const slice = this.#slices.peek(l2Offset + (index - first) * ENTRY_BYTES);
    if (slice === undefined) return false;
    const within = offset - cluster * clusterBytes;
    this.#measure(slice, first, { run, within, length, l2Offset: l2Offset + (index - first) * ENTRY_BYTES });
    return true;
  }

  /** As `lookupNow`, loading the table if need be. A request may ask millions of times. */
  async lookup(offset: number, length: number, run: Run): Promise<void> {
    if (this.#turns.over(STEPS_PER_LOOKUP)) await this.#turns.next();
    while (!this.lookupNow(offset, length, run)) {
      const key = this.#sliceOf(offset);
      await this.#slices.pin(key);
      try {
        // While it is pinned, nobody's need of another slice can take it away again.
        if (this.lookupNow(offset, length, run)) return;
      } finally {
        this.#slices.unpin(key);
      }
    }
  }

  /** Whether there is an L2 table for the cluster. */
  hasL2(cluster: number): boolean {
    return this.#l1Entry(this.l1IndexOf(cluster)) !== QED_UNALLOCATED;
  }

  l1IndexOf(cluster: number): number {
    return Math.floor(cluster / this.#geometry.tableEntries);
  }

  /** Puts a new, empty L2 table into the L1 table, in the file first. */
  async addL2(l1Index: number, l2Offset: number): Promise<void> {
    const entry = Buffer.alloc(ENTRY_BYTES);
    writeU64LE(new DataView(entry.buffer, entry.byteOffset, ENTRY_BYTES), 0, l2Offset);
    await this.#parts.file.write(this.#geometry.l1Offset + l1Index * ENTRY_BYTES, entry);
    this.#l1[l1Index] = l2Offset;
    this.rules.addL2Table(l2Offset);
  }

  /**
   * Sets the entries of `count` clusters, in the file first: to consecutive offsets from `fileOffset` on, or all of them
   * to a zero cluster. Their L2 tables must be there.
   */
  async update(cluster: number, count: number, fileOffset: number): Promise<void> {
    const { clusterBytes } = this.#geometry;
    const step = fileOffset === QED_ZERO_CLUSTER ? 0 : clusterBytes;
    for (let done = 0; done < count; ) {
      const first = cluster + done;
      const index = (first % this.#geometry.tableEntries) % this.#sliceEntries;
      const some = Math.min(count - done, this.#sliceEntries - index);
      await this.#updateSlice(first, some, { value: fileOffset + done * step, step });
      done += some;
    }
  }

  async #updateSlice(cluster: number, count: number, { value, step }: { value: number; step: number }): Promise<void> {
    const key = this.#sliceOf(cluster * this.#geometry.clusterBytes);
    const index = (cluster % this.#geometry.tableEntries) % this.#sliceEntries;
    const bytes = Buffer.alloc(count * ENTRY_BYTES);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < count; i++) writeU64LE(view, i * ENTRY_BYTES, value + i * step);
    const slice = await this.#slices.pin(key);
    try {
      await this.#parts.file.write(key + index * ENTRY_BYTES, bytes);
      for (let i = 0; i < count; i++) slice[index + i] = value + i * step;
    } finally {
      this.#slices.unpin(key);
    }
  }

  /** The slice's key: where in the file the entry for `offset` is, rounded down to slices. */
  #sliceOf(offset: number): number {
    const { clusterBytes, tableEntries } = this.#geometry;
    const cluster = Math.floor(offset / clusterBytes);
    const index = cluster % tableEntries;
    return this.#l1Entry(this.l1IndexOf(cluster)) + (index - (index % this.#sliceEntries)) * ENTRY_BYTES;
  }

  #l1Entry(index: number): number {
    const value = this.#l1[index] ?? QED_UNALLOCATED;
    if (Number.isNaN(value)) throw this.#corrupt("L1 table entry", this.#geometry.l1Offset + index * ENTRY_BYTES);
    return value;
  }

  /** As many clusters from entry `first` of the slice on as belong together. */
  #measure(
    slice: Float64Array,
    first: number,
    at: { run: Run; within: number; length: number; l2Offset: number },
  ): void {
    const { clusterBytes } = this.#geometry;
    const value = slice[first] ?? QED_UNALLOCATED;
    if (Number.isNaN(value)) throw this.#corrupt("L2 table entry", at.l2Offset + first * ENTRY_BYTES);
    const step = value > QED_ZERO_CLUSTER ? clusterBytes : 0;
    const wanted = at.within + at.length;
    let covered = clusterBytes;
    for (let i = 1; covered < wanted && first + i < this.#sliceEntries && slice[first + i] === value + i * step; i++) {
      covered += clusterBytes;
    }
    setRun(at.run, kindOf(value), Math.min(covered - at.within, at.length));
    at.run.fileOffset = step === 0 ? 0 : value + at.within;
  }

  /** Into `slice`, whose bytes are first those of the file. */
  async #loadSlice(key: number, slice: Float64Array<ArrayBuffer>): Promise<Float64Array<ArrayBuffer>> {
    const bytes = Buffer.from(slice.buffer);
    await this.#parts.file.read(key, bytes);
    decode(bytes, slice);
    const isGood = (value: number): boolean => value === QED_ZERO_CLUSTER || this.rules.isData(value);
    this.#check(slice, slice, { field: "L2 table entry", at: key, isGood });
    return slice;
  }

  #check(
    raw: Float64Array,
    into: Float64Array,
    { field, at, isGood }: { field: string; at: number; isGood: (value: number) => boolean },
  ): void {
    for (let i = 0; i < raw.length; i++) {
      const value = raw[i] ?? 0;
      if (value === QED_UNALLOCATED || isGood(value)) {
        into[i] = value;
        continue;
      }
      into[i] = this.#parts.dirty ? QED_UNALLOCATED : Number.NaN;
      if (this.badEntries.length < LISTED_ENTRIES_MAX) this.badEntries.push({ field, at: at + i * ENTRY_BYTES, value });
    }
  }

  #corrupt(field: string, at: number): ImageCorruptError {
    const why = "points to no place where it may";
    return new ImageCorruptError(this.#parts.file.path, { field, at, why });
  }
}

/** The entries of the L1 table, as they are in the file; of those that are not needed for the disk's size, none. */
export async function readL1(file: ImageFile, { l1Entries, l1Offset }: QedGeometry): Promise<Float64Array> {
  const l1 = new Float64Array(l1Entries);
  const bytes = Buffer.from(l1.buffer);
  await file.read(l1Offset, bytes);
  decode(bytes, l1);
  return l1;
}

/** Both may be the same memory. */
function decode(bytes: Buffer, into: Float64Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < into.length; i++) into[i] = readU64LE(view, i * ENTRY_BYTES);
}

function kindOf(value: number): Run["kind"] {
  if (value === QED_UNALLOCATED) return "unallocated";
  return value === QED_ZERO_CLUSTER ? "zero" : "data";
}

function setRun(run: Run, kind: Run["kind"], length: number): void {
  run.kind = kind;
  run.length = length;
  run.fileOffset = 0;
}
