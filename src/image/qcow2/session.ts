/**
 * An open qcow2 image from the time its tables were first needed until they are dropped: what readers and writers share.
 * Begun by reading the header anew; nothing is written until something is to be written.
 */
import type { BlockDevice } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import type { Chaos } from "../../env/chaos.ts";
import type { Clock } from "../../env/clock.ts";
import { RangeLock } from "../../util/range-lock.ts";
import { BackgroundCheck, type CheckHooks } from "../tables/background-check.ts";
import type { CheckReport } from "../tables/check-report.ts";
import { ClusterPool } from "../tables/cluster-pool.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import { Gate } from "../tables/gate.ts";
import type { ImageFile } from "../tables/image-file.ts";
import type { TableSession } from "../tables/image-life.ts";
import { WriteGuard } from "../tables/write-guard.ts";
import { checkTables } from "./check.ts";
import { CompressedClusters } from "./compressed.ts";
import { EntryRules, type Region } from "./entry-rules.ts";
import { Qcow2Flags } from "./flags.ts";
import {
  clusterBytesOf,
  geometryOf,
  isDirty,
  namesBacking,
  parseHeader,
  QCOW2_HEADER_BYTES,
  type Qcow2Geometry,
  type Qcow2Header,
} from "./header.ts";
import { InPlaceWrites } from "./in-place.ts";
import { Refcounts } from "./refcounts.ts";
import { COUNTS_BYTES_MAX } from "./reference-counts.ts";
import { Qcow2Tables } from "./tables.ts";

/** What tables that are held may take together with a check of them; but a check has a part of its own in any case. */
const HELD_WITH_CHECK_MAX = 40 * 1024 * 1024;
const CHECK_SHARE_MIN = 8;
/** References that wait for a sync before they are given up. */
const RELEASES_MAX = 1024;

export interface Qcow2SessionOptions {
  readonly file: ImageFile;
  /** By which the device has announced itself: the header must still say the same. */
  readonly opened: Qcow2Header;
  readonly backing: BlockDevice | undefined;
  readonly chaos: Chaos;
  /** For how long requests wait. */
  readonly clock: Clock | undefined;
  readonly cacheBytes: number | undefined;
  /** The image is an overlay's store: what it holds is known elsewhere, and its backing name is a mark and nothing else. */
  readonly overlay?: boolean;
}

/** A place in the file that the table on disk may refer to still. */
interface Release {
  readonly offset: number;
  readonly length: number;
  /** Nobody reads it in place without looking again. */
  readonly compressed: boolean;
}

type SessionParts = Pick<Qcow2Session, "tables" | "flags" | "refcounts"> & { readonly rules: EntryRules };

export class Qcow2Session implements TableSession {
  readonly file: ImageFile;
  readonly geometry: Qcow2Geometry;
  readonly backing: BlockDevice | undefined;
  /** What is unallocated reads as zeroes, whoever opens the image. */
  readonly zeroesBelow: boolean;
  readonly chaos: Chaos;
  readonly tables: Qcow2Tables;
  readonly compressed: CompressedClusters;
  readonly gate: Gate;
  /** Over clusters. */
  readonly locks = new RangeLock();
  readonly inPlace = new InPlaceWrites();
  /** L2 tables that are being made, by their index in the L1 table. */
  readonly newTables = new Map<number, Promise<void>>();
  readonly flags: Qcow2Flags;
  readonly check: BackgroundCheck;
  readonly guard: WriteGuard;
  /** Of images that are written. */
  readonly refcounts: Refcounts | undefined;
  readonly #rules: EntryRules;
  readonly #pool: ClusterPool | undefined;
  #releases: Release[] = [];

  private constructor(options: Qcow2SessionOptions, parts: SessionParts) {
    const { file, opened, backing, chaos, clock, overlay = false } = options;
    this.file = file;
    this.zeroesBelow = overlay || !namesBacking(opened);
    this.geometry = geometryOf(opened);
    this.backing = backing;
    this.chaos = chaos;
    this.tables = parts.tables;
    this.flags = parts.flags;
    this.refcounts = parts.refcounts;
    this.#rules = parts.rules;
    this.compressed = new CompressedClusters(file, this.geometry, parts.tables);
    if (parts.refcounts !== undefined) {
      this.#pool = new ClusterPool({ file, source: parts.refcounts, clusterBytes: this.geometry.clusterBytes });
    }
    this.gate = new Gate(clock && (() => clock.nowMs()));
    this.check = this.#newCheck(opened);
    const { gate, check } = this;
    this.guard = new WriteGuard({ file, check, gate, preparation: this.flags.preparation });
  }

  /** Reads header and tables' tables. A writable image that needs a check begins it. Throws `BlockError`. */
  static async load(options: Qcow2SessionOptions): Promise<Qcow2Session> {
    const { file, opened, chaos, cacheBytes } = options;
    const geometry = geometryOf(opened);
    await file.refresh();
    const header = await readHeaderAgain(file);
    if (!isSame(geometryOf(header), geometry) || namesBacking(header) !== namesBacking(opened)) {
      throw new BlockError("io", `${file.path} is another image than when it was opened`);
    }
    const writable = file.file.writable;
    if (writable && header.snapshots > 0) throw new BlockError("io", `${file.path} has got snapshots meanwhile`);
    const dirty = isDirty(header);
    const rules = new EntryRules(geometry, fixedRegions(header), () => file.sizeBytes);
    const refcounts = writable ? await Refcounts.load({ file, geometry, rules, chaos }, header) : undefined;
    const tables = await Qcow2Tables.load({ file, geometry, dirty, rules, cacheBytes }, refcounts?.blocks);
    const session = new Qcow2Session(options, { tables, flags: new Qcow2Flags(file, header), refcounts, rules });
    if (dirty && writable) session.check.start();
    return session;
  }

  get pool(): ClusterPool {
    if (this.#pool === undefined) throw new Error("the image is not writable");
    return this.#pool;
  }

  /** Passes the gate. `leaveAllocation` is to be called exactly once. */
  enterAllocation(): Promise<void> {
    return this.guard.enter();
  }

  leaveAllocation(): void {
    this.gate.leave();
  }

  /** A table entry does not refer to that place any more; its count follows when that is durable. */
  async release(what: Release): Promise<void> {
    this.#releases.push(what);
    if (this.#releases.length >= RELEASES_MAX) await this.sync();
  }

  /** Makes durable what was written before the call. */
  async sync(): Promise<void> {
    const due = this.#releases;
    this.#releases = [];
    await this.file.sync();
    for (const what of due) await this.#giveUp(what);
  }

  /** Drops everything, writing nothing; resolves when nobody changes header or tables any more. */
  retire(): Promise<void> {
    return this.guard.retire();
  }

  /** Drops the name of the backing, and gives back what was reserved. Durable when resolved; may be repeated. */
  async standAlone(): Promise<void> {
    await this.check.ended();
    await this.gate.hold();
    try {
      await this.sync();
      await this.#pool?.finish();
      await this.file.sync();
      await this.flags.dropBacking();
    } finally {
      this.gate.release();
    }
  }

  /** The end of a session whose image is closed cleanly, if that can be: nobody else uses it any more. */
  async finish(): Promise<void> {
    await this.retire();
    if (this.check.progress.state === "running" || this.check.failure !== undefined) return;
    if (this.#pool === undefined || this.file.latched) return;
    try {
      if (this.#releases.length > 0) await this.sync();
      await this.#pool.finish();
    } catch (error) {
      // Space is lost, and nothing else.
      if (!(error instanceof BlockError)) throw error;
    }
  }

  /** What fails here loses space. */
  async #giveUp({ offset, length, compressed }: Release): Promise<void> {
    const { clusterBytes } = this.geometry;
    try {
      for (let cluster = Math.floor(offset / clusterBytes); cluster * clusterBytes < offset + length; cluster++) {
        const wasLast = await this.refcounts?.release(cluster);
        if (wasLast && compressed) await this.file.discard(cluster * clusterBytes, clusterBytes);
      }
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }

  #newCheck(opened: Qcow2Header): BackgroundCheck {
    const { file, gate, geometry } = this;
    return new BackgroundCheck({
      file,
      gate,
      clustersTotal: Math.ceil(geometry.sizeBytes / geometry.clusterBytes),
      check: (hooks) => this.#checkAndClear(opened, hooks),
      table: { field: "L1 table", at: geometry.l1Offset },
      onClean: () => undefined,
      chaos: { noBarrier: this.chaos.on("qcow2/no-barrier"), noSync: false },
    });
  }

  async #checkAndClear(header: Qcow2Header, hooks: CheckHooks): Promise<CheckReport> {
    const { file, geometry, refcounts } = this;
    if (refcounts === undefined) throw new BlockError("io", `${file.path} is not open for writing`);
    await this.flags.preparation.prepare();
    const report = await checkTables({
      file,
      geometry,
      header,
      refcounts,
      rules: this.#rules,
      repair: "all",
      counts: { bytesMax: countsBytesMax(this.#rules.heldBytes + this.tables.heldBytes) },
      ...hooks,
    });
    if (report.corruptions > 0 || report.checkErrors > 0) return report;
    if (!this.chaos.on("qcow2/repair-unsynced")) await file.sync();
    await this.flags.clearDirty();
    return report;
  }
}

async function readHeaderAgain(file: ImageFile): Promise<Qcow2Header> {
  const bytes = Buffer.alloc(Math.min(QCOW2_HEADER_BYTES, file.sizeBytes));
  await file.read(0, bytes);
  const header = parseHeader(bytes, file.sizeBytes);
  if ("kind" in header) throw new ImageCorruptError(file.path, header);
  return header;
}

/** Besides header and L1 table. Of the snapshot table, the part that is there for certain. */
export function fixedRegions(header: Qcow2Header): Region[] {
  const clusterBytes = clusterBytesOf(header);
  const { refcountTableOffset: offset, refcountTableClusters, snapshots, snapshotsOffset } = header;
  const regions = [{ offset, length: refcountTableClusters * clusterBytes }];
  if (snapshots > 0) regions.push({ offset: snapshotsOffset, length: clusterBytes });
  return regions;
}

/** With the largest tables, a check makes do with less, and takes longer. */
function countsBytesMax(heldBytes: number): number {
  const left = HELD_WITH_CHECK_MAX - heldBytes;
  return Math.max(COUNTS_BYTES_MAX / CHECK_SHARE_MIN, Math.min(COUNTS_BYTES_MAX, left));
}

function isSame(a: Qcow2Geometry, b: Qcow2Geometry): boolean {
  return (Object.keys(a) as (keyof Qcow2Geometry)[]).every((key) => a[key] === b[key]);
}
