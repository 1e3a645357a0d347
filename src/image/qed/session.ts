/**
 * An open QED image from the time its tables were first needed until they are dropped: what readers and writers share, and
 * the life of NEED_CHECK. Begun by reading the header anew; nothing is written until something is to be written.
 */
import type { BlockDevice } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import type { Chaos } from "../../env/chaos.ts";
import type { Clock, Timer } from "../../env/clock.ts";
import { RangeLock } from "../../util/range-lock.ts";
import { AppendAllocator } from "../tables/append-allocator.ts";
import { BackgroundCheck } from "../tables/background-check.ts";
import { ClusterPool, type ClusterRange, type Space } from "../tables/cluster-pool.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import { Gate } from "../tables/gate.ts";
import type { ImageFile } from "../tables/image-file.ts";
import type { TableSession } from "../tables/image-life.ts";
import { WriteGuard } from "../tables/write-guard.ts";
import { adoptClusters } from "./adopt.ts";
import { checkTables } from "./check.ts";
import { QedFlags } from "./flags.ts";
import {
  geometryOf,
  isDirty,
  namesBacking,
  parseHeader,
  QED_HEADER_BYTES,
  type QedGeometry,
  type QedHeader,
} from "./header.ts";
import { QedTables } from "./tables.ts";
import { TailSpace } from "./tail-space.ts";

export interface QedSessionOptions {
  readonly file: ImageFile;
  /** By which the device has announced itself: the header must still say the same. */
  readonly opened: QedHeader;
  readonly backing: BlockDevice | undefined;
  readonly chaos: Chaos;
  /** Without one, NEED_CHECK is cleared only when the image is closed. */
  readonly clock: Clock | undefined;
  /** NEED_CHECK goes when nothing was allocated for so long. */
  readonly quietMs: number;
  readonly cacheBytes: number | undefined;
  /** The image is an overlay's store: what it holds is known elsewhere, and its backing name is a mark and nothing else. */
  readonly overlay?: OverlayMode;
}

export interface OverlayMode {
  /** Clusters before the end of the file that nothing refers to, and that read as zeroes, durably. */
  readonly unused: readonly ClusterRange[];
}

export class QedSession implements TableSession {
  readonly file: ImageFile;
  readonly geometry: QedGeometry;
  readonly backing: BlockDevice | undefined;
  readonly chaos: Chaos;
  readonly tables: QedTables;
  readonly space: Space;
  readonly gate: Gate;
  /** Over clusters. */
  readonly locks = new RangeLock();
  /** L2 tables that are being made, by their index in the L1 table. */
  readonly newTables = new Map<number, Promise<void>>();
  readonly flags: QedFlags;
  readonly check: BackgroundCheck;
  readonly guard: WriteGuard;
  /** Data must be durable before an entry points to it: what it hides is no zeroes. */
  readonly dataFirst: boolean;
  readonly #clock: Clock | undefined;
  readonly #quietMs: number;
  #timer: Timer | undefined;
  #allocatedAtMs = 0;
  #clearing: Promise<void> | undefined;
  /** Of an overlay's store. */
  readonly #pool: ClusterPool | undefined;

  private constructor(options: QedSessionOptions, parts: SessionParts) {
    const { file, opened, backing, chaos, clock, quietMs, overlay } = options;
    const geometry = geometryOf(opened);
    this.file = file;
    this.geometry = geometry;
    this.backing = backing;
    this.chaos = chaos;
    this.tables = parts.tables;
    this.space = parts.space;
    this.#pool = parts.space instanceof ClusterPool ? parts.space : undefined;
    this.flags = parts.flags;
    this.dataFirst = namesBacking(opened) && overlay === undefined;
    this.#clock = clock;
    this.#quietMs = quietMs;
    this.gate = new Gate(clock && (() => clock.nowMs()));
    this.check = this.#newCheck();
    const { gate, check } = this;
    this.guard = new WriteGuard({ file, check, gate, preparation: this.flags.preparation });
  }

  /** Reads header and L1 table. A writable image that needs a check begins it. Throws `BlockError`. */
  static async load(options: QedSessionOptions): Promise<QedSession> {
    const { file, opened, chaos, cacheBytes, overlay } = options;
    const geometry = geometryOf(opened);
    await file.refresh();
    const header = await readHeaderAgain(file);
    if (!isSame(geometryOf(header), geometry) || namesBacking(header) !== namesBacking(opened)) {
      throw new BlockError("io", `${file.path} is another image than when it was opened`);
    }
    const dirty = isDirty(header);
    const { space, allocatedEnd } = spaceOf(file, geometry, options);
    const tables = await QedTables.load({
      file,
      geometry,
      dirty,
      allocatedEnd,
      ...(cacheBytes !== undefined && { cacheBytes }),
    });
    // An overlay's space is durably part of the file before an entry points to it.
    const flags = new QedFlags({ file, header, ordered: namesBacking(header) || overlay !== undefined, chaos });
    const session = new QedSession(options, { tables, space, flags });
    if (dirty && file.file.writable) session.check.start();
    return session;
  }

  /** Passes the gate. `leaveAllocation` is to be called exactly once. */
  enterAllocation(): Promise<void> {
    return this.guard.enter();
  }

  leaveAllocation(): void {
    this.noteAllocation();
    this.gate.leave();
  }

  /** Sees to it that NEED_CHECK goes when nothing more is allocated. */
  noteAllocation(): void {
    if (this.#clock === undefined || !this.flags.needCheck) return;
    this.#allocatedAtMs = this.#clock.nowMs();
    this.#timer ??= this.#setTimer(this.#clock, this.#quietMs);
  }

  sync(): Promise<void> {
    return this.file.sync();
  }

  /** Drops everything, writing nothing; resolves when nobody changes header or tables any more. */
  async retire(): Promise<void> {
    this.#stopTimer();
    await this.guard.retire();
    // One who was inside may have set it again, and it may have gone off.
    this.#stopTimer();
    await this.#clearing;
  }

  /** Drops the name of the backing, and gives back what was reserved. Durable when resolved; may be repeated. */
  async standAlone(): Promise<void> {
    await this.check.ended();
    await this.gate.hold();
    try {
      await this.file.sync();
      const left = (await this.#pool?.finish()) ?? [];
      await adoptClusters(this, left);
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
    if (!this.file.file.writable || this.file.latched) return;
    if (this.flags.needCheck) await this.#clear();
    await this.#giveSpaceBack();
  }

  /** What fails here loses space. */
  async #giveSpaceBack(): Promise<void> {
    try {
      await this.#pool?.finish();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }

  #newCheck(): BackgroundCheck {
    const { file, gate, geometry, chaos, tables } = this;
    const { clusterBytes, sizeBytes, l1Offset } = geometry;
    const leaveEntries = chaos.on("qed/check-trusts-cache");
    return new BackgroundCheck({
      file,
      gate,
      clustersTotal: Math.ceil(sizeBytes / clusterBytes),
      check: (hooks) => checkTables({ file, geometry, rules: tables.rules, repair: true, leaveEntries, ...hooks }),
      table: { field: "L1 table", at: l1Offset },
      onClean: () => this.noteAllocation(),
      chaos: { noBarrier: chaos.on("qed/no-barrier"), noSync: chaos.on("qed/repair-unsynced") },
    });
  }

  #stopTimer(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #setTimer(clock: Clock, delayMs: number): Timer {
    return clock.setTimer(delayMs, () => {
      const restMs = this.#allocatedAtMs + this.#quietMs - clock.nowMs();
      if (restMs > 0) {
        this.#timer = this.#setTimer(clock, restMs);
        return;
      }
      this.#timer = undefined;
      this.#clearing = this.#clearWhenEmpty();
    });
  }

  async #clearWhenEmpty(): Promise<void> {
    await this.gate.hold();
    try {
      if (this.flags.needCheck) await this.#clear();
    } finally {
      this.gate.release();
    }
  }

  /** What fails here has latched, if it matters; the flag then stays. */
  async #clear(): Promise<void> {
    try {
      if (!this.chaos.on("qed/clear-without-flush")) await this.file.sync();
      await this.flags.clear();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }
}

type SessionParts = Pick<QedSession, "tables" | "space" | "flags">;

function spaceOf(
  file: ImageFile,
  geometry: QedGeometry,
  { overlay, chaos }: Pick<QedSessionOptions, "overlay" | "chaos">,
): { space: Space; allocatedEnd: () => number } {
  const { clusterBytes } = geometry;
  if (overlay === undefined) {
    const space = new AppendAllocator(file, clusterBytes);
    return { space, allocatedEnd: () => space.end };
  }
  const source = new TailSpace(file, clusterBytes, chaos);
  const space = new ClusterPool({ file, source, clusterBytes, unused: overlay.unused });
  return { space, allocatedEnd: () => Math.floor(file.sizeBytes / clusterBytes) * clusterBytes };
}

async function readHeaderAgain(file: ImageFile): Promise<QedHeader> {
  const bytes = Buffer.alloc(QED_HEADER_BYTES);
  await file.read(0, bytes);
  const header = parseHeader(bytes, file.sizeBytes);
  if ("kind" in header) throw new ImageCorruptError(file.path, header);
  return header;
}

function isSame(a: QedGeometry, b: QedGeometry): boolean {
  return (Object.keys(a) as (keyof QedGeometry)[]).every((key) => a[key] === b[key]);
}
