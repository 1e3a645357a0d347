/** Where the entries of the tables may point: whole clusters of the file that are neither header nor table. */
import type { QedGeometry } from "./header.ts";

export class EntryRules {
  readonly #geometry: QedGeometry;
  readonly #allocatedEnd: () => number;
  /** Offsets of the L2 tables, ascending: those that were there, and those that came later. */
  #l2Tables: Float64Array = new Float64Array(0);
  #newL2Tables: number[] = [];

  /** `allocatedEnd`: where the file's last whole cluster ends. */
  constructor(geometry: QedGeometry, allocatedEnd: () => number) {
    this.#geometry = geometry;
    this.#allocatedEnd = allocatedEnd;
  }

  /** From the entries of the L1 table, those that are wrong left out. */
  setL2Tables(l1: Float64Array): void {
    let count = 0;
    const tables = new Float64Array(l1.length);
    for (const entry of l1) if (entry !== 0 && this.isL2Table(entry)) tables[count++] = entry;
    // By their values, and without taking memory for each comparison: there may be many.
    this.#l2Tables = tables.slice(0, count).sort();
    this.#newL2Tables = [];
  }

  /** A new one, as a rule behind all others. */
  addL2Table(offset: number): void {
    const last = this.#newL2Tables.at(-1) ?? 0;
    this.#newL2Tables.push(offset);
    if (offset < last) this.#newL2Tables.sort((a, b) => a - b);
  }

  isL2Table(offset: number): boolean {
    return this.#isFree(offset, this.#geometry.tableBytes);
  }

  isData(offset: number): boolean {
    return this.#isFree(offset, this.#geometry.clusterBytes) && !this.#isInL2Table(offset);
  }

  #isFree(offset: number, length: number): boolean {
    const { clusterBytes, headerEnd, l1Offset, tableBytes } = this.#geometry;
    if (!(offset >= headerEnd && offset + length <= this.#allocatedEnd())) return false;
    if (offset % clusterBytes !== 0) return false;
    return offset + length <= l1Offset || offset >= l1Offset + tableBytes;
  }

  #isInL2Table(offset: number): boolean {
    const { tableBytes } = this.#geometry;
    return (
      offset < lastUpTo(this.#l2Tables, offset) + tableBytes ||
      offset < lastUpTo(this.#newL2Tables, offset) + tableBytes
    );
  }
}

/** The last that is not behind `offset`; if there is none, none that matters. */
function lastUpTo(ascending: ArrayLike<number>, offset: number): number {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ascending[middle] ?? Infinity) <= offset) low = middle + 1;
    else high = middle;
  }
  return ascending[low - 1] ?? -Infinity;
}
