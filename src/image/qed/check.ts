/**
 * Walks the tables of a QED image as they are in the file: wrong entries, clusters that several entries refer to, space
 * that nothing refers to, and the numbers that `qemu-img check` gives. Nobody may change the tables meanwhile.
 *
 * With `repair`, wrong entries are cleared. A cluster with several references cannot be repaired: nobody knows whose it
 * is. Lost space is counted and left alone.
 *
 * Where the file needs several windows of references, an L2 table that overlaps another one is noticed in one of the
 * passes only, and walked in the others: the counts are then those of tables that are wrong anyway.
 */
import { BlockError } from "../../block/error.ts";
import { type CheckHooks, CheckStoppedError } from "../tables/background-check.ts";
import { type BadEntry, type CheckReport, LISTED_ENTRIES_MAX } from "../tables/check-report.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { References } from "../tables/references.ts";
import { newScanBuffer, SCAN_BYTES, type ScanPart, scanTable } from "../tables/scan.ts";
import { Turns } from "../tables/turns.ts";
import { readU64LE } from "../tables/u64.ts";
import type { EntryRules } from "./entry-rules.ts";
import type { QedGeometry } from "./header.ts";
import { QED_UNALLOCATED, QED_ZERO_CLUSTER } from "./tables.ts";

const ENTRY_BYTES = 8;
/** What it takes to find that a table is empty. */
const STEPS_PER_TABLE = 256;

export interface QedCheckParts extends Partial<CheckHooks> {
  readonly file: ImageFile;
  readonly geometry: QedGeometry;
  readonly rules: EntryRules;
  readonly repair: boolean;
  /** A mutant: wrong entries are counted and stay. */
  readonly leaveEntries?: boolean;
  /** For tests: fewer clusters at a time. */
  readonly windowClusters?: number;
}

/** Rejects with `CheckStoppedError`, or with `BlockError` when the L1 table cannot be read or a repair not written. */
export async function checkTables(parts: QedCheckParts): Promise<CheckReport> {
  const walk = new Walk(parts);
  return walk.run();
}

class Walk {
  readonly #parts: QedCheckParts;
  readonly #references: References;
  readonly #fileClusters: number;
  readonly #badEntries: BadEntry[] = [];
  readonly #turns: Turns;
  /** Memory that comes and goes with every table is given back late. */
  readonly #l1Buffer = newScanBuffer();
  readonly #l2Buffer = newScanBuffer();
  /** L2 tables of one part of the L1 table: each one's offset, then its index. */
  readonly #tables = new Float64Array((2 * SCAN_BYTES) / ENTRY_BYTES);
  readonly #totalClusters: number;
  #allocated = 0;
  #fragmented = 0;
  #corruptions = 0;
  #fixed = 0;
  #errors = 0;
  /** In later passes only references are looked at, the rest having been counted. */
  #first = true;

  constructor(parts: QedCheckParts) {
    const { clusterBytes, sizeBytes } = parts.geometry;
    this.#parts = parts;
    this.#fileClusters = Math.floor(parts.file.sizeBytes / clusterBytes);
    this.#totalClusters = Math.ceil(sizeBytes / clusterBytes);
    this.#turns = new Turns(parts.file);
    this.#references = new References(this.#fileClusters, parts.windowClusters);
  }

  async run(): Promise<CheckReport> {
    const { geometry } = this.#parts;
    do {
      await this.#walkL1();
      this.#first = false;
    } while (this.#references.nextWindow());
    const headerClusters = geometry.headerEnd / geometry.clusterBytes;
    return {
      totalClusters: this.#totalClusters,
      allocatedClusters: this.#allocated,
      fragmentedClusters: this.#fragmented,
      leaks: this.#fileClusters - headerClusters - this.#references.used,
      corruptions: this.#corruptions,
      corruptionsFixed: this.#fixed,
      checkErrors: this.#errors,
      badEntries: this.#badEntries,
    };
  }

  async #walkL1(): Promise<void> {
    const { geometry, rules, onProgress } = this.#parts;
    const { l1Offset, tableBytes, tableEntries } = geometry;
    this.#markAll(l1Offset, tableBytes);
    const visit = async (part: ScanPart): Promise<void> => {
      let count = 0;
      await this.#eachEntry(part, "L1 table entry", (value, at) => {
        if (!rules.isL2Table(value)) return false;
        this.#tables[count] = value;
        this.#tables[count + 1] = (at - l1Offset) / ENTRY_BYTES;
        count += 2;
        return true;
      });
      for (let i = 0; i < count; i += 2) {
        if (this.#turns.over(STEPS_PER_TABLE)) await this.#turns.next();
        const [offset = 0, index = 0] = [this.#tables[i], this.#tables[i + 1]];
        // What is in a table that overlaps another one means nothing.
        if (this.#markAll(offset, tableBytes)) await this.#walkL2(offset);
        if (this.#first) onProgress?.(Math.min((index + 1) * tableEntries, this.#totalClusters));
      }
    };
    await scanTable(this.#parts.file, { offset: l1Offset, length: tableBytes }, visit, this.#l1Buffer);
    onProgress?.(this.#totalClusters);
  }

  async #walkL2(offset: number): Promise<void> {
    const { geometry, rules } = this.#parts;
    const { clusterBytes, tableBytes } = geometry;
    let last = 0;
    const visit = (value: number): boolean => {
      if (value === QED_ZERO_CLUSTER) return true;
      if (this.#first) {
        this.#allocated += 1;
        if (last !== 0 && last + clusterBytes !== value) this.#fragmented += 1;
      }
      last = value;
      if (!rules.isData(value)) return false;
      this.#markAll(value, clusterBytes);
      return true;
    };
    try {
      const visitPart = (part: ScanPart): Promise<void> => this.#eachEntry(part, "L2 table entry", visit);
      await scanTable(this.#parts.file, { offset, length: tableBytes }, visitPart, this.#l2Buffer);
    } catch (error) {
      // One table that cannot be read does not hide the others.
      if (!(error instanceof BlockError) || this.#parts.file.latched) throw error;
      if (this.#first) this.#errors += 1;
    }
  }

  /** Calls `isGood` for every entry in use, and deals with those that are not. */
  async #eachEntry(
    { at, bytes }: ScanPart,
    field: string,
    isGood: (value: number, at: number) => boolean,
  ): Promise<void> {
    if (this.#parts.stopped?.()) throw new CheckStoppedError("the table check was stopped");
    const { repair, file, leaveEntries = false } = this.#parts;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let firstBad = -1;
    let badEnd = 0;
    for (let i = 0; i + ENTRY_BYTES <= bytes.length; i += ENTRY_BYTES) {
      const value = readU64LE(view, i);
      if (value === QED_UNALLOCATED || isGood(value, at + i)) continue;
      this.#countBad({ field, at: at + i, value });
      bytes.fill(0, i, i + ENTRY_BYTES);
      if (firstBad === -1) firstBad = i;
      badEnd = i + ENTRY_BYTES;
    }
    if (repair && firstBad !== -1 && !leaveEntries) await file.write(at + firstBad, bytes.subarray(firstBad, badEnd));
  }

  #countBad(entry: BadEntry): void {
    if (!this.#first) return;
    if (this.#parts.repair) this.#fixed += 1;
    else this.#corruptions += 1;
    if (this.#badEntries.length < LISTED_ENTRIES_MAX) this.#badEntries.push(entry);
  }

  /** False, and counted, when one of the clusters was referred to before. */
  #markAll(offset: number, length: number): boolean {
    const { clusterBytes } = this.#parts.geometry;
    let fresh = true;
    for (let at = offset; at < offset + length; at += clusterBytes) {
      if (!this.#references.mark(at / clusterBytes)) fresh = false;
    }
    if (!fresh) this.#corruptions += 1;
    return fresh;
  }
}
