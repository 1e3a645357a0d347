/** Where the entries of the tables may point: clusters of the file that are neither header nor table. */

import { insertAscending, isIn } from "../tables/ascending.ts";
import { TablePlaces } from "../tables/table-places.ts";
import type { Turns } from "../tables/turns.ts";
import type { Qcow2Geometry } from "./header.ts";
import type { TableOffsets } from "./table-offsets.ts";

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
  /** L2 tables and refcount blocks that were there. */
  #tables = TablePlaces.none();
  /** Offsets of those that came later, ascending. */
  readonly #newTables: number[] = [];

  /** `fileEnd`: where the file ends now. Its last cluster need not be whole. */
  constructor(geometry: Qcow2Geometry, fixed: readonly Region[], fileEnd: () => number) {
    const { l1Offset, l1Bytes } = geometry;
    this.#geometry = geometry;
    this.#fileEnd = fileEnd;
    this.#fixed = [{ offset: l1Offset, length: l1Bytes }, ...fixed];
  }

  /** Where tables are that were there: those that these tables name. */
  async setTables(named: readonly TableOffsets[], turns: Turns): Promise<void> {
    this.#tables = await TablePlaces.of(named, Math.ceil(this.#fileEnd() / this.#geometry.clusterBytes), turns);
  }

  get heldBytes(): number {
    return this.#tables.heldBytes;
  }

  addTable(offset: number): void {
    insertAscending(this.#newTables, offset);
  }

  /** The refcount table has moved. */
  addFixed(region: Region): void {
    this.#fixed.push(region);
  }

  /** Of L2 tables and refcount blocks. */
  isTable(offset: number): boolean {
    const { clusterBytes } = this.#geometry;
    if (!(offset >= clusterBytes && offset < this.#fileEnd())) return false;
    // Of numbers beyond 32 bits, a remainder takes longer than all else here.
    if (Math.floor(offset / clusterBytes) * clusterBytes !== offset) return false;
    for (const region of this.#fixed) {
      if (offset + clusterBytes > region.offset && offset < region.offset + region.length) return false;
    }
    return true;
  }

  isData(offset: number): boolean {
    if (!this.isTable(offset)) return false;
    return !this.#tables.has(offset / this.#geometry.clusterBytes) && !isIn(this.#newTables, offset);
  }

  /** The first of the sectors must be there; what lies behind the end of the file reads as zeroes. */
  isCompressed(offset: number): boolean {
    return offset >= this.#geometry.clusterBytes && offset < this.#fileEnd();
  }
}
