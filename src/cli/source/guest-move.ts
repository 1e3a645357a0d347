/**
 * `source --qmp`: the guest's memory and its disks move together, by one order. Memory goes through a tunnel while the
 * guest runs; when it stands still the disks are given away; when QEMU has completed, the destination lets the guest run.
 *
 * Invariants
 * - The guest is started over there only after QEMU has said here that it has completed, and the disks are over there.
 * - Whenever the guest stays here, the QEMU over there is told to go first, and then the disks come back.
 */
import type { Env } from "../../env/env.ts";
import type { ByteStream } from "../../env/links.ts";
import { MigrationError, messageOf } from "../../migrate/errors.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import { listenOn } from "../../os/listen.ts";
import { QmpClient } from "../../qmp/client.ts";
import { QmpError } from "../../qmp/errors.ts";
import { clip, GuestCaller } from "../../qmp/guest-line.ts";
import type { MigrationInfo } from "../../qmp/messages.ts";
import { type HandOverResult, SourceChoreography } from "../../qmp/source.ts";
import type { SourceOutcome, SourcePhase } from "../../qmp/source-states.ts";
import type { Log } from "../log.ts";
import { joinStreams } from "../migration/join-streams.ts";
import { GUEST_TUNNEL, MEMORY_TUNNEL, type QmpPlan } from "../migration/qmp.ts";
import type { LateDevice } from "./late-device.ts";

/** A link that was cut while memory went is given this long to be back before the disks stay here. */
const READY_MS_MAX = 10_000;

export interface GuestMoveOptions {
  readonly env: Env;
  readonly log: Log;
  readonly qmp: QmpPlan;
  readonly migration: SourceMigration;
  /** With `--late-open`: the images that QEMU has open until its guest has moved. */
  readonly late?: readonly LateDevice[] | undefined;
}

export interface GuestMoved {
  /** It runs over there; false: it was paused here. Undefined: it went in an earlier life of ours. */
  readonly running: boolean;
  /** From the instant when it stopped here until it could go on there; undefined: not known. */
  readonly stoodStillMs: number | undefined;
}

/** As JSON. */
export interface GuestMoveStatus {
  readonly phase: SourcePhase | "starting" | "returning" | "started" | "failed";
  readonly sentBytes: number;
  readonly restBytes: number;
  readonly lastError: string | undefined;
}

export class GuestMove {
  readonly #options: GuestMoveOptions;
  #status: GuestMoveStatus = { phase: "idle", sentBytes: 0, restBytes: 0, lastError: undefined };
  #moving: Promise<GuestMoved> | undefined;
  #moved: GuestMoved | undefined;
  #choreography: SourceChoreography | undefined;
  readonly #closing = new AbortController();

  constructor(options: GuestMoveOptions) {
    this.#options = options;
    // Whoever calls the disks' move off means the guest as well.
    options.migration.onEvent((event) => {
      if (event.kind !== "phase" || event.phase !== "cancelled") return;
      this.#choreography?.cancel();
      // QEMU may want them back.
      void this.#shutLate();
    });
  }

  status(): GuestMoveStatus {
    return this.#status;
  }

  /** Why `move` would be refused now; empty: it would not. */
  async problems(): Promise<string[]> {
    const { env, qmp } = this.#options;
    try {
      using client = await QmpClient.dial(env, qmp.address);
      const own = await new SourceChoreography({ client, handOver: NEVER }).problems();
      const there = await this.#withCaller((caller) => caller.ask({ type: "check" }, "checked"));
      return [...own, ...there.problems];
    } catch (error) {
      return [messageOf(error)];
    }
  }

  /**
   * Resolves when the guest is over there. Rejects with `QmpError`, `QmpCommandError` or `MigrationError`, and the guest is
   * here, with its disks, unless that says something else. Whoever orders it while it is under way waits with the others.
   */
  move(): Promise<GuestMoved> {
    this.#moving ??= this.#move()
      .then(
        (moved) => {
          this.#moved = moved;
          this.#note({ phase: "started", lastError: undefined });
          return moved;
        },
        (error: unknown) => {
          this.#note({ phase: "failed", lastError: messageOf(error) });
          throw error;
        },
      )
      .finally(() => (this.#moving = undefined));
    return this.#moving;
  }

  /** Calls it off, as far as that is possible, and waits until it is over. */
  async cancel(reason: string): Promise<void> {
    this.#choreography?.cancel(new QmpError("state", reason));
    await this.#moving?.catch(() => undefined);
  }

  close(): void {
    this.#closing.abort(new MigrationError("closed", "the source is ending", "start it again"));
  }

  async #move(): Promise<GuestMoved> {
    const { env, log, qmp, migration } = this.#options;
    if (this.#moved !== undefined && isGiven(migration)) return this.#moved;
    const given = isGiven(migration);
    if (!given && migration.phase !== "ready") {
      throw new MigrationError("phase", `the migration is in phase ${migration.phase}, not ready`, "wait for ready");
    }
    this.#note({ phase: "preparing", sentBytes: 0, restBytes: 0 });
    using client = await QmpClient.dial(env, qmp.address);
    this.#closing.signal.addEventListener("abort", () => client.close(), { once: true });
    this.#closing.signal.throwIfAborted();
    const choreography = new SourceChoreography({
      ...{ client, handOver: { handOver: (signal) => this.#atPause(signal) } },
      onProgress: (phase, info) => {
        log.debug("moving the guest", { phase });
        this.#note({ ...(phase !== "ended" && { phase }), ...bytesOf(info) });
      },
    });
    this.#choreography = choreography;
    try {
      if (!given) return await this.#begin(client, choreography);
      // An earlier life of ours, or an earlier order, has got so far; how far, QEMU knows.
      const there = await migration.switchover().then(
        () => true,
        () => false,
      );
      return await this.#conclude(await choreography.adopt(there), client);
    } finally {
      this.#choreography = undefined;
    }
  }

  async #begin(client: QmpClient, choreography: SourceChoreography): Promise<GuestMoved> {
    const { qmp } = this.#options;
    const problems = await choreography.problems();
    if (problems.length > 0) throw new QmpError("state", `the guest cannot be migrated: ${problems.join("; ")}`);
    const { running: guestWasRunning } = await client.execute("query-status");
    await this.#withCaller((caller) => caller.ask({ type: "receive", guestWasRunning }, "listening"));
    const memory = await listenOn({ kind: "unix", path: qmp.memoryPath }, (stream) => this.#sendMemory(stream));
    try {
      return await this.#conclude(await choreography.run(qmp.memoryUri), client);
    } catch (error) {
      if (!isGiven(this.#options.migration)) await this.#abandon(messageOf(error));
      throw error;
    } finally {
      memory.close();
    }
  }

  async #conclude(outcome: SourceOutcome, client: QmpClient): Promise<GuestMoved> {
    const given = isGiven(this.#options.migration);
    switch (outcome.kind) {
      case "completed":
        if (!given) await this.#giveLate(client, outcome.guestWasRunning);
        return await this.#start(outcome);
      case "kept":
      case "stranded": {
        if (given) return await this.#return(outcome.reason, outcome.guest.status);
        const why = `QEMU's migration did not take place: ${messageOf(outcome.reason)}`;
        const hint = `the guest is here (${outcome.guest.status}), with its disks; ${AGAIN}`;
        throw new MigrationError("cancelled", why, hint);
      }
      case "undecided":
        throw outcome.reason;
      case "lost": {
        const hint =
          "see what both QEMUs are doing; `blockferry switchover` goes on, `blockferry cancel` brings the disks back";
        const where = given ? "the disks are the destination's" : "the disks are here";
        throw new QmpError("closed", `the source's QEMU was lost; ${where}`, { cause: outcome.reason, hint });
      }
    }
  }

  async #start({ guestWasRunning, times }: SourceOutcome & { kind: "completed" }): Promise<GuestMoved> {
    const { env } = this.#options;
    this.#note({ phase: "starting" });
    const order = { type: "start", guestWasRunning } as const;
    const { running } = await this.#insist((caller) => caller.ask(order, "started"));
    const { stoppedMs } = times;
    return { running, stoodStillMs: stoppedMs === undefined ? undefined : env.clock.nowMs() - stoppedMs };
  }

  /** The guest runs here, and its disks are over there: back with them, however long the link takes. */
  async #return(reason: Error, guest: string): Promise<never> {
    this.#note({ phase: "returning", lastError: messageOf(reason) });
    await this.#abandon(messageOf(reason));
    for (;;) {
      try {
        await this.#options.migration.cancel(clip(`QEMU's migration failed: ${messageOf(reason)}`).slice(0, 200));
        break;
      } catch (error) {
        if (!(error instanceof MigrationError && error.code === "not-connected")) throw error;
        await this.#connected();
      }
    }
    const why = `QEMU's migration failed after the disks were given away: ${messageOf(reason)}`;
    throw new MigrationError("cancelled", why, `the guest is here (${guest}), and has its disks back; ${AGAIN}`);
  }

  /** QEMU has completed, and has let go of its images: now they can be opened, and given away. */
  async #giveLate(client: QmpClient, guestWasRunning: boolean): Promise<void> {
    const { late = [], migration } = this.#options;
    try {
      for (const device of late) await device.open();
      const result = await this.#handOver(new AbortController().signal);
      if (result.kind === "kept") throw result.reason;
    } catch (error) {
      if (isGiven(migration)) throw error;
      await this.#abandon(messageOf(error));
      await this.#shutLate();
      if (guestWasRunning) await client.execute("cont", undefined, { timeoutMs: null });
      await this.#choreography?.restoreSettings();
      const why = `the disks could not be given away: ${messageOf(error)}`;
      throw new MigrationError("cancelled", why, `the guest goes on here, with its disks; ${AGAIN}`);
    }
  }

  async #shutLate(): Promise<void> {
    for (const device of this.#options.late ?? []) await device.shut().catch(() => undefined);
  }

  /** QEMU waits. Images that are opened late are not given away before it has completed: it is only seen whether they could be. */
  async #atPause(signal: AbortSignal): Promise<HandOverResult> {
    const { late, migration } = this.#options;
    if (late === undefined) return await this.#handOver(signal);
    if (migration.phase === "ready" && migration.link.connected) return { kind: "given" };
    return { kind: "kept", reason: new Error("the destination is not ready") };
  }

  async #handOver(signal: AbortSignal): Promise<HandOverResult> {
    const { migration, env } = this.#options;
    const late = Promise.withResolvers<never>();
    const timer = env.clock.setTimer(READY_MS_MAX, () => late.reject(new Error("the destination is not ready")));
    signal.addEventListener("abort", () => late.reject(signal.reason as Error), { once: true });
    late.promise.catch(() => undefined);
    try {
      await Promise.race([migration.whenPhase("ready"), late.promise]);
      await migration.switchover();
      return { kind: "given" };
    } catch (error) {
      if (isGiven(migration)) throw error;
      return { kind: "kept", reason: error as Error };
    } finally {
      timer.cancel();
    }
  }

  /** QEMU's connection becomes a channel. */
  #sendMemory(stream: ByteStream): void {
    try {
      void joinStreams(stream, this.#options.migration.openTunnel(MEMORY_TUNNEL));
    } catch (error) {
      this.#options.log.warn("the guest's memory has no way", { why: messageOf(error) });
      stream.destroy();
    }
  }

  /** A copy of the guest that must not run. Where nobody can be asked, nobody will start it either. */
  async #abandon(reason: string): Promise<void> {
    try {
      await this.#withCaller((caller) => caller.ask({ type: "abandon", reason: clip(reason) }, "abandoned"));
    } catch (error) {
      this.#options.log.warn("the destination's QEMU could not be told to go", { why: messageOf(error) });
    }
  }

  async #withCaller<T>(work: (caller: GuestCaller) => Promise<T>): Promise<T> {
    const { migration } = this.#options;
    if (!migration.link.connected) throw new MigrationError("not-connected", "the link is down", "wait for it");
    const caller = new GuestCaller(migration.openTunnel(GUEST_TUNNEL));
    try {
      return await work(caller);
    } finally {
      caller.end();
    }
  }

  /** As `#withCaller`, again when the destination was lost, or is another process now: what is asked for may come twice. */
  async #insist<T>(work: (caller: GuestCaller) => Promise<T>): Promise<T> {
    for (;;) {
      const { connections } = this.#options.migration.status().link;
      try {
        return await this.#withCaller(work);
      } catch (error) {
        const { link } = this.#options.migration.status();
        // Refused, and by the process that was asked.
        if (link.state === "connected" && link.connections === connections) throw error;
        this.#options.log.warn("the destination is to be asked again", { why: messageOf(error) });
        await this.#connected();
      }
    }
  }

  /** Resolves when the link is up. */
  async #connected(): Promise<void> {
    const { migration } = this.#options;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const look = (): void => {
      if (migration.link.connected) resolve();
    };
    const onAbort = (): void => reject(this.#closing.signal.reason as Error);
    const unsubscribe = migration.onEvent(look);
    this.#closing.signal.addEventListener("abort", onAbort, { once: true });
    try {
      if (this.#closing.signal.aborted) onAbort();
      look();
      await promise;
    } finally {
      unsubscribe();
    }
  }

  #note(change: Partial<GuestMoveStatus>): void {
    this.#status = { ...this.#status, ...change };
  }
}

const AGAIN = "start the QEMU over there again, then `blockferry switchover`";
const NEVER = { handOver: () => Promise.reject(new Error("only asked for its problems")) };

function isGiven(migration: SourceMigration): boolean {
  return migration.phase === "granted" || migration.phase === "serving" || migration.phase === "released";
}

function bytesOf(info: MigrationInfo | undefined): Partial<GuestMoveStatus> {
  if (info?.ram === undefined) return {};
  return { sentBytes: info.ram.transferred, restBytes: info.ram.remaining };
}
