/** Where the entries of the tables may point: clusters of the file that are neither header nor table. */
import type { Qcow2Geometry } from "./header.ts";

/** A part of the file that is no data, in bytes. */
export interface Region {
  readonly offset: number;
  readonly length: number;
}

export class EntryRules {
  readonly #geometry: Qcow2Geometry;
  readonly #fileEnd: () => number;
  /** Besides the header: L1 table, refcount table, snapshot table. */
  readonly #fixed: Region[];
  /** Offsets of L2 tables and refcount blocks, ascending: those that were there, and those that came later. */
  #tables: Float64Array = new Float64Array(0);
  #newTables: number[] = [];

  /** `fileEnd`: where the file ends now. Its last cluster need not be whole. */
  constructor(geometry: Qcow2Geometry, fixed: readonly Region[], fileEnd: () => number) {
    const { l1Offset, l1Bytes } = geometry;
    this.#geometry = geometry;
    this.#fileEnd = fileEnd;
    this.#fixed = [{ offset: l1Offset, length: l1Bytes }, ...fixed];
  }

  /** Those that are wrong are left out. */
  setTables(offsets: Float64Array): void {
    this.#tables = offsets.filter((offset) => this.isTable(offset)).sort();
    this.#newTables = [];
  }

  addTable(offset: number): void {
    this.#newTables.push(offset);
    if (offset < (this.#newTables.at(-2) ?? 0)) this.#newTables.sort((a, b) => a - b);
  }

  /** The refcount table has moved. */
  addFixed(region: Region): void {
    this.#fixed.push(region);
  }

  /** Of L2 tables and refcount blocks. */
  isTable(offset: number): boolean {
    const { clusterBytes } = this.#geometry;
    if (!(offset >= clusterBytes && offset < this.#fileEnd()) || offset % clusterBytes !== 0) return false;
    return !this.#fixed.some(
      (region) => offset + clusterBytes > region.offset && offset < region.offset + region.length,
    );
  }

  isData(offset: number): boolean {
    return this.isTable(offset) && !isIn(this.#tables, offset) && !isIn(this.#newTables, offset);
  }

  /** The first of the sectors must be there; what lies behind the end of the file reads as zeroes. */
  isCompressed(offset: number): boolean {
    return offset >= this.#geometry.clusterBytes && offset < this.#fileEnd();
  }
}

function isIn(ascending: ArrayLike<number>, offset: number): boolean {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ascending[middle] ?? Infinity) < offset) low = middle + 1;
    else high = middle;
  }
  return low < ascending.length && ascending[low] === offset;
}
