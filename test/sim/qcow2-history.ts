/**
 * Histories of a qcow2 image: several lives, each ended by closing, a kill or a power cut. Between two lives the image is
 * looked at by a process of its own: it must hold what it may hold, and its tables must be right; lost space is for crashes.
 */
import type { BlockDevice } from "../../src/block/device.ts";
import { checkQcow2 } from "../../src/image/qcow2/check-qcow2.ts";
import { createQcow2 } from "../../src/image/qcow2/create.ts";
import type { Qcow2Image } from "../../src/image/qcow2/image.ts";
import { openQcow2 } from "../../src/image/qcow2/open.ts";
import { openRaw } from "../../src/image/raw.ts";
import { ImageCorruptError } from "../../src/image/tables/corrupt-error.ts";
import { Oracle } from "./oracle.ts";
import { type SimEnv, type SimHost, SimWorld } from "./sim-env.ts";
import { drawHabits, Guest, type Habits } from "./workload.ts";

const PATH = "/vm/disk.qcow2";
const BASE = "/vm/base.raw";
const CELL_BYTES = 512;
/** Of reference counts in clusters of 1024 bytes: one block's, and one table's. */
const BLOCK_CLUSTERS = 512;
const TABLE_BLOCKS = 128;
const REQUESTS_MAX = 40;
const LIVES_MAX = 4;

/** The tables say what they must not say. */
export class Qcow2TablesError extends Error {
  override readonly name = "Qcow2TablesError";
}

/** How often a history, or a life, is of a kind: from 0 to 1. */
const ODDS = {
  /** Power cuts and little else. */
  stormy: 0.3,
  /** Begun as a QEMU with lazy refcounts leaves an image. */
  dirty: 0.15,
  /** Many requests at once for a few clusters, which become zeroes and data in turn. */
  crowded: 0.35,
  /** Clusters of 1024 bytes, of which refcount blocks and tables are soon full. */
  small: 2 / 3,
  /** Of those: nothing is full. */
  empty: 0.4,
  /** Of the others: the refcount table is full, and not only a block. */
  tableFull: 0.3,
};

export interface Qcow2HistoryOptions {
  /** Mutants that misbehave. */
  readonly chaos?: ReadonlySet<string>;
  /** Other than usual. */
  readonly odds?: Partial<typeof ODDS>;
}

export interface Qcow2HistoryResult {
  readonly trace: string;
  readonly requests: number;
  readonly failures: number;
  readonly ends: readonly LifeEnd[];
  /** Clusters lost to crashes. */
  readonly leaks: number;
  /** Lives that were begun with the dirty bit, and those of them that came to a check's end. */
  readonly dirtied: number;
  readonly checks: number;
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
  readonly clusterBytes: number;
  readonly odds: typeof ODDS;
  readonly stormy: boolean;
  /** Nothing has happened yet that may lose space. */
  tidy = true;
  readonly ends: LifeEnd[] = [];
  requests = 0;
  failures = 0;
  leaks = 0;
  dirtied = 0;
  checks = 0;

  constructor(seed: number, { chaos = new Set(), odds }: Qcow2HistoryOptions) {
    this.odds = { ...ODDS, ...odds };
    this.world = new SimWorld(seed);
    const { rng } = this.world;
    this.host = this.world.host("store");
    this.host.chaos = chaos;
    this.stormy = rng.chance(this.odds.stormy);
    this.overBacking = rng.chance(0.4);
    this.clusterBytes = rng.chance(this.odds.small) ? 1024 : 4096;
    const cells = rng.pick([8, 24, 45, 64]);
    // A backing may end within a cluster.
    const backed = this.overBacking ? rng.integer(1, cells) : 0;
    const zeroAtFirst = (cell: number): boolean => cell >= backed;
    this.oracle = new Oracle({ sizeBytes: cells * CELL_BYTES, cellBytes: CELL_BYTES, zeroAtFirst });
    this.host.disk.add(BASE, this.oracle.baseContent().subarray(0, backed * CELL_BYTES));
  }

  async create(): Promise<void> {
    const { oracle, overBacking, world, clusterBytes, odds } = this;
    const { rng, scheduler } = world;
    const backing = overBacking ? { backing: { name: BASE, format: "raw" } } : {};
    const env = this.host.start();
    await scheduler.complete(createQcow2(env, { path: PATH, sizeBytes: oracle.sizeBytes, clusterBytes, ...backing }));
    if (clusterBytes !== 1024 || rng.chance(odds.empty)) return;
    // Space that nobody uses, as far as where another refcount block is needed, or another refcount table.
    const blocks = rng.chance(odds.tableFull) ? TABLE_BLOCKS : rng.integer(1, 3);
    const clusters = blocks * BLOCK_CLUSTERS - rng.integer(0, 20);
    const file = await scheduler.complete(env.files.open({ path: PATH, writable: true }));
    await scheduler.complete(file.truncate(clusters * clusterBytes));
    await scheduler.complete(file.dataSync());
    await scheduler.complete(file.close());
  }

  async open(env: SimEnv, readOnly: boolean): Promise<{ image: Qcow2Image; backing: BlockDevice | undefined }> {
    const { scheduler, rng } = this.world;
    const backing = this.overBacking
      ? await scheduler.complete(openRaw(env, { path: BASE, readOnly: true }))
      : undefined;
    const over = backing === undefined ? {} : { backing };
    const cacheBytes = rng.pick([undefined, 1]);
    const options = { path: PATH, readOnly, ...over, ...(cacheBytes !== undefined && { cacheBytes }) };
    return { image: await scheduler.complete(openQcow2(env, options)), backing };
  }

  /**
   * What a QEMU with lazy refcounts may leave when it loses power: the dirty bit, counts that are missing, and an entry that
   * points behind the end of the file.
   */
  async #makeDirty(): Promise<void> {
    const { world, clusterBytes, oracle } = this;
    const { rng, scheduler } = world;
    const file = await scheduler.complete(this.host.start().files.open({ path: PATH, writable: true }));
    const word = async (at: number): Promise<number> => {
      const bytes = Buffer.alloc(8);
      await scheduler.complete(file.read(at, bytes));
      return Number(bytes.readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n);
    };
    const put = (at: number, bytes: Buffer): Promise<void> => scheduler.complete(file.write(at, bytes));
    const size = await scheduler.complete(file.sizeBytes());
    const l2 = await word(3 * clusterBytes);
    const entryAt = l2 + 8 * rng.integer(0, Math.ceil(oracle.sizeBytes / clusterBytes) - 1);
    const entry = Buffer.alloc(8);
    entry.writeBigUInt64BE(BigInt(Math.ceil(size / clusterBytes) * clusterBytes + rng.integer(0, 3) * clusterBytes));
    entry[0] = 0x80;
    if (l2 !== 0) {
      const before = Buffer.alloc(8);
      await scheduler.complete(file.read(entryAt, before));
      if (before.equals(Buffer.alloc(8))) await put(entryAt, entry);
    }
    const block = await word(await word(48));
    for (let index = 0; index < 40; index++) if (rng.chance(0.2)) await put(block + 2 * index, Buffer.alloc(2));
    await put(72, Buffer.from([0, 0, 0, 0, 0, 0, 0, 1]));
    await scheduler.complete(file.dataSync());
    await scheduler.complete(file.close());
    this.host.kill();
    this.dirtied += 1;
    this.tidy = false;
  }

  /** False when nothing more can be told of the disk. */
  async live(): Promise<boolean> {
    const { world, host, oracle } = this;
    const { rng, scheduler } = world;
    const faults = { syncError: rng.chance(0.1) ? 0.2 : 0, noSpace: rng.chance(0.1) ? 0.1 : 0, filesRemember: false };
    if (rng.chance(this.odds.dirty)) await this.#makeDirty();
    const env = host.start();
    const { image, backing } = await this.open(env, false);
    Object.assign(host.disk.behaviour, faults);
    host.disk.ioErrors = 0;
    const guest = new Guest({ oracle, rng, habits: this.#habits(), lingers: false });
    const end = this.stormy ? "power-loss" : rng.pick(ENDS);
    this.ends.push(end);
    const drops = rng.chance(0.15);
    if (drops) this.#dropLater(env, image);
    if (drops || !end.startsWith("close") || faults.syncError > 0 || faults.noSpace > 0) this.tidy = false;
    const work = guest.run([strict(image)], rng.integer(1, REQUESTS_MAX));
    const closes = end.startsWith("close");
    if (closes) await scheduler.complete(work);
    else await this.#untilCrash(work, rng.float() * rng.pick([5, 50, 500]));
    if (closes && rng.chance(0.3)) await scheduler.runFor(rng.pick([10, 100, 10_000]));
    if (image.checkProgress.state === "clean") this.checks += 1;
    if (closes) await this.#close(env, image, backing);
    if (end !== "close") this.tidy = false;
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

  /** What a process finds that only looks. Throws `Qcow2TablesError`. */
  async inspect(): Promise<Uint8Array> {
    const { scheduler } = this.world;
    const env = this.host.start();
    const report = await scheduler.complete(checkQcow2(env, { path: PATH }));
    const { corruptions, checkErrors, leaks, dirty } = report;
    // The dirty bit says that it may be so; it goes when it is so no longer.
    if ((corruptions > 0 || checkErrors > 0) && !dirty) {
      throw new Qcow2TablesError(`${corruptions} corruptions, ${JSON.stringify(report.badEntries)}`);
    }
    if (leaks > 0 && this.tidy) throw new Qcow2TablesError(`closed cleanly, and ${leaks} clusters are lost`);
    this.leaks += leaks;
    const { image, backing } = await this.open(env, true);
    const bytes = new Uint8Array(this.oracle.sizeBytes);
    await scheduler.complete(strict(image).read(0, bytes));
    await this.#close(env, image, backing);
    this.host.kill();
    return bytes;
  }

  /** At last: lost space is given back, and nothing is different afterwards. */
  async conclude(): Promise<void> {
    const { scheduler } = this.world;
    const before = await this.inspect();
    const env = this.host.start();
    const { image, backing } = await this.open(env, false);
    await scheduler.complete(image.checkEnded());
    const { state, failure } = image.checkProgress;
    if (state === "failed") throw new Qcow2TablesError(`the check failed: ${failure}`);
    await this.#close(env, image, backing);
    this.host.kill();
    await scheduler.complete(checkQcow2(this.host.start(), { path: PATH, repair: "leaks" }));
    this.host.kill();
    this.tidy = true;
    const after = await this.inspect();
    if (Buffer.compare(before, after) !== 0) throw new Qcow2TablesError("the check has changed what the disk holds");
  }

  /** Tables that are dropped in the middle of everything. */
  #dropLater(env: SimEnv, image: Qcow2Image): void {
    const { rng, scheduler } = this.world;
    scheduler.after(rng.float() * rng.pick([5, 50]), "drop", () => {
      if (env.process.alive) void image.invalidate();
    });
  }

  #habits(): Habits {
    const { rng } = this.world;
    const habits = drawHabits(rng, this.oracle.cells);
    if (rng.chance(this.odds.crowded)) {
      const weights = { ...habits.weights, read: 5, write: 10, zero: 8, discard: 2 };
      return { ...habits, weights, threads: 8, cellsMax: 4, regionCells: 4 };
    }
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

  async #close(env: SimEnv, image: Qcow2Image, backing: BlockDevice | undefined): Promise<void> {
    const { scheduler } = this.world;
    await scheduler.complete(image.close());
    if (backing !== undefined) await scheduler.complete(backing.close());
    await scheduler.idle();
    env.checkNothingLeft();
  }
}

/** Rejects with `OracleError`, `Qcow2TablesError`, `SimHangError` or `SimLeakError`. */
export async function qcow2History(seed: number, options: Qcow2HistoryOptions = {}): Promise<Qcow2HistoryResult> {
  const history = new History(seed, options);
  const { world, ends } = history;
  await history.create();
  const lives = history.stormy ? LIVES_MAX : world.rng.integer(1, LIVES_MAX);
  let sure = true;
  while (sure && ends.length < lives) sure = await history.live();
  if (sure) await history.conclude();
  const { requests, failures, leaks, dirtied, checks } = history;
  return { trace: world.scheduler.traceHash, requests, failures, ends, leaks, dirtied, checks };
}

/** The guest would take corruption for one more failed request. */
function strict(image: Qcow2Image): BlockDevice {
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
    if (cause instanceof ImageCorruptError) throw new Qcow2TablesError(cause.message);
    throw error;
  });
}
