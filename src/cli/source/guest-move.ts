/**
 * `source --qmp`: the guest's memory and its disks move together, by one order. Memory goes through a tunnel while the
 * guest runs; when it stands still the disks are given away; when QEMU has completed, the destination lets the guest run.
 *
 * Invariants
 * - The guest is started over there only after QEMU has said here that it has completed, and the disks are over there.
 * - Whenever the guest stays here, the QEMU over there is told to go first, and then the disks come back.
 * - Who comes after a process that has ended in between goes on by what QEMU says, and by what was noted: nobody lets a guest
 *   run that was paused, or that runs elsewhere.
 */
import type { Env } from "../../env/env.ts";
import type { ByteStream } from "../../env/links.ts";
import { MigrationError, messageOf } from "../../migrate/errors.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import { listenOn } from "../../os/listen.ts";
import { QmpClient } from "../../qmp/client.ts";
import { QmpError } from "../../qmp/errors.ts";
import { clip } from "../../qmp/guest-line.ts";
import { type HandOverResult, LEFT, SourceChoreography } from "../../qmp/source.ts";
import type { SourceOutcome } from "../../qmp/source-states.ts";
import type { Log } from "../log.ts";
import { joinStreams } from "../migration/join-streams.ts";
import { MEMORY_TUNNEL, type QmpPlan } from "../migration/qmp.ts";
import { FarGuest, isGiven } from "./far-guest.ts";
import {
  AGAIN,
  bytesOf,
  type GuestMoved,
  type GuestMoveStatus,
  LEFT_BEHIND,
  LEFT_STANDING,
  TWO_OF_THEM,
} from "./guest-moved.ts";
import { type GuestNote, GuestNotes } from "./guest-note.ts";
import type { LateImages } from "./late-images.ts";

/** A link that was cut while memory went is given this long to be back before the disks stay here. */
const READY_MS_MAX = 10_000;

export interface GuestMoveOptions {
  readonly env: Env;
  readonly log: Log;
  readonly qmp: QmpPlan;
  readonly migration: SourceMigration;
  readonly stateDirectory: string;
  /** With `--late-open`: the images that QEMU has open until its guest has moved. */
  readonly late?: LateImages | undefined;
}

export class GuestMove {
  readonly #options: GuestMoveOptions;
  readonly #far: FarGuest;
  readonly #notes: GuestNotes;
  #status: GuestMoveStatus = { phase: "idle", sentBytes: 0, restBytes: 0, lastError: undefined };
  #moving: Promise<GuestMoved> | undefined;
  #moved: GuestMoved | undefined;
  #choreography: SourceChoreography | undefined;
  /** Of the move that is under way, or of the last. */
  #callingOff = new AbortController();
  /** Who has the guest's memory. */
  #receiver: string | undefined;
  readonly #closing = new AbortController();

  /** That a guest may wait for somebody to go on with it shows in the status. */
  static async open(options: GuestMoveOptions): Promise<GuestMove> {
    const guest = new GuestMove(options);
    const note = await guest.#notes.readOfAny();
    if (note?.state === "moving") guest.#note({ lastError: LEFT_BEHIND });
    return guest;
  }

  private constructor(options: GuestMoveOptions) {
    this.#options = options;
    this.#far = new FarGuest(options.migration, options.log);
    this.#notes = new GuestNotes(options.env, options.stateDirectory, options);
    // Whoever calls the disks' move off means the guest as well.
    options.migration.onEvent((event) => {
      if (event.kind !== "phase" || event.phase !== "cancelled") return;
      this.#callOff(new QmpError("state", "the migration of the disks was called off"));
      // QEMU may want them back.
      void options.late?.shut();
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
      const own = await this.#ownProblems(client, new SourceChoreography({ client, handOver: NEVER }));
      const there = await this.#far.order((caller) => caller.ask({ type: "check" }, "checked"));
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

  /** Calls it off, as far as that is possible, and waits until it is over. Rejects with `MigrationError` when it was too late. */
  async cancel(reason: string): Promise<void> {
    if (this.#moving === undefined) return;
    this.#callOff(new QmpError("state", reason));
    const moved = await this.#moving.catch(() => undefined);
    if (moved === undefined) return;
    const hint =
      "use it there; `blockferry cancel` again asks for the disks, unless the guest has written to them there";
    throw new MigrationError("phase", "the guest had moved before it could be called off", hint);
  }

  /** Nothing is ordered any more: what is under way is left to the next process. Idempotent. */
  close(): void {
    const ending = new MigrationError("closed", "the source is ending", "start it again");
    this.#closing.abort(ending);
    this.#far.close(ending);
  }

  async #move(): Promise<GuestMoved> {
    const { env, log, qmp, migration } = this.#options;
    if (this.#moved !== undefined && isGiven(migration)) return this.#moved;
    const given = isGiven(migration);
    if (!given && migration.phase !== "ready") {
      throw new MigrationError("phase", `the migration is in phase ${migration.phase}, not ready`, "wait for ready");
    }
    const note = await this.#notes.read();
    if (given && note?.state === "started") {
      await migration.switchover();
      return { running: note.guestWasRunning, stoodStillMs: undefined };
    }
    this.#note({ phase: "preparing", sentBytes: 0, restBytes: 0 });
    this.#callingOff = new AbortController();
    using client = await QmpClient.dial(env, qmp.address);
    this.#closing.signal.addEventListener("abort", () => client.close(), { once: true });
    this.#closing.signal.throwIfAborted();
    const choreography = new SourceChoreography({
      ...{ client, handOver: { handOver: (signal) => this.#atPause(client, signal) } },
      onProgress: (phase, info) => {
        log.debug("moving the guest", { phase });
        this.#note({ ...(phase !== "ended" && { phase }), ...bytesOf(info) });
      },
    });
    this.#choreography = choreography;
    try {
      if (!given) return (await this.#takeUp(client, choreography, note)) ?? (await this.#begin(client, choreography));
      // An earlier life of ours, or an earlier order, has got so far; how far, QEMU knows.
      const there = await migration.switchover().then(
        () => true,
        () => false,
      );
      return await this.#conclude(await choreography.adopt(there, note?.guestWasRunning), client);
    } finally {
      this.#choreography = undefined;
    }
  }

  /**
   * What an earlier life of ours has left standing, before anything was given away: QEMU waits for the disks to go, or has
   * completed. Undefined: there is nothing of that kind.
   */
  async #takeUp(
    client: QmpClient,
    choreography: SourceChoreography,
    note: GuestNote | undefined,
  ): Promise<GuestMoved | undefined> {
    const { late } = this.#options;
    if (note?.state !== "moving") return undefined;
    const { guestWasRunning } = note;
    this.#receiver = note.destinationId;
    const gone = new QmpError("state", "the process that moved the guest has ended meanwhile");
    const outcome = await choreography.callOff(gone);
    const { status } = await client.execute("query-status");
    if (late !== undefined && status === LEFT) {
      const problems = await late.problems(client);
      if (problems.length > 0) throw new QmpError("state", problems.join("; "), { hint: LEFT_STANDING });
      const { arrived } = await this.#far.order((caller) => caller.ask({ type: "look" }, "seen"));
      if (!arrived)
        return await this.#stay(client, guestWasRunning, `${gone.message}, and what had come of it is lost`);
      await this.#giveLate(client, guestWasRunning);
      return await this.#start(client, { guestWasRunning });
    }
    if (outcome === undefined) return undefined;
    await this.#far.abandon(gone.message);
    return await this.#conclude(outcome, client);
  }

  async #begin(client: QmpClient, choreography: SourceChoreography): Promise<GuestMoved> {
    const { qmp, migration } = this.#options;
    const problems = await this.#ownProblems(client, choreography);
    const { running: guestWasRunning, status } = await client.execute("query-status");
    if (problems.length > 0) {
      const hint = status === "postmigrate" ? { hint: LEFT_STANDING } : {};
      throw new QmpError("state", `the guest cannot be migrated: ${problems.join("; ")}`, hint);
    }
    this.#receiver = migration.status().destinationId;
    await this.#notes.write("moving", guestWasRunning);
    await this.#far.order((caller) => caller.ask({ type: "receive", guestWasRunning }, "listening"));
    const memory = await listenOn({ kind: "unix", path: qmp.memoryPath }, (stream) => this.#sendMemory(stream));
    try {
      return await this.#conclude(await choreography.run(qmp.memoryUri), client);
    } catch (error) {
      // Who ends leaves everything as it is, for the next one.
      const ending = this.#closing.signal.aborted;
      if (!ending && !isGiven(this.#options.migration)) await this.#far.abandon(messageOf(error));
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
        return await this.#start(client, { ...outcome, stoppedMs: outcome.times.stoppedMs });
      case "kept":
      case "stranded": {
        if (given) return await this.#return(outcome.reason, outcome.guest.status);
        await this.#notes.remove();
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

  async #start(
    client: QmpClient,
    { guestWasRunning, stoppedMs }: { guestWasRunning: boolean | undefined; stoppedMs?: number | undefined },
  ): Promise<GuestMoved> {
    const { env, log, migration } = this.#options;
    this.#note({ phase: "starting" });
    const order = { type: "start" as const, ...(guestWasRunning !== undefined && { guestWasRunning }) };
    try {
      const { running } = await this.#far.insist((caller) => caller.ask(order, "started"));
      await this.#notes.write("started", running).catch((error: unknown) => {
        log.warn("that the guest has gone cannot be noted", { why: messageOf(error) });
      });
      return { running, stoodStillMs: stoppedMs === undefined ? undefined : env.clock.nowMs() - stoppedMs };
    } catch (error) {
      if (isGiven(migration)) throw error;
      // Somebody has asked for the disks, and has got them. Whether the guest runs there, only that QEMU can say.
      const why = `the disks have come back before the guest was known to run over there: ${messageOf(error)}`;
      if ((await this.#far.abandon(why)) !== "gone")
        throw new QmpError("state", why, { cause: error, hint: LEFT_STANDING });
      return await this.#stay(client, guestWasRunning, why);
    }
  }

  /** The guest runs here, and its disks are over there: back with them, however long the link takes. */
  async #return(reason: Error, guest: string): Promise<never> {
    this.#note({ phase: "returning", lastError: messageOf(reason) });
    if ((await this.#far.abandon(messageOf(reason))) === "kept") {
      const why = `${messageOf(reason)}; and the destination's QEMU has it as well, and keeps it`;
      throw new QmpError("state", why, { hint: TWO_OF_THEM });
    }
    for (;;) {
      try {
        await this.#options.migration.cancel(clip(`QEMU's migration failed: ${messageOf(reason)}`).slice(0, 200));
        break;
      } catch (error) {
        if (!(error instanceof MigrationError && error.code === "not-connected")) throw error;
        await this.#far.connected();
      }
    }
    await this.#notes.remove();
    const why = `QEMU's migration failed after the disks were given away: ${messageOf(reason)}`;
    throw new MigrationError("cancelled", why, `the guest is here (${guest}), and has its disks back; ${AGAIN}`);
  }

  /** QEMU has completed, and has let go of its images: now they can be opened, and given away. */
  async #giveLate(client: QmpClient, guestWasRunning: boolean | undefined): Promise<void> {
    const { late, migration } = this.#options;
    const { signal } = this.#callingOff;
    this.#note({ phase: "starting" });
    try {
      signal.throwIfAborted();
      await late?.open();
      const result = await this.#handOver(signal);
      if (result.kind === "kept") throw result.reason;
    } catch (error) {
      if (isGiven(migration) || this.#closing.signal.aborted) throw error;
      // Whoever did not get the disks does not start the guest.
      await this.#far.abandon(messageOf(error));
      await this.#stay(client, guestWasRunning, `the disks could not be given away: ${messageOf(error)}`);
    }
  }

  /** The guest stands still in this QEMU, which has completed, and nobody else has its disks: it goes on here. */
  async #stay(client: QmpClient, guestWasRunning: boolean | undefined, why: string): Promise<never> {
    await this.#options.late?.shut();
    await this.#notes.remove();
    try {
      if (guestWasRunning === true) await client.execute("cont", undefined, { timeoutMs: null });
    } catch (cause) {
      const message = `${why}; and the guest does not go on here: ${messageOf(cause)}`;
      throw new QmpError("state", message, { cause, hint: LEFT_STANDING });
    }
    await this.#choreography?.restoreSettings();
    throw new MigrationError("cancelled", why, `the guest goes on here, with its disks; ${AGAIN}`);
  }

  /** QEMU waits. Images that are opened late are not given away before it has completed: it is only seen whether they could be. */
  async #atPause(client: QmpClient, signal: AbortSignal): Promise<HandOverResult> {
    const { late, migration } = this.#options;
    if (late === undefined) return await this.#handOver(signal);
    // Somebody may have put another image under the guest meanwhile.
    const problems = await late.problems(client).catch((error: unknown) => [messageOf(error)]);
    if (problems.length > 0) return { kind: "kept", reason: new Error(problems.join("; ")) };
    if (migration.phase === "ready" && migration.link.connected) return { kind: "given" };
    return { kind: "kept", reason: new Error("the destination is not ready") };
  }

  async #ownProblems(client: QmpClient, choreography: SourceChoreography): Promise<string[]> {
    const { late } = this.#options;
    return [...(await choreography.problems()), ...((await late?.problems(client)) ?? [])];
  }

  #callOff(reason: QmpError): void {
    this.#callingOff.abort(reason);
    this.#choreography?.cancel(reason);
  }

  async #handOver(signal: AbortSignal): Promise<HandOverResult> {
    const { migration, env } = this.#options;
    const late = Promise.withResolvers<never>();
    const timer = env.clock.setTimer(READY_MS_MAX, () => late.reject(new Error("the destination is not ready")));
    signal.addEventListener("abort", () => late.reject(signal.reason as Error), { once: true });
    late.promise.catch(() => undefined);
    try {
      await Promise.race([migration.whenPhase("ready"), late.promise]);
      signal.throwIfAborted();
      if (migration.status().destinationId !== this.#receiver) throw new Error("the destination is another one now");
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

  #note(change: Partial<GuestMoveStatus>): void {
    this.#status = { ...this.#status, ...change };
  }
}

const NEVER = { handOver: () => Promise.reject(new Error("only asked for its problems")) };
