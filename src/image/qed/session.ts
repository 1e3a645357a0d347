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
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import { Gate, RetiredError } from "../tables/gate.ts";
import type { ImageFile } from "../tables/image-file.ts";
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
}

export class QedSession {
  readonly file: ImageFile;
  readonly geometry: QedGeometry;
  readonly backing: BlockDevice | undefined;
  readonly chaos: Chaos;
  readonly tables: QedTables;
  readonly allocator: AppendAllocator;
  readonly gate: Gate;
  /** Over clusters. */
  readonly locks = new RangeLock();
  /** L2 tables that are being made, by their index in the L1 table. */
  readonly newTables = new Map<number, Promise<void>>();
  readonly flags: QedFlags;
  readonly check: BackgroundCheck;
  /** Data must be durable before an entry points to it. */
  readonly ordered: boolean;
  readonly #clock: Clock | undefined;
  readonly #quietMs: number;
  #timer: Timer | undefined;
  #allocatedAtMs = 0;
  #clearing: Promise<void> | undefined;
  #retired = false;

  private constructor(
    options: QedSessionOptions,
    parts: Pick<QedSession, "tables" | "allocator" | "flags" | "ordered">,
  ) {
    const { file, opened, backing, chaos, clock, quietMs } = options;
    const geometry = geometryOf(opened);
    this.file = file;
    this.geometry = geometry;
    this.backing = backing;
    this.chaos = chaos;
    this.tables = parts.tables;
    this.allocator = parts.allocator;
    this.flags = parts.flags;
    this.ordered = parts.ordered;
    this.#clock = clock;
    this.#quietMs = quietMs;
    this.gate = new Gate(clock && (() => clock.nowMs()));
    this.check = this.#newCheck();
  }

  /** Reads header and L1 table. A writable image that needs a check begins it. Throws `BlockError`. */
  static async load(options: QedSessionOptions): Promise<QedSession> {
    const { file, opened, chaos, cacheBytes } = options;
    const geometry = geometryOf(opened);
    await file.refresh();
    const bytes = Buffer.alloc(QED_HEADER_BYTES);
    await file.read(0, bytes);
    const header = parseHeader(bytes, file.sizeBytes);
    if ("kind" in header) throw new ImageCorruptError(file.path, header);
    if (!isSame(geometryOf(header), geometry) || namesBacking(header) !== namesBacking(opened)) {
      throw new BlockError("io", `${file.path} is another image than when it was opened`);
    }
    const allocator = new AppendAllocator(file, geometry.clusterBytes);
    const dirty = isDirty(header);
    const allocatedEnd = (): number => allocator.end;
    const tables = await QedTables.load({
      file,
      geometry,
      dirty,
      allocatedEnd,
      ...(cacheBytes !== undefined && { cacheBytes }),
    });
    const ordered = namesBacking(header);
    const flags = new QedFlags({ file, header, ordered, chaos });
    const session = new QedSession(options, { tables, allocator, flags, ordered });
    if (dirty && file.file.writable) session.check.start();
    return session;
  }

  /** To be called before anything is written. Throws `BlockError` when nothing may be written. */
  async prepareWrite(): Promise<void> {
    if (this.check.corruption !== undefined) throw refusal(this.check.corruption);
    this.file.check();
    if (this.flags.prepared) return;
    if (this.#retired) throw new RetiredError("the tables were dropped");
    await this.flags.prepare();
  }

  /** Whether a write in place may go ahead without awaiting anything. */
  get writesNow(): boolean {
    return this.flags.prepared && this.check.corruption === undefined && !this.file.latched;
  }

  /** Passes the gate. `leaveAllocation` is to be called exactly once. */
  async enterAllocation(): Promise<void> {
    await this.gate.enter();
    if (this.check.failure === undefined) return;
    this.gate.leave();
    throw refusal(this.check.failure);
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

  /** Drops everything, writing nothing; resolves when nobody changes header or tables any more. */
  async retire(): Promise<void> {
    this.#retired = true;
    this.#stopTimer();
    await Promise.all([this.check.stop(), this.gate.retire(), this.flags.settled(), this.#clearing]);
    // One who was inside may have set it again.
    this.#stopTimer();
  }

  /** The end of a session whose image is closed cleanly, if that can be: nobody else uses it any more. */
  async finish(): Promise<void> {
    await this.retire();
    if (this.check.progress.state === "running" || this.check.failure !== undefined) return;
    if (!this.file.file.writable || !this.flags.needCheck) return;
    await this.#clear();
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

function isSame(a: QedGeometry, b: QedGeometry): boolean {
  return (Object.keys(a) as (keyof QedGeometry)[]).every((key) => a[key] === b[key]);
}

/** An error of its own for each request: its stack says who asked. */
function refusal(cause: BlockError): BlockError {
  return new BlockError("io", `nothing more is written: ${cause.message}`, { cause });
}
