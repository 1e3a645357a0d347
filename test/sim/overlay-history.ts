/**
 * Histories of an overlay: lives in which a guest works, the background is filled and things fail, each ended by power
 * loss, by the death of the process alone, or in order. After each the disk must hold what it may hold; in the end
 * everything is healed, hydrated and completed, and the image alone must hold it.
 */
import { Destination, type Life } from "./destination.ts";
import type { Survival } from "./oracle.ts";
import { Puller } from "./puller.ts";
import { SimLeakError } from "./sim-env.ts";
import { drawHabits, Guest } from "./workload.ts";

const LIVES_MAX = 3;
const REQUESTS_MAX = 14;
/** By then a latched overlay has noticed, and destroyed its log, however slow the disk. */
const LATCH_MS = 1000;
const FINISH_MS = 600_000;

export interface OverlayHistoryResult {
  readonly trace: string;
  readonly powerLosses: number;
  readonly kills: number;
  readonly requests: number;
}

/** How often syncs fail: in so many of a history's lives. */
const FAILING_LIVES = 0.1;

/** Rejects with `OracleError`, `TablesError`, `SimHangError` or `SimLeakError`. */
export async function overlayHistory(
  seed: number,
  mutants: readonly string[] = [],
  formatName = "raw",
  failingLives = FAILING_LIVES,
): Promise<OverlayHistoryResult> {
  const history = new History(new Destination(seed, mutants, formatName), failingLives);
  await history.run();
  const { powerLosses, kills, requests } = history;
  return { trace: history.at.world.scheduler.traceHash, powerLosses, kills, requests };
}

class History {
  readonly at: Destination;
  powerLosses = 0;
  kills = 0;
  requests = 0;
  readonly #failingLives: number;
  /** There was a life in which writes failed. */
  #wasFull = false;

  constructor(at: Destination, failingLives: number) {
    this.at = at;
    this.#failingLives = failingLives;
  }

  async run(): Promise<void> {
    const { rng } = this.at.world;
    await this.#create();
    let survival: Survival = "process-kill";
    for (let lives = rng.integer(1, LIVES_MAX); lives > 0; lives--) {
      const life = await this.#openAndCheck(survival);
      survival = await this.#live(life);
    }
    await this.#finish(await this.#openAndCheck(survival));
  }

  /** Perhaps interrupted, and begun again. */
  async #create(): Promise<void> {
    const { world } = this.at;
    const { rng, scheduler } = world;
    while (rng.chance(0.1)) {
      const creating = this.at.createOrFind();
      creating.catch(() => undefined);
      await scheduler.runFor(rng.float() * rng.pick([1, 10, 40]));
      this.#crash(rng.chance(0.5));
    }
    await this.at.createOrFind();
  }

  #crash(power: boolean): void {
    if (power) {
      this.powerLosses += 1;
      this.at.losePower();
    } else {
      this.kills += 1;
      this.at.kill();
    }
  }

  /** Perhaps it crashes while it opens. Then whatever is there must be what may be there. */
  async #openAndCheck(before: Survival): Promise<Life> {
    const { world, oracle } = this.at;
    const { rng, scheduler } = world;
    await this.at.checkTables("may-be");
    let survival = before;
    // The kernel has forgotten what it lost: only the disk tells.
    let power = survival === "after-latch" && rng.chance(0.5);
    for (let rounds = 0; power || (rounds < 3 && rng.chance(0.1)); rounds++) {
      const opening = this.at.open();
      if (survival === "after-latch") {
        const life = await scheduler.complete(opening);
        const found = await scheduler.complete(this.at.contents(life.overlay, life.overlay));
        oracle.recover(survival, found);
      } else {
        opening.catch(() => undefined);
        await scheduler.runFor(rng.float() * rng.pick([1, 5, 30]));
      }
      power ||= rng.chance(0.5);
      this.#crash(power);
      if (power) survival = "power-loss";
      power = false;
    }
    const life = await scheduler.complete(this.at.open());
    const gently = rng.chance(0.7) ? life.overlay : undefined;
    const error = this.at.habits.error;
    this.at.habits.error = 0;
    oracle.recover(survival, await scheduler.complete(this.at.contents(life.overlay, gently)));
    this.at.habits.error = error;
    return life;
  }

  /** A life, and how it ended. */
  async #live(life: Life): Promise<Survival> {
    const { world, host, oracle } = this.at;
    const { rng, scheduler } = world;
    const guest = new Guest({ oracle, rng, habits: drawHabits(rng, oracle.cells), lingers: false });
    const puller = this.#puller(life);
    const errorsBefore = host.disk.ioErrors;
    const mapFull = this.#drawFaults(life);
    const end = mapFull ? "kill" : rng.pick(["power-loss", "power-loss", "kill", "kill", "close"] as const);
    const limitMs = rng.float() * rng.pick([3, 30, 300]) + (end === "close" ? 50 : 0);
    const failed = watch([
      guest.run([this.at.region(life.overlay)], rng.integer(1, mapFull ? 3 * REQUESTS_MAX : REQUESTS_MAX)),
      rng.chance(0.6) ? this.#pull(life, puller) : Promise.resolve(),
    ]);
    // Now and then in the very instant in which somebody is told that data was lost.
    if (end === "kill" && rng.chance(0.5)) await this.#untilTold(guest, limitMs);
    else await scheduler.runFor(limitMs);
    failed.rethrow();
    this.requests += guest.requests;
    if (end === "close") {
      puller.stop();
      guest.stop();
      await this.#close(life, failed.settled);
    }
    // An overlay that has had time to learn of an error, or none.
    if (host.disk.ioErrors > errorsBefore && rng.chance(0.3)) await scheduler.runFor(LATCH_MS);
    failed.rethrow();
    const power = end === "power-loss" || (end === "close" && rng.chance(0.5));
    this.#crash(power);
    // A sync that was under way may have failed with nobody left to be told.
    const lost = host.disk.ioErrors > errorsBefore;
    Object.assign(host.disk.behaviour, { syncError: 0, noSpace: 0, writeError: 0 });
    return power ? "power-loss" : lost ? "after-latch" : "process-kill";
  }

  async #untilTold(guest: Guest, limitMs: number): Promise<void> {
    const { scheduler } = this.at.world;
    const { promise, resolve } = Promise.withResolvers<void>();
    scheduler.after(limitMs, "limit", resolve);
    guest.onLost = resolve;
    await scheduler.complete(promise);
  }

  #puller({ overlay, backing, env }: Life): Puller {
    const { rng, scheduler } = this.at.world;
    return new Puller({
      ...{ overlay, backing, scheduler, rng, process: env.process },
      ...{ window: rng.integer(1, 3), clustersMax: rng.pick([1, 4, 8]), pauseMs: rng.pick([1, 10, 100]) },
    });
  }

  async #pull({ overlay, env }: Life, puller: Puller): Promise<void> {
    const done = await puller.run(3);
    const { rng } = this.at.world;
    if (!done || !env.process.alive || rng.chance(0.3)) return;
    const begunAt = this.at.oracle.beginFlush();
    try {
      await overlay.complete();
    } catch {
      // Not this time.
      return;
    }
    this.at.oracle.acknowledgeFlush(begunAt);
  }

  /** Whether the map runs out of space. */
  #drawFaults({ env, backing, background }: Life): boolean {
    const { world, host } = this.at;
    const { rng, scheduler } = world;
    const { behaviour } = host.disk;
    if (rng.chance(this.#failingLives)) behaviour.syncError = rng.pick([0.2, 0.8]);
    if (rng.chance(0.03)) behaviour.writeError = 0.1;
    if (rng.chance(0.1)) Object.assign(behaviour, { noSpace: rng.pick([0.1, 0.5]), noSpaceAt: "" });
    // Only the map: the guest goes on, and more and more waits for the next commit. A kill tells most.
    this.#wasFull ||= behaviour.noSpace > 0 || behaviour.writeError > 0;
    const mapFull = rng.chance(0.1);
    if (mapFull) Object.assign(behaviour, { noSpace: rng.pick([0.5, 1]), noSpaceAt: ".map" });
    for (const session of [backing, background]) {
      if (!rng.chance(0.15)) continue;
      scheduler.after(rng.float() * 20, "disconnect", () => session.disconnect());
      if (rng.chance(0.5))
        scheduler.after(rng.float() * 100, "reconnect", () => env.process.alive && session.reconnect());
    }
    return mapFull;
  }

  /** In order: either everything is waited for, or the sessions to the source are closed first. */
  async #close({ overlay, env, backing, background }: Life, settled: Promise<unknown>): Promise<void> {
    const { rng, scheduler } = this.at.world;
    const patient = rng.chance(0.5);
    for (const session of [backing, background]) {
      if (patient) session.reconnect();
      else session.abort();
    }
    if (patient) await scheduler.complete(settled);
    await scheduler.complete(overlay.close());
    await scheduler.complete(settled);
    await scheduler.idle();
    env.checkNothingLeft();
    if (backing.pending + background.pending > 0) throw new SimLeakError("the source is still being asked");
  }

  /** Everything works from now on: all is hydrated, made durable, and stands alone. */
  async #finish(life: Life): Promise<void> {
    const { world, oracle, habits } = this.at;
    const { rng, scheduler } = world;
    const { overlay, backing } = life;
    habits.error = 0;
    const guest = new Guest({ oracle, rng, habits: drawHabits(rng, oracle.cells), lingers: false });
    const working = guest.run([this.at.region(overlay)], rng.integer(0, 4));
    if (!(await scheduler.complete(this.#puller(life).run(Infinity), FINISH_MS))) throw new Error("it is not complete");
    await scheduler.complete(working);
    const begunAt = oracle.beginFlush();
    await scheduler.complete(overlay.complete());
    oracle.acknowledgeFlush(begunAt);
    // The source is not needed any more.
    backing.abort();
    oracle.recover("process-kill", await scheduler.complete(this.at.contents(overlay, undefined)));
    await this.#close(life, Promise.resolve());
    const power = rng.chance(0.5);
    this.#crash(power);
    // QED has no way to give space back once a table entry for it could not be written.
    const spaceLost = power || (this.#wasFull && this.at.format.name === "qed");
    await this.at.checkTables(spaceLost ? "may-be" : "must-not-be");
    const image = await scheduler.complete(this.at.openPlain());
    if (image.sizeBytes !== this.at.sizeBytes) throw new Error(`the image has ${image.sizeBytes} bytes`);
    const survival = power ? "power-loss" : "process-kill";
    oracle.recover(survival, await scheduler.complete(this.at.contents(image, undefined)));
    await scheduler.complete(image.close());
  }
}

/** Jobs that may never end; what they fail with, unless that was expected, is a finding. */
function watch(jobs: readonly Promise<unknown>[]): { rethrow: () => void; settled: Promise<unknown> } {
  let failure: unknown;
  for (const job of jobs) {
    job.catch((error: unknown) => {
      failure ??= error;
    });
  }
  const rethrow = (): void => {
    if (failure === undefined) return;
    throw failure instanceof Error ? failure : new Error(String(failure));
  };
  return { rethrow, settled: Promise.allSettled(jobs) };
}
