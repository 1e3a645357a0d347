/** Where the entries of the tables may point: clusters of the file that are neither header nor table. */
import type { Qcow2Geometry } from "./header.ts";
import type { L1Table } from "./l1-table.ts";

/** A part of the file that is no data, in bytes. */
export interface Region {
  readonly offset: number;
  readonly length: number;
}

/** Their numbers take four bytes each. */
const CLUSTERS_SHORT = 2 ** 32;

export class EntryRules {
  readonly #geometry: Qcow2Geometry;
  readonly #fileEnd: () => number;
  /** Besides the header: L1 table, refcount table, snapshot table. */
  readonly #fixed: Region[];
  /** L2 tables and refcount blocks that were there, as clusters of the file, ascending. There may be millions. */
  #tables: Uint32Array | Float64Array = new Uint32Array(0);
  /** Offsets of those that came later, ascending. */
  #newTables: number[] = [];

  /** `fileEnd`: where the file ends now. Its last cluster need not be whole. */
  constructor(geometry: Qcow2Geometry, fixed: readonly Region[], fileEnd: () => number) {
    const { l1Offset, l1Bytes } = geometry;
    this.#geometry = geometry;
    this.#fileEnd = fileEnd;
    this.#fixed = [{ offset: l1Offset, length: l1Bytes }, ...fixed];
  }

  /** Where tables are, by offset. What is not more than 0 stands for none. */
  setTables(blocks: Float64Array, l1: L1Table): void {
    const { clusterBytes } = this.#geometry;
    const offsetAt = (index: number): number =>
      index < blocks.length ? (blocks[index] ?? 0) : l1.get(index - blocks.length);
    const length = blocks.length + l1.length;
    let count = 0;
    for (let index = 0; index < length; index++) if (offsetAt(index) > 0) count += 1;
    const large = this.#fileEnd() > CLUSTERS_SHORT * clusterBytes;
    const clusters = large ? new Float64Array(count) : new Uint32Array(count);
    let next = 0;
    let ascending = true;
    for (let index = 0; index < length; index++) {
      const offset = offsetAt(index);
      if (!(offset > 0)) continue;
      // A flag below it does not matter.
      const cluster = Math.floor(offset / clusterBytes);
      ascending &&= next === 0 || (clusters[next - 1] ?? 0) <= cluster;
      clusters[next++] = cluster;
    }
    this.#tables = ascending ? clusters : clusters.sort();
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
    for (const region of this.#fixed) {
      if (offset + clusterBytes > region.offset && offset < region.offset + region.length) return false;
    }
    return true;
  }

  isData(offset: number): boolean {
    if (!this.isTable(offset)) return false;
    return !isIn(this.#tables, offset / this.#geometry.clusterBytes) && !isIn(this.#newTables, offset);
  }

  /** The first of the sectors must be there; what lies behind the end of the file reads as zeroes. */
  isCompressed(offset: number): boolean {
    return offset >= this.#geometry.clusterBytes && offset < this.#fileEnd();
  }
}

function isIn(ascending: ArrayLike<number>, wanted: number): boolean {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ascending[middle] ?? Infinity) < wanted) low = middle + 1;
    else high = middle;
  }
  return low < ascending.length && ascending[low] === wanted;
}
