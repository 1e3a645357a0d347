/** Where the entries of the tables may point: whole clusters of the file that are neither header nor table. */

import { countBelow, insertAscending } from "../tables/ascending.ts";
import { TablePlaces } from "../tables/table-places.ts";
import type { Turns } from "../tables/turns.ts";
import type { QedGeometry } from "./header.ts";

export class EntryRules {
  readonly #geometry: QedGeometry;
  readonly #allocatedEnd: () => number;
  /** L2 tables that were there. */
  #l2Tables = TablePlaces.none();
  /** Offsets of those that came later, ascending. */
  readonly #newL2Tables: number[] = [];

  /** `allocatedEnd`: where the file's last whole cluster ends. */
  constructor(geometry: QedGeometry, allocatedEnd: () => number) {
    this.#geometry = geometry;
    this.#allocatedEnd = allocatedEnd;
  }

  /** From the entries of the L1 table, those that are wrong left out. */
  async setL2Tables(l1: Float64Array, turns: Turns): Promise<void> {
    const { clusterBytes } = this.#geometry;
    const clusterAt = (index: number): number => {
      const offset = l1[index] ?? 0;
      return offset !== 0 && this.isL2Table(offset) ? offset / clusterBytes : 0;
    };
    const fileClusters = Math.ceil(this.#allocatedEnd() / clusterBytes);
    this.#l2Tables = await TablePlaces.of([{ length: l1.length, clusterAt }], fileClusters, turns);
  }

  addL2Table(offset: number): void {
    insertAscending(this.#newL2Tables, offset);
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
    const { tableBytes, clusterBytes } = this.#geometry;
    if (this.#l2Tables.has(offset / clusterBytes, tableBytes / clusterBytes)) return true;
    const last = this.#newL2Tables[countBelow(this.#newL2Tables, offset + 1) - 1] ?? -Infinity;
    return offset < last + tableBytes;
  }
}
