/**
 * Walks the tables of a qcow2 image as they are in the file, counts what refers to each cluster, and compares that with the
 * reference counts: the numbers that `qemu-img check` gives. Nobody may change the tables meanwhile. Three steps for each
 * window of the file: what refers to it; its counts; whether entries that say "nothing else refers to this" are right.
 *
 * With `repair`, counts that are too high are put right ("leaks"), or all of them, and wrong entries cleared ("all").
 */
import { BlockError } from "../../block/error.ts";
import { type CheckHooks, CheckStoppedError } from "../tables/background-check.ts";
import { type BadEntry, type CheckReport, LISTED_ENTRIES_MAX } from "../tables/check-report.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { newScanBuffer, SCAN_BYTES, type ScanPart, scanTable } from "../tables/scan.ts";
import { Turns } from "../tables/turns.ts";
import { decodeEntry, type Entry, QCOW2_ENTRY_BYTES, QCOW2_OFLAG_COPIED_HIGH } from "./entries.ts";
import type { EntryRules } from "./entry-rules.ts";
import { clusterBytesOf, type Qcow2Geometry, type Qcow2Header } from "./header.ts";
import { newCountsBuffer, type Refcounts } from "./refcounts.ts";
import { ReferenceCounts, type ReferenceCountsOptions } from "./reference-counts.ts";
import { withoutFlag } from "./table-offsets.ts";
import { decodeL1Entry, isGoodEntry } from "./tables.ts";

/** Counts that are compared at a time. */
const COMPARED_MAX = 8192;
/** What it takes to find that a table is empty. */
const STEPS_PER_TABLE = 256;
const SECTOR_BYTES = 512;

export interface Qcow2CheckParts extends Partial<CheckHooks> {
  readonly file: ImageFile;
  readonly geometry: Qcow2Geometry;
  readonly header: Qcow2Header;
  readonly rules: EntryRules;
  readonly refcounts: Refcounts;
  readonly repair: "none" | "leaks" | "all";
  /** Clusters with two references become shared ones, as `qemu-img check` does it. Otherwise they are corruption. */
  readonly shareDoubles?: boolean;
  /** What a window's counts may take. */
  readonly counts?: ReferenceCountsOptions;
}

/** Rejects with `CheckStoppedError`, or with `BlockError` when the L1 table cannot be read or a repair not written. */
export async function checkTables(parts: Qcow2CheckParts): Promise<CheckReport> {
  const walk = new Walk(parts);
  return walk.run();
}

/** Looks at an entry, and may change it in `bytes`. True: it was changed. */
type Visit = (view: DataView, at: number, offset: number) => boolean;

class Walk {
  readonly #parts: Qcow2CheckParts;
  readonly #clusterBytes: number;
  readonly #counts: ReferenceCounts;
  readonly #fileClusters: number;
  readonly #totalClusters: number;
  readonly #badEntries: BadEntry[] = [];
  readonly #turns: Turns;
  /** Memory that comes and goes with every table is given back late. */
  readonly #l1Buffer = newScanBuffer();
  readonly #l2Buffer = newScanBuffer();
  /** L2 tables of one part of the L1 table: each one's offset, then its index. */
  readonly #tables = new Float64Array((2 * SCAN_BYTES) / QCOW2_ENTRY_BYTES);
  readonly #countsBuffer = newCountsBuffer(COMPARED_MAX);
  #allocated = 0;
  #compressed = 0;
  #fragmented = 0;
  #corruptions = 0;
  #fixed = 0;
  #leaks = 0;
  #leaksFixed = 0;
  #errors = 0;
  #doubles = 0;
  #highest = 0;
  /** In later passes only references are looked at, the rest having been counted. */
  #first = true;

  constructor(parts: Qcow2CheckParts) {
    const { geometry, file } = parts;
    this.#parts = parts;
    this.#clusterBytes = geometry.clusterBytes;
    this.#fileClusters = Math.ceil(file.sizeBytes / geometry.clusterBytes);
    this.#totalClusters = Math.ceil(geometry.sizeBytes / geometry.clusterBytes);
    this.#counts = new ReferenceCounts(this.#fileClusters, parts.counts);
    this.#turns = new Turns(file);
  }

  async run(): Promise<CheckReport> {
    const { repair, shareDoubles = false } = this.#parts;
    do {
      await this.#countReferences();
      await this.#compare();
      if (this.#doubles === 0 || shareDoubles) await this.#checkCopied();
      this.#first = false;
    } while (this.#counts.nextWindow());
    return {
      totalClusters: this.#totalClusters,
      allocatedClusters: this.#allocated,
      compressedClusters: this.#compressed,
      fragmentedClusters: this.#fragmented,
      leaks: this.#leaks,
      ...(repair !== "none" && { leaksFixed: this.#leaksFixed }),
      corruptions: this.#corruptions + (shareDoubles ? 0 : this.#doubles),
      corruptionsFixed: this.#fixed,
      checkErrors: this.#errors,
      badEntries: this.#badEntries,
      imageEndOffset: (this.#highest + 1) * this.#clusterBytes,
    };
  }

  /** Once more when counts turn out to be larger than was provided for; what is told of the image is told once. */
  async #countReferences(): Promise<void> {
    const [first, doubles] = [this.#first, this.#doubles];
    await this.#markAll();
    while (this.#counts.crowded) {
      this.#counts.widen();
      this.#first = false;
      this.#doubles = doubles;
      await this.#markAll();
    }
    this.#first = first;
  }

  async #markAll(): Promise<void> {
    await this.#markFixed();
    await this.#walkL1();
  }

  /** Header, L1 table, refcount table and its blocks. */
  async #markFixed(): Promise<void> {
    const { geometry, header, refcounts } = this.#parts;
    const { perBlock } = refcounts;
    this.#mark(0, this.#clusterBytes);
    this.#mark(geometry.l1Offset, geometry.l1Bytes);
    this.#mark(header.refcountTableOffset, header.refcountTableClusters * clusterBytesOf(header));
    for (let index = 0; index < refcounts.tableEntries; index++) {
      if (this.#turns.over()) await this.#turns.next();
      const block = refcounts.blockAt(index);
      if (Number.isNaN(block))
        this.#countBad({ field: "refcount table entry", at: refcounts.entryOffset(index), value: 0 });
      if (!(block > 0)) continue;
      this.#mark(block, this.#clusterBytes);
      // What is counted there may be referred to by nothing.
      this.#counts.need(index * perBlock, Math.min((index + 1) * perBlock, this.#fileClusters));
    }
  }

  async #walkL1(): Promise<void> {
    const { geometry, onProgress } = this.#parts;
    await this.#eachL2(async (offset, index) => {
      // What is in a table that something else refers to as well was counted there.
      if (this.#markSingle(offset)) await this.#walkL2(offset);
      if (this.#first) onProgress?.(Math.min((index + 1) * geometry.tableEntries, this.#totalClusters));
    });
    onProgress?.(this.#totalClusters);
  }

  /** Calls `act` for every L2 table, and `visit` for the entries that name them; clears wrong entries of the L1 table. */
  async #eachL2(act: (table: number, index: number) => Promise<void>, visit: Visit = () => false): Promise<void> {
    const { geometry, rules } = this.#parts;
    const { l1Offset, l1Bytes } = geometry;
    if (l1Bytes === 0) return;
    const visitPart = async (part: ScanPart): Promise<void> => {
      let count = 0;
      await this.#eachEntry(part, (view, at, offset) => {
        const value = decodeL1Entry(view, at);
        if (value === 0) return false;
        const table = withoutFlag(value);
        if (!rules.isTable(table)) return this.#clear(view, at, { field: "L1 table entry", at: offset, value: table });
        this.#tables[count] = table;
        this.#tables[count + 1] = (offset - l1Offset) / QCOW2_ENTRY_BYTES;
        count += 2;
        return visit(view, at, table);
      });
      for (let i = 0; i < count; i += 2) {
        if (this.#turns.over(STEPS_PER_TABLE)) await this.#turns.next();
        await act(this.#tables[i] ?? 0, this.#tables[i + 1] ?? 0);
      }
    };
    await scanTable(this.#parts.file, { offset: l1Offset, length: l1Bytes }, visitPart, this.#l1Buffer);
  }

  async #walkL2(table: number): Promise<void> {
    const { geometry, rules } = this.#parts;
    let next = 0;
    await this.#eachL2Entry(table, (view, at, offset, entry) => {
      if (!isGoodEntry(entry, rules, geometry)) {
        const value = "offset" in entry ? entry.offset : 0;
        return this.#clear(view, at, { field: "L2 table entry", at: offset, value });
      }
      if (entry.kind === "compressed") this.#visitCompressed(entry.offset, entry.length);
      else if ("offset" in entry && entry.offset !== 0) {
        if (this.#first) {
          this.#allocated += 1;
          if (next !== 0 && next !== entry.offset) this.#fragmented += 1;
        }
        next = entry.offset + this.#clusterBytes;
        this.#markSingle(entry.offset);
      }
      return false;
    });
  }

  #visitCompressed(offset: number, length: number): void {
    if (this.#first) {
      this.#allocated += 1;
      this.#compressed += 1;
      this.#fragmented += 1;
    }
    const start = offset - (offset % SECTOR_BYTES);
    this.#mark(start, offset + length - start);
  }

  /** Calls `visit` for every entry of an L2 table that is not empty. */
  async #eachL2Entry(
    table: number,
    visit: (view: DataView, at: number, offset: number, entry: Entry) => boolean,
  ): Promise<void> {
    const { file, geometry } = this.#parts;
    // The last cluster of the file need not be whole.
    const there = Math.floor((file.sizeBytes - table) / QCOW2_ENTRY_BYTES) * QCOW2_ENTRY_BYTES;
    try {
      await this.#scan({ offset: table, length: Math.min(this.#clusterBytes, there) }, (part) =>
        this.#eachEntry(part, (view, at, offset) => {
          const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
          return visit(view, at, offset, decodeEntry(high, low, geometry.clusterBits));
        }),
      );
    } catch (error) {
      // One table that cannot be read does not hide the others.
      if (!(error instanceof BlockError) || file.latched) throw error;
      if (this.#first) this.#errors += 1;
    }
  }

  /** The counts of the present window beside the references. */
  async #compare(): Promise<void> {
    const { refcounts } = this.#parts;
    const { perBlock } = refcounts;
    const end = Math.min(this.#counts.end, this.#fileClusters);
    for (let first = this.#counts.first; first < end; ) {
      this.#checkStopped();
      if (this.#turns.over(COMPARED_MAX)) await this.#turns.next();
      const count = Math.min(COMPARED_MAX, perBlock - (first % perBlock), end - first);
      if (!Number.isNaN(refcounts.blockAt(Math.floor(first / perBlock)))) await this.#compareSome(first, count);
      first += count;
    }
  }

  async #compareSome(first: number, count: number): Promise<void> {
    const { refcounts } = this.#parts;
    const counts = await refcounts.counts(first, count, this.#countsBuffer);
    let changed = false;
    for (let i = 0; i < count; i++) {
      const found = counts[i] ?? 0;
      counts[i] = this.#compareOne(first + i, found);
      changed ||= counts[i] !== found;
    }
    if (changed) await refcounts.set(first, counts);
  }

  /** What the count is to be, as far as it is to be repaired. */
  #compareOne(cluster: number, found: number): number {
    const { repair, refcounts } = this.#parts;
    const references = Math.min(this.#counts.get(cluster), refcounts.codec.max);
    if (found > 0 || references > 0) this.#highest = Math.max(this.#highest, cluster);
    if (found === references) return found;
    const leak = found > references;
    const fix = repair === "all" || (repair === "leaks" && leak);
    if (leak && fix) this.#leaksFixed += 1;
    if (leak && !fix) this.#leaks += 1;
    if (!leak && fix) this.#fixed += 1;
    if (!leak && !fix) this.#corruptions += 1;
    if (fix) return references;
    // What follows goes by what the image says.
    this.#counts.set(cluster, found);
    return found;
  }

  /** Entries say whether nothing else refers to their place. */
  async #checkCopied(): Promise<void> {
    const { geometry, rules } = this.#parts;
    const checkL2 = (table: number): Promise<void> =>
      this.#eachL2Entry(table, (view, at, _offset, entry) => {
        const placed = (entry.kind === "data" || entry.kind === "zero") && entry.offset !== 0;
        return placed && isGoodEntry(entry, rules, geometry) && this.#checkFlag(view, at, entry.offset);
      });
    await this.#eachL2(checkL2, (view, at, table) => this.#checkFlag(view, at, table));
  }

  #checkFlag(view: DataView, at: number, place: number): boolean {
    const cluster = place / this.#clusterBytes;
    if (!this.#counts.has(cluster)) return false;
    const high = view.getUint32(at);
    const wanted = this.#counts.get(cluster) === 1;
    if (((high & QCOW2_OFLAG_COPIED_HIGH) !== 0) === wanted) return false;
    if (this.#parts.repair !== "all") {
      this.#corruptions += 1;
      return false;
    }
    this.#fixed += 1;
    view.setUint32(at, (high ^ QCOW2_OFLAG_COPIED_HIGH) >>> 0);
    return true;
  }

  async #scan(range: { offset: number; length: number }, visit: (part: ScanPart) => Promise<void>): Promise<void> {
    await scanTable(this.#parts.file, range, visit, this.#l2Buffer);
  }

  /** Calls `visit` for every entry that is not 0, and writes what it has changed. */
  async #eachEntry({ at, bytes }: ScanPart, visit: Visit): Promise<void> {
    this.#checkStopped();
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let firstChanged = -1;
    let changedEnd = 0;
    for (let i = 0; i + QCOW2_ENTRY_BYTES <= bytes.length; i += QCOW2_ENTRY_BYTES) {
      if (view.getUint32(i) === 0 && view.getUint32(i + 4) === 0) continue;
      if (!visit(view, i, at + i)) continue;
      if (firstChanged === -1) firstChanged = i;
      changedEnd = i + QCOW2_ENTRY_BYTES;
    }
    if (firstChanged !== -1) await this.#parts.file.write(at + firstChanged, bytes.subarray(firstChanged, changedEnd));
  }

  /** A wrong entry; true if it was taken out. */
  #clear(view: DataView, at: number, entry: BadEntry): boolean {
    const fix = this.#parts.repair === "all";
    this.#countBad(entry, fix);
    if (!fix) return false;
    view.setUint32(at, 0);
    view.setUint32(at + 4, 0);
    return true;
  }

  #countBad(entry: BadEntry, fixed = false): void {
    if (!this.#first) return;
    if (fixed) this.#fixed += 1;
    else this.#corruptions += 1;
    if (this.#badEntries.length < LISTED_ENTRIES_MAX) this.#badEntries.push(entry);
  }

  #checkStopped(): void {
    if (this.#parts.stopped?.()) throw new CheckStoppedError("the table check was stopped");
  }

  /** A cluster that should have one reference; false, and counted, if it had one already. */
  #markSingle(offset: number): boolean {
    if (this.#counts.mark(offset / this.#clusterBytes)) return true;
    this.#doubles += 1;
    return false;
  }

  #mark(offset: number, length: number): void {
    const end = Math.min(Math.ceil((offset + length) / this.#clusterBytes), this.#fileClusters);
    for (let cluster = Math.floor(offset / this.#clusterBytes); cluster < end; cluster++) this.#counts.mark(cluster);
  }
}
