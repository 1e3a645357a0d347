/**
 * The choreography on the source QEMU: memory moves while the guest runs; QEMU stops the guest and waits (`pre-switchover`);
 * the disks are handed over; QEMU goes on (`migrate-continue`) and ends with `completed`, or fails and sets the guest
 * going again.
 *
 * Invariants
 * - `migrate-continue` is only ever said when the disks are known to be the destination's.
 * - Migration is cancelled before the hand-over only when the disks are known to have stayed.
 * - With QEMU's return path on, `completed` means that the destination has loaded everything. Without it, it would mean
 *   that the tunnel took the last bytes, and a destination that died would take the guest with it.
 */
import type { QmpClient } from "./client.ts";
import { QmpCommandError, QmpError } from "./errors.ts";
import { RESUME_TIMEOUT_MS, URGENT_POLL_MS } from "./limits.ts";
import type { MigrationInfo, StatusInfo } from "./messages.ts";
import { applySettings, lackingCapabilities, type MigrationLimits } from "./settings.ts";
import { SOURCE_EDGES, type SourceOutcome, type SourcePhase, type SourceTimes } from "./source-states.ts";
import { watchMigration, watchStatus } from "./watch.ts";

export type HandOverResult = { readonly kind: "given" } | { readonly kind: "kept"; readonly reason: Error };

export interface HandOver {
  /**
   * Gives the disks to the destination; the guest stands still meanwhile. Settles only when it is known who has them:
   * rejecting leaves the guest standing. When `signal` is aborted, the disks are kept if that is still possible.
   */
  handOver(signal: AbortSignal): Promise<HandOverResult>;
}

export interface SourceOptions {
  readonly client: QmpClient;
  readonly handOver: HandOver;
  readonly limits?: MigrationLimits;
  /** Called with QEMU's own account now and then, and for every phase. Must not throw. */
  readonly onProgress?: (phase: SourcePhase, info?: MigrationInfo) => void;
}

const PAUSED = "pre-switchover";
const ENDED = new Set(["completed", "failed", "cancelled"]);
/** Of a guest that QEMU has sent elsewhere, and that nobody has let go on since. */
export const LEFT = "postmigrate";
/** A guest in one of these cannot be migrated. */
const NOT_HERE = new Set(["inmigrate", "postmigrate", "finish-migrate", "shutdown", "guest-panicked"]);

const FAILURES: Readonly<Record<string, string>> = {
  // Somebody else has said migrate-continue. The disks are here, so this is where the guest must run on.
  completed: "QEMU has migrated without waiting for the disks: the guest can be continued here, and must not be there",
};
const CONTINUED = "somebody has let the guest go on here since it had left";

interface Progress {
  readonly startedMs: number;
  stoppedMs?: number;
  pausedMs?: number;
  givenMs?: number;
}

export class SourceChoreography {
  readonly #client: QmpClient;
  readonly #options: SourceOptions;
  #phase: SourcePhase = "idle";
  #times: Progress = { startedMs: 0 };
  #cancelling = new AbortController();
  #guestWasRunning: boolean | undefined;
  /** Nobody has watched the guest all the time. */
  #adopted = false;
  #given = false;
  #restore: (() => Promise<void>) | undefined;

  constructor(options: SourceOptions) {
    this.#client = options.client;
    this.#options = options;
  }

  get phase(): SourcePhase {
    return this.#phase;
  }

  /** Why `run` would refuse, as sentences; empty when it would not. Changes nothing. */
  async problems(): Promise<string[]> {
    const lacking = await lackingCapabilities(this.#client);
    const guest = await this.#client.execute("query-status");
    const info = await this.#client.execute("query-migrate");
    const problems = lacking.map((name) => `QEMU ${this.#client.version} does not know "${name}"`);
    if (NOT_HERE.has(guest.status)) problems.push(`the guest is in state "${guest.status}"`);
    if (!ended(info)) problems.push(`a migration is already under way (${info.status})`);
    return [...problems, ...(info["blocked-reasons"] ?? [])];
  }

  /**
   * Migrates to `uri`, as QEMU's `migrate` has it ("unix:/run/vm.ram"). Rejects with `QmpError` or `QmpCommandError` when
   * QEMU does not begin, and nothing has changed; all that can happen later is an outcome.
   */
  async run(uri: string): Promise<SourceOutcome> {
    this.#advance("preparing");
    this.#reset();
    try {
      const problems = await this.problems();
      if (problems.length > 0) throw new QmpError("state", `the guest cannot be migrated: ${problems.join("; ")}`);
      this.#guestWasRunning = (await this.#client.execute("query-status")).running;
      this.#restore = await applySettings(this.#client, this.#options.limits ?? {});
      this.#cancelling.signal.throwIfAborted();
      await this.#client.execute("migrate", { uri });
    } catch (error) {
      await this.restoreSettings();
      this.#advance("idle");
      throw error;
    }
    this.#advance("moving-memory");
    if (this.#cancelling.signal.aborted) this.#cancelMigration();
    return await this.#follow();
  }

  /**
   * Takes up, over a new connection, a migration that was begun before: `given` when the disks are known to be the
   * destination's. `guestWasRunning` is what was noted then, if anything. The same ends an `undecided` one.
   */
  async adopt(given: boolean, guestWasRunning?: boolean): Promise<SourceOutcome> {
    this.#advance("moving-memory");
    this.#reset();
    this.#given = given;
    this.#guestWasRunning = guestWasRunning;
    this.#adopted = true;
    return await this.#follow();
  }

  /** Ends what a process that is gone has begun, and nothing was given away for; undefined: QEMU is not about anything. */
  async callOff(reason: QmpError): Promise<SourceOutcome | undefined> {
    if (ended(await this.#client.execute("query-migrate"))) return undefined;
    const ending = this.adopt(false);
    this.cancel(reason);
    return await ending;
  }

  /** As far as that is still possible; the outcome of `run` tells. Later than the hand-over it ends `stranded`, or too late. */
  cancel(reason = new QmpError("state", "the migration was cancelled")): void {
    this.#cancelling.abort(reason);
    // During the hand-over it is for the hand-over to say who has the disks.
    if (this.#phase === "moving-memory" || this.#phase === "finishing") this.#cancelMigration();
  }

  async #follow(): Promise<SourceOutcome> {
    using _listening = this.#client.listen(({ event }) => {
      if (event === "STOP") this.#times.stoppedMs ??= this.#client.clock.nowMs();
    });
    try {
      return await this.#toTheEnd();
    } catch (error) {
      this.#advance("ended");
      return { kind: "lost", given: this.#given, reason: error as Error, times: this.#takenTimes() };
    }
  }

  async #toTheEnd(): Promise<SourceOutcome> {
    const first = await this.#watch((info) => info.status === PAUSED || ended(info));
    if (first.status !== PAUSED) return await this.#ended(first);
    this.#times.pausedMs = this.#client.clock.nowMs();
    if (!this.#given) {
      this.#advance("handing-over");
      const result = await this.#handOver();
      if (result.kind === "undecided") return result;
      if (result.kind === "kept") {
        this.#cancelMigration();
        return await this.#ended(await this.#watch(ended), result.reason);
      }
      this.#given = true;
    }
    return await this.#finish();
  }

  /** The disks are the destination's, QEMU waits. */
  async #finish(): Promise<SourceOutcome> {
    this.#times.givenMs = this.#client.clock.nowMs();
    this.#advance("finishing");
    try {
      await this.#client.execute("migrate-continue", { state: PAUSED }, { timeoutMs: null });
    } catch (error) {
      // It is not in that state any more: what has become of it is seen at once. In it all the same: we are at a loss.
      if (!(error instanceof QmpCommandError)) throw error;
      const info = await this.#client.execute("query-migrate", undefined, { timeoutMs: null });
      if (info.status === PAUSED) throw error;
    }
    return await this.#ended(await this.#watch(ended));
  }

  async #handOver(): Promise<HandOverResult | (SourceOutcome & { readonly kind: "undecided" })> {
    const { signal } = this.#cancelling;
    if (signal.aborted) return { kind: "kept", reason: signal.reason as Error };
    // Not for ever: somebody may cancel it in QEMU, and QEMU may die.
    using _listening = this.#client.listen(({ event, data }) => {
      if (event !== "MIGRATION" || data["status"] === PAUSED) return;
      this.#cancelling.abort(new QmpError("state", `QEMU's migration did not wait: it is "${String(data["status"])}"`));
    });
    void this.#client.closed.then((error) => this.#cancelling.abort(error));
    try {
      return await this.#options.handOver.handOver(signal);
    } catch (error) {
      this.#advance("ended");
      return { kind: "undecided", reason: error as Error, times: this.#takenTimes() };
    }
  }

  async #ended(info: MigrationInfo, why?: Error): Promise<SourceOutcome> {
    const completed = info.status === "completed" && this.#given;
    if (completed && !this.#adopted) return this.#completed();
    const guest = await this.#resumedGuest();
    if (completed && guest.status === LEFT) return this.#completed();
    if (this.#given && !ENDED.has(info.status ?? "")) throw anotherQemu(guest);
    await this.restoreSettings();
    this.#advance("ended");
    const cancelled = this.#cancelling.signal.aborted ? (this.#cancelling.signal.reason as Error) : undefined;
    const said = info["error-desc"] ?? `it is "${info.status ?? "none"}"`;
    const reason =
      why ??
      cancelled ??
      new QmpError(
        "state",
        completed ? CONTINUED : (FAILURES[info.status ?? ""] ?? `QEMU's migration failed: ${said}`),
      );
    return { kind: this.#given ? "stranded" : "kept", guest, reason, times: this.#takenTimes() };
  }

  #completed(): SourceOutcome {
    this.#advance("ended");
    return { kind: "completed", guestWasRunning: this.#guestWasRunning, times: this.#takenTimes() };
  }

  /** QEMU says that it has failed a little before it lets the guest run on. */
  #resumedGuest(): Promise<StatusInfo> {
    const settled = ({ status }: StatusInfo): boolean => status !== "finish-migrate";
    return watchStatus(this.#client, settled, { pollMs: URGENT_POLL_MS, timeoutMs: RESUME_TIMEOUT_MS });
  }

  /** What comes of it shows in the migration's state. */
  #cancelMigration(): void {
    this.#client.execute("migrate_cancel", undefined, { timeoutMs: null }).catch(() => undefined);
  }

  #watch(until: (info: MigrationInfo) => boolean): Promise<MigrationInfo> {
    return watchMigration(this.#client, until, (info) => this.#options.onProgress?.(this.#phase, info));
  }

  /**
   * Sets back what `run` has set; it does so itself unless QEMU has completed. As well as can be: the migration's end is
   * what matters.
   */
  async restoreSettings(): Promise<void> {
    const restore = this.#restore;
    this.#restore = undefined;
    await restore?.().catch(() => undefined);
  }

  #reset(): void {
    this.#times = { startedMs: this.#client.clock.nowMs() };
    this.#cancelling = new AbortController();
    this.#given = false;
    this.#adopted = false;
  }

  #takenTimes(): SourceTimes {
    return { ...this.#times, endedMs: this.#client.clock.nowMs() };
  }

  #advance(to: SourcePhase): void {
    if (!SOURCE_EDGES[this.#phase].includes(to)) throw new Error(`a migration cannot go from ${this.#phase} to ${to}`);
    this.#phase = to;
    this.#options.onProgress?.(to);
  }
}

function anotherQemu({ status }: StatusInfo): QmpError {
  const why = `the source's QEMU has never migrated: it is another one than before, in state "${status}"`;
  return new QmpError("state", why);
}

function ended(info: MigrationInfo): boolean {
  return info.status === undefined || info.status === "none" || ENDED.has(info.status);
}
