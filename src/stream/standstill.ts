/**
 * Why nothing comes although hydration is running: what holds it up, found out when somebody asks. A source that answers
 * a question about its extents while its reads are stuck has a slow disk; one that does not answer may itself be stuck, or
 * the line to it.
 */
import type { Clock } from "../env/clock.ts";

/** Without a byte for so long, it stands still. */
const STANDSTILL_MS = 3000;
/** An answer without a disk's help does not take longer. */
const PROBE_MS_MAX = 1000;

/** `rate-limit`: the operator's. `slow-disk`: it takes long to store. `slow-source`: its reads take long. `line`: no answer at all. */
export type SlowReason = "rate-limit" | "slow-disk" | "slow-source" | "line";

export interface StandstillParts {
  readonly clock: Clock;
  readonly waitsForRate: () => boolean;
  /** Bytes asked for and not answered; undefined: nobody counts them. */
  readonly bytesAsked: () => number | undefined;
  /** A question that the source answers without reading. */
  readonly ask: () => Promise<unknown>;
}

export class Standstill {
  readonly #parts: StandstillParts;
  #movedMs: number;
  #probe: { readonly askedMs: number; answered: boolean } | undefined;

  constructor(parts: StandstillParts) {
    this.#parts = parts;
    this.#movedMs = parts.clock.nowMs();
  }

  /** Something has come, or a stop for another reason is over. */
  moved(): void {
    this.#movedMs = this.#parts.clock.nowMs();
    this.#probe = undefined;
  }

  /** Undefined: it does not stand still. The first call may have to guess between source and line. */
  reason(): SlowReason | undefined {
    const { clock, waitsForRate, bytesAsked } = this.#parts;
    const nowMs = clock.nowMs();
    if (nowMs - this.#movedMs < STANDSTILL_MS) return undefined;
    if (waitsForRate()) return "rate-limit";
    const asked = bytesAsked();
    if (asked === 0) return "slow-disk";
    this.#probe ??= this.#begin(nowMs);
    const { answered, askedMs } = this.#probe;
    return answered || nowMs - askedMs < PROBE_MS_MAX ? "slow-source" : "line";
  }

  #begin(nowMs: number): { readonly askedMs: number; answered: boolean } {
    const probe = { askedMs: nowMs, answered: false };
    const answered = (): void => {
      probe.answered = true;
    };
    // An error is an answer too; that the link is lost is somebody else's news.
    this.#parts.ask().then(answered, answered);
    return probe;
  }
}
