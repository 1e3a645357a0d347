/** Where the entries of the tables may point: whole clusters of the file that are neither header nor table. */
import type { QedGeometry } from "./header.ts";

export class EntryRules {
  readonly #geometry: QedGeometry;
  readonly #allocatedEnd: () => number;
  /** Offsets of the L2 tables, ascending. */
  #l2Tables: number[] = [];

  /** `allocatedEnd`: where the file's last whole cluster ends. */
  constructor(geometry: QedGeometry, allocatedEnd: () => number) {
    this.#geometry = geometry;
    this.#allocatedEnd = allocatedEnd;
  }

  /** From the entries of the L1 table, those that are wrong left out. */
  setL2Tables(l1: Float64Array): void {
    this.#l2Tables = [...l1.filter((entry) => entry !== 0 && this.isL2Table(entry))].sort((a, b) => a - b);
  }

  /** A new one, behind all others. */
  addL2Table(offset: number): void {
    const last = this.#l2Tables.at(-1) ?? 0;
    this.#l2Tables.push(offset);
    if (offset < last) this.#l2Tables.sort((a, b) => a - b);
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
    const tables = this.#l2Tables;
    let low = 0;
    let high = tables.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((tables[middle] ?? Infinity) <= offset) low = middle + 1;
      else high = middle;
    }
    return low > 0 && offset < (tables[low - 1] ?? 0) + this.#geometry.tableBytes;
  }
}
