/**
 * Histories of a QED image: several lives, each ended by closing, a kill or a power cut. Between two lives the image is
 * looked at by a process of its own: it must hold what it may hold, and its tables must be right, lost space aside.
 */
import type { BlockDevice } from "../../src/block/device.ts";
import { checkQed } from "../../src/image/qed/check-qed.ts";
import { createQed } from "../../src/image/qed/create.ts";
import type { QedImage } from "../../src/image/qed/image.ts";
import { openQed } from "../../src/image/qed/open.ts";
import { openRaw } from "../../src/image/raw.ts";
import { ImageCorruptError } from "../../src/image/tables/corrupt-error.ts";
import { Oracle } from "./oracle.ts";
import { type SimEnv, type SimHost, SimWorld } from "./sim-env.ts";
import { drawHabits, Guest, type Habits } from "./workload.ts";

const PATH = "/vm/disk.qed";
const BASE = "/vm/base.raw";
const CELL_BYTES = 512;
const CLUSTER_BYTES = 4096;
const REQUESTS_MAX = 40;
const LIVES_MAX = 4;

/** The tables say what they must not say. */
export class QedTablesError extends Error {
  override readonly name = "QedTablesError";
}

export interface QedHistoryOptions {
  /** Mutants that misbehave. */
  readonly chaos?: ReadonlySet<string>;
}

export interface QedHistoryResult {
  readonly trace: string;
  readonly requests: number;
  readonly failures: number;
  readonly ends: readonly LifeEnd[];
  /** Lives that began with a check. */
  readonly checks: number;
  readonly cleared: number;
}

type LifeEnd = "close" | "process-kill" | "power-loss" | "close, power-loss" | "process-kill, power-loss";
const ENDS: readonly LifeEnd[] = [
  "close",
  "process-kill",
  "power-loss",
  "power-loss",
  "close, power-loss",
  "process-kill, power-loss",
];

/** One history, while it goes on. */
class History {
  readonly world: SimWorld;
  readonly host: SimHost;
  readonly oracle: Oracle;
  readonly overBacking: boolean;
  /** Power cuts and little else, so that entries are left that point behind the end of the file. */
  readonly stormy: boolean;
  readonly ends: LifeEnd[] = [];
  requests = 0;
  failures = 0;
  checks = 0;
  cleared = 0;

  constructor(seed: number, { chaos = new Set() }: QedHistoryOptions) {
    this.world = new SimWorld(seed);
    const { rng } = this.world;
    this.host = this.world.host("store");
    this.host.chaos = chaos;
    this.stormy = rng.chance(0.3);
    this.overBacking = !this.stormy && rng.chance(0.5);
    const cells = rng.pick([8, 24, 45, 64]);
    // A backing may end within a cluster.
    const backed = this.overBacking ? rng.integer(1, cells) : 0;
    const zeroAtFirst = (cell: number): boolean => cell >= backed;
    this.oracle = new Oracle({ sizeBytes: cells * CELL_BYTES, cellBytes: CELL_BYTES, zeroAtFirst });
    this.host.disk.add(BASE, this.oracle.baseContent().subarray(0, backed * CELL_BYTES));
  }

  async create(): Promise<void> {
    const { oracle, overBacking, world } = this;
    const backing = overBacking ? { backing: { name: BASE, format: "raw" } } : {};
    const options = { path: PATH, sizeBytes: oracle.sizeBytes, clusterBytes: CLUSTER_BYTES, tableClusters: 2 };
    await world.scheduler.complete(createQed(this.host.start(), { ...options, ...backing }));
  }

  async open(env: SimEnv, readOnly: boolean): Promise<{ image: QedImage; backing: BlockDevice | undefined }> {
    const { scheduler, rng } = this.world;
    const backing = this.overBacking
      ? await scheduler.complete(openRaw(env, { path: BASE, readOnly: true }))
      : undefined;
    const quietMs = rng.pick([0, 5, 50, 5000]);
    const over = backing === undefined ? {} : { backing };
    const cacheBytes = rng.pick([undefined, 1]);
    const options = { path: PATH, readOnly, quietMs, ...over, ...(cacheBytes !== undefined && { cacheBytes }) };
    return { image: await scheduler.complete(openQed(env, options)), backing };
  }

  /** False when nothing more can be told of the disk. */
  async live(): Promise<boolean> {
    const { world, host, oracle } = this;
    const { rng, scheduler } = world;
    const faults = { syncError: rng.chance(0.1) ? 0.2 : 0, noSpace: rng.chance(0.1) ? 0.1 : 0, filesRemember: false };
    const env = host.start();
    const { image, backing } = await this.open(env, false);
    Object.assign(host.disk.behaviour, faults);
    host.disk.ioErrors = 0;
    const guest = new Guest({ oracle, rng, habits: this.#habits(), lingers: false });
    const end = this.stormy ? "power-loss" : rng.pick(ENDS);
    this.ends.push(end);
    if (rng.chance(0.15)) this.#dropLater(env, image);
    const work = guest.run([strict(image)], rng.integer(1, REQUESTS_MAX));
    const closes = end.startsWith("close");
    if (closes) await scheduler.complete(work);
    else await this.#untilCrash(work, rng.float() * rng.pick([5, 50, 500]));
    if (closes && rng.chance(0.3)) await scheduler.runFor(rng.pick([10, 100, 10_000]));
    if (image.checkProgress.state !== "none") this.checks += 1;
    this.cleared += image.checkProgress.entriesCleared;
    if (closes) await this.#close(env, image, backing);
    this.requests += guest.requests;
    this.failures += guest.failures;
    const power = end.endsWith("power-loss");
    if (power) host.losePower();
    else host.kill();
    // What a failed sync has dropped is in the page cache still, and no later process can know; nor of one that was under
    // way when the process died.
    const unsure = host.disk.ioErrors > 0 && !power;
    Object.assign(host.disk.behaviour, { syncError: 0, noSpace: 0 });
    oracle.recover(power ? "power-loss" : "process-kill", await this.inspect());
    return !unsure;
  }

  /** What a process finds that only looks. Throws `QedTablesError`. */
  async inspect(): Promise<Uint8Array> {
    const { scheduler } = this.world;
    const env = this.host.start();
    const report = await scheduler.complete(checkQed(env, { path: PATH }));
    const doubles = report.corruptions - report.badEntries.length;
    if (doubles > 0) throw new QedTablesError(`${doubles} clusters are referred to more than once`);
    if (!report.dirty && report.corruptions > 0) {
      throw new QedTablesError(`closed cleanly, and ${JSON.stringify(report.badEntries)}`);
    }
    const { image, backing } = await this.open(env, true);
    const bytes = new Uint8Array(this.oracle.sizeBytes);
    await scheduler.complete(strict(image).read(0, bytes));
    await this.#close(env, image, backing);
    this.host.kill();
    return bytes;
  }

  /** At last: what needs a check gets one, and nothing is different afterwards. */
  async conclude(): Promise<void> {
    const { scheduler } = this.world;
    const before = await this.inspect();
    const env = this.host.start();
    const { image, backing } = await this.open(env, false);
    await scheduler.complete(image.checkEnded());
    const { state, failure } = image.checkProgress;
    if (state === "failed") throw new QedTablesError(`the check failed: ${failure}`);
    await this.#close(env, image, backing);
    this.host.kill();
    const after = await this.inspect();
    if (Buffer.compare(before, after) !== 0) throw new QedTablesError("the check has changed what the disk holds");
    const report = await scheduler.complete(checkQed(this.host.start(), { path: PATH }));
    if (report.dirty) throw new QedTablesError("closed cleanly, and NEED_CHECK is set");
  }

  /** Tables that are dropped in the middle of everything. */
  #dropLater(env: SimEnv, image: QedImage): void {
    const { rng, scheduler } = this.world;
    scheduler.after(rng.float() * rng.pick([5, 50]), "drop", () => {
      if (env.process.alive) void image.invalidate();
    });
  }

  #habits(): Habits {
    const { rng } = this.world;
    const habits = drawHabits(rng, this.oracle.cells);
    if (!this.stormy) return habits;
    const weights = { ...habits.weights, write: 10, discard: 0, flush: 0.3 };
    return { ...habits, weights, fua: 0, regionCells: this.oracle.cells };
  }

  /** An oracle's complaint comes out here; the guest itself is left where it is. */
  async #untilCrash(work: Promise<void>, limitMs: number): Promise<void> {
    let failure: unknown;
    work.catch((error: unknown) => {
      failure = error;
    });
    await this.world.scheduler.runFor(limitMs);
    if (failure instanceof Error) throw failure;
  }

  async #close(env: SimEnv, image: QedImage, backing: BlockDevice | undefined): Promise<void> {
    const { scheduler } = this.world;
    await scheduler.complete(image.close());
    if (backing !== undefined) await scheduler.complete(backing.close());
    await scheduler.idle();
    env.checkNothingLeft();
  }
}

/** Rejects with `OracleError`, `QedTablesError`, `SimHangError` or `SimLeakError`. */
export async function qedHistory(seed: number, options: QedHistoryOptions = {}): Promise<QedHistoryResult> {
  const history = new History(seed, options);
  const { world, ends } = history;
  await history.create();
  const lives = history.stormy ? LIVES_MAX : world.rng.integer(1, LIVES_MAX);
  let sure = true;
  while (sure && ends.length < lives) sure = await history.live();
  if (sure) await history.conclude();
  const { requests, failures, checks, cleared } = history;
  return { trace: world.scheduler.traceHash, requests, failures, ends, checks, cleared };
}

/** The guest would take corruption for one more failed request. */
function strict(image: QedImage): BlockDevice {
  return new Proxy<BlockDevice>(image, {
    get: (target, key) => {
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => watched(value.apply(target, args));
    },
  });
}

function watched(result: unknown): unknown {
  if (!(result instanceof Promise)) return result;
  return result.catch((error: unknown) => {
    const cause = error instanceof Error ? (error.cause ?? error) : error;
    if (cause instanceof ImageCorruptError) throw new QedTablesError(cause.message);
    throw error;
  });
}
