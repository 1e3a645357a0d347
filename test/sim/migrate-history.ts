/**
 * Histories of a migration: a guest works, the disks are handed over (or not quite), something fails at one step, and
 * everything that died is started again. In the end exactly one side must be the owner, with every acknowledged write, and
 * a fresh or continued migration must come to its end.
 */
import { MigrationError } from "../../src/migrate/errors.ts";
import type { SourceMigration } from "../../src/migrate/source.ts";
import type { Prng } from "../support/seed.ts";
import type { StepKind, When } from "./migrate-steps.ts";
import { MigrateWorld, type MigrateWorldOptions, type SimDiskInfo } from "./migrate-world.ts";
import { OracleError } from "./oracle.ts";
import { drawHabits, Guest } from "./workload.ts";

export const STORIES = ["setup", "precopy", "handover", "return", "contest", "cancel", "release"] as const;
/** `return`: the disks are asked back, and nobody has written to them; `contest`: while somebody is about to. */
export type Story = (typeof STORIES)[number];
/** A process is killed, its host loses power, or first the one and soon after its restart the other. */
export const FAULTS = [
  ...(["kill source", "kill dest", "power source", "power dest", "power both"] as const),
  ...(["twice source", "twice dest", "cut"] as const),
] as const;
export type Fault = (typeof FAULTS)[number];

export interface Order {
  readonly story: Story;
  /** Absent: nothing fails. */
  readonly fault?: { readonly step: number; readonly when: When; readonly what: Fault };
}

export interface Outcome {
  /** The steps of the story: where a fault can be ordered. */
  readonly steps: readonly StepKind[];
  readonly fired: boolean;
  readonly owner: "source" | "dest";
  readonly trace: string;
}

const SETTLE_MS = 60_000;
const STABLE_MS = 3000;
const STORY_MS = 20_000;

interface Working {
  readonly side: "source" | "dest";
  readonly guest: Guest;
  readonly done: Promise<unknown>;
}

/** Rejects with `OracleError`, `SimHangError`, `SimLeakError` or whatever else is a finding. */
export async function migrateHistory(seed: number, order: Order, options: MigrateWorldOptions = {}): Promise<Outcome> {
  const history = new History(new MigrateWorld(seed, options), order);
  try {
    return await history.run();
  } catch (error) {
    if (error instanceof Error) error.message += ` [${history.where()}]`;
    throw error;
  }
}

class History {
  readonly #at: MigrateWorld;
  readonly #order: Order;
  readonly #rng: Prng;
  #guests: Working[] = [];
  #finding: unknown;
  #fired = false;
  #firstSource: MigrateWorld["source"];
  /** The destination's guest was let in. */
  #moved = false;

  constructor(at: MigrateWorld, order: Order) {
    this.#at = at;
    this.#order = order;
    this.#rng = at.world.rng;
  }

  async run(): Promise<Outcome> {
    const { steps, scheduler } = this.#at;
    const { fault } = this.#order;
    if (fault !== undefined) steps.order(fault.step, fault.when, () => this.#strike(fault.what));
    const story = this.#play();
    story.catch((error: unknown) => {
      // Whoever asked is told when the other side, or its own, has gone.
      if (!(error instanceof MigrationError)) this.#finding ??= error;
    });
    await this.#until(() => this.#fired || this.#over, STORY_MS);
    steps.counting = false;
    await this.#until(() => this.#fired || steps.underWay === 0, STORY_MS);
    steps.disarm();
    // A cut ends nothing: what was asked for comes about, or is refused.
    if (fault?.what === "cut") await this.#until(() => this.#over, STORY_MS);
    if (this.#fired && fault?.what.startsWith("twice")) await this.#again(fault.what === "twice source");
    await scheduler.runFor(0.02 + this.#rng.float() * this.#rng.pick([0.1, 5, 500]));
    this.#rethrow();
    let owner = await this.#settle();
    const asked = this.#order.story === "return" || this.#order.story === "contest";
    if (asked && owner === "dest" && (await this.#askBack())) owner = await this.#settle();
    await this.#goOn(owner);
    this.#rethrow();
    return { steps: steps.kinds, fired: this.#fired, owner, trace: scheduler.traceHash };
  }

  #over = false;

  #play(): Promise<void> {
    return this.#tell().finally(() => {
      this.#over = true;
    });
  }

  async #tell(): Promise<void> {
    const at = this.#at;
    const { story } = this.#order;
    at.steps.counting = story === "setup";
    const source = await at.startSource();
    this.#firstSource = at.source;
    // The first pulls meet a guest at work, or none.
    const early = story !== "setup" && this.#rng.chance(0.3);
    if (early) await this.#letWork("source");
    const dest = await at.startDest();
    await dest.exports();
    if (story === "setup") return;
    if (!early) await this.#letWork("source");
    at.steps.counting = story === "precopy";
    await source.whenPhase("ready");
    await this.#pause(this.#rng.float() * this.#rng.pick([60, 60, 1500]));
    if (story === "precopy") return;
    at.steps.counting = story === "handover" || story === "cancel";
    if (story === "return" || (story === "contest" && this.#rng.chance(0.7))) at.wayBack.take();
    if (story === "cancel") {
      const switching = source.switchover().catch(() => undefined);
      await this.#pause(this.#rng.float() * 10);
      await (this.#rng.chance(0.5) ? source : dest).cancel("called off").catch(() => undefined);
      return void (await switching);
    }
    // Twice, and from both sides: one switchover.
    await Promise.all([source.switchover(), this.#rng.chance(0.3) ? dest.switchover() : source.switchover()]);
    if (story === "handover") return;
    at.steps.counting = true;
    if (story === "return") return await source.cancel("the VM did not come over");
    await this.#move();
    if (story === "contest") {
      await this.#pause(this.#rng.float() * this.#rng.pick([0, 1, 10]));
      return await source.cancel("the VM is wanted back");
    }
    await dest.whenPhase("complete");
  }

  /**
   * What has died while the disks were on their way back may have to be asked again: unless somebody has written to them,
   * or all of them is over there, they come. Resolves to whether they have.
   */
  async #askBack(): Promise<boolean> {
    const { scheduler } = this.#at;
    for (let attempt = 0; attempt < 5; attempt++) {
      const source = this.#at.source?.migration;
      if (source === undefined) throw new Error("the source does not run");
      const refusal = await scheduler.complete(
        source.cancel("asked again").then(
          () => undefined,
          (error: unknown) => error,
        ),
        SETTLE_MS,
      );
      if (refusal === undefined) return true;
      if (!(refusal instanceof MigrationError)) throw new Error("the cancel failed", { cause: refusal });
      const wrote = refusal.message.includes("written");
      if (wrote && !this.#moved) throw new OracleError(`nobody has written, and they are kept: ${this.where()}`);
      if (refusal.code !== "not-connected") return false;
      await scheduler.runFor(1000);
    }
    throw new OracleError(`nobody can be asked for the disks: ${this.where()}`);
  }

  #strike(what: Fault): void {
    this.#fired = true;
    const [how, who] = what.split(" ");
    if (how === "cut") {
      this.#at.cut();
      return;
    }
    const sides = who === "both" ? (["source", "dest"] as const) : ([who as "source" | "dest"] as const);
    for (const side of sides) this.#at.crash(side, how === "power");
  }

  /** What a killed process has left in the page cache was read by the next one; then the power goes. */
  async #again(source: boolean): Promise<void> {
    const at = this.#at;
    const starting: Promise<unknown> = source ? at.startSource() : at.startDest();
    starting.catch(() => undefined);
    if (this.#rng.chance(0.5)) await this.#until(() => at.destOwns, 3000);
    else await at.scheduler.runFor(this.#rng.float() * this.#rng.pick([5, 100, 2000]));
    at.crash(source ? "source" : "dest", true);
  }

  /** Restarts what is down, waits until it is clear who owns the disks, and checks what they hold. */
  async #settle(): Promise<"source" | "dest"> {
    const at = this.#at;
    for (const { guest } of this.#guests) guest.stop();
    if (at.source === undefined) await at.scheduler.complete(at.startSource(), SETTLE_MS);
    if (at.dest === undefined) await at.scheduler.complete(at.startDest(), SETTLE_MS);
    // What looks settled may be about to change: disks on their way back.
    for (let rounds = 0; rounds < 5; rounds++) {
      await this.#until(() => this.#settled(), SETTLE_MS);
      await at.scheduler.runFor(STABLE_MS);
      if (this.#settled()) break;
    }
    if (!this.#settled()) throw new OracleError(`nobody owns the disks: ${this.where()}`);
    this.#rethrow();
    const owner = at.destOwns ? "dest" : "source";
    await this.#checkHeld(owner);
    // Once it was flushed for the handover, nothing may be lost whatever happens to the source.
    const power = owner === "source" ? at.sourceLostPower : this.#moved && at.destLostPower;
    for (const disk of at.disks) {
      const bytes = new Uint8Array(disk.oracle.sizeBytes);
      await at.scheduler.complete((await at.guestOf(owner, disk)).read(0, bytes), SETTLE_MS);
      disk.oracle.recover(power ? "power-loss" : "process-kill", bytes);
    }
    this.#guests = [];
    if (owner === "source") this.#moved = false;
    return owner;
  }

  #settled(): boolean {
    const { source, dest } = this.#at;
    if (this.#at.destOwns) return true;
    if (!this.#at.sourceOwns) return false;
    // A destination that still thinks it may get the disks, or has to give them back, is not settled.
    const at = source?.migration.phase;
    return (at === "ready" || at === "precopy" || at === "setup") && dest?.migration.phase !== "returning";
  }

  /** What was held goes on if the source does; it fails once the destination's guest has written. */
  async #checkHeld(owner: "source" | "dest"): Promise<void> {
    // Another process than before knows nothing of them.
    const held = this.#guests.filter(({ side }) => side === "source");
    if (owner !== "source" || held.length === 0 || this.#at.source !== this.#firstSource) return;
    await this.#at.scheduler.complete(Promise.all(held.map(({ done }) => done)), SETTLE_MS);
    if (held.some(({ guest }) => guest.failures > 0)) throw new OracleError("a held write has failed");
  }

  /** From wherever it is now: to the destination, and to the end. */
  async #goOn(owner: "source" | "dest"): Promise<void> {
    const at = this.#at;
    const { scheduler } = at;
    at.wayBack.letGo();
    if (owner === "source") {
      await this.#letWork("source");
      await scheduler.runFor(20);
      await this.#freshDestination();
      const source = at.source?.migration;
      if (source === undefined) throw new Error("the source does not run");
      await this.#switch(source);
      for (const { guest } of this.#guests) guest.stop();
      for (const disk of at.disks) await this.#checkOnDest(disk);
    }
    if (!this.#moved) await this.#move();
    await scheduler.runFor(30);
    for (const { guest } of this.#guests) guest.stop();
    await scheduler.complete(at.dest?.migration.whenPhase("complete") ?? Promise.reject(new Error("gone")), SETTLE_MS);
    this.#rethrow();
    if (at.source?.migration.phase !== "released") throw new OracleError(`the source is not released: ${this.where()}`);
    // The source is not needed any more.
    at.crash("source", false);
    await scheduler.complete(Promise.all(this.#guests.map(({ done }) => done)), SETTLE_MS);
    for (const disk of at.disks) {
      const bytes = new Uint8Array(disk.oracle.sizeBytes);
      await scheduler.complete((await at.guestOf("dest", disk)).read(0, bytes), SETTLE_MS);
      disk.oracle.recover("process-kill", bytes);
    }
    await at.close();
  }

  /** Until it succeeds: that the last destination has gone is not known at once. */
  async #switch(source: SourceMigration): Promise<void> {
    const { scheduler, disks } = this.#at;
    for (let attempt = 0; attempt < 5; attempt++) {
      await scheduler.complete(source.whenPhase("ready"), SETTLE_MS);
      const switching = source.switchover().then(
        () => undefined,
        (error: unknown) => error,
      );
      // FLUSH succeeds in every phase, also while everything is frozen.
      for (const disk of disks) {
        await scheduler.complete((await this.#at.guestOf("source", disk)).flush(), SETTLE_MS);
      }
      const failure = await scheduler.complete(switching, SETTLE_MS);
      if (failure === undefined) return;
      const tooEarly = failure instanceof MigrationError && ["not-connected", "phase"].includes(failure.code);
      if (!tooEarly) throw new Error(`the switchover failed: ${String(failure)}`, { cause: failure });
      await scheduler.runFor(1000);
    }
    throw new OracleError(`the switchover does not succeed: ${this.where()}`);
  }

  async #checkOnDest(disk: SimDiskInfo): Promise<void> {
    const bytes = new Uint8Array(disk.oracle.sizeBytes);
    await this.#at.scheduler.complete((await this.#at.guestOf("dest", disk)).read(0, bytes), SETTLE_MS);
    disk.oracle.recover("process-kill", bytes);
  }

  /** A destination that was cancelled leaves nothing behind; another one takes its place. */
  async #freshDestination(): Promise<void> {
    const at = this.#at;
    const dest = at.dest?.migration;
    if (dest !== undefined && dest.phase !== "cancelled") return;
    if (dest !== undefined) {
      const left = at.paths("dest").filter((path) => path.startsWith("/new/") || path.includes("/destination."));
      if (left.length > 0) throw new OracleError(`a cancelled migration has left ${left.join(", ")}`);
      await at.scheduler.complete(dest.close());
      at.newDestination();
    }
    await at.scheduler.complete(at.startDest(), SETTLE_MS);
  }

  /** The VM runs on the destination now: what the source holds of its requests will never be answered with success. */
  async #move(): Promise<void> {
    for (const { guest } of this.#guests) guest.stop();
    this.#guests = [];
    this.#moved = true;
    // What the handover has brought is durable.
    for (const { oracle } of this.#at.disks) oracle.acknowledgeFlush(oracle.beginFlush());
    await this.#letWork("dest");
  }

  async #letWork(side: "source" | "dest"): Promise<void> {
    const rng = this.#rng;
    // All of them first: what one guest does may be where the side ends.
    const found = await Promise.all(
      this.#at.disks.map(async (disk) => ({ disk, device: await this.#at.guestOf(side, disk) })),
    );
    for (const { disk, device } of found) {
      const guest = new Guest({ oracle: disk.oracle, rng, habits: drawHabits(rng, disk.oracle.cells), lingers: false });
      const done = guest.run([device], this.#at.requests);
      done.catch((error: unknown) => {
        this.#finding ??= error;
      });
      this.#guests.push({ side, guest, done });
    }
  }

  async #until(what: () => boolean, limitMs: number): Promise<void> {
    const { scheduler } = this.#at;
    const endMs = scheduler.nowMs + limitMs;
    const found = (): boolean => this.#finding !== undefined || this.#at.violation !== undefined;
    for (let stepMs = 0.2; !what() && !found() && scheduler.nowMs < endMs; stepMs = Math.min(20, stepMs * 1.1)) {
      await scheduler.runFor(stepMs);
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.#at.scheduler.after(ms, "story", resolve));
  }

  #rethrow(): void {
    const error = this.#at.violation ?? this.#finding;
    if (error !== undefined) throw error instanceof Error ? error : new Error(String(error));
  }

  /** For messages. */
  where(): string {
    const { source, dest } = this.#at;
    const [a, b] = [source?.migration.status(), dest?.migration.status()];
    return `source ${a?.shown} (${a?.lastError}), destination ${b?.shown} (${b?.lastError})`;
  }
}
