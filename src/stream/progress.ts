/** How far hydration is, as plain data: for a status display, an event, a log line. Bytes, milliseconds. */
import type { Clock } from "../env/clock.ts";
import type { FailedRange } from "./failed-ranges.ts";
import type { HydrationState } from "./hydration-states.ts";
import type { SourceState } from "./source-session.ts";
import type { SlowReason } from "./standstill.ts";
import { Throughput } from "./throughput.ts";
import type { WindowStatus } from "./window-control.ts";

/**
 * Why nothing moves. `operator`: paused. `connecting`: for the first time, and no attempt has failed yet. `source`: it is
 * away. `no-space`: the local disk is full. `source-errors`: all
 * the rest is here, and the source cannot give what is listed. `local-disk`: hydration has failed. And while it is
 * running, what it waits for.
 */
export type StallReason =
  | "operator"
  | "connecting"
  | "source"
  | "no-space"
  | "source-errors"
  | "local-disk"
  | SlowReason;

export interface HydrationProgress {
  readonly state: HydrationState;
  /** How long it has been in this state. */
  readonly forMs: number;
  readonly stalledBy?: StallReason;
  readonly totalBytes: number;
  readonly localBytes: number;
  readonly missingBytes: number;
  /** Stored by this hydration, since it was started: fetched and zero bytes. What guests wrote or read is not in it. */
  readonly hydratedBytes: number;
  readonly fetchedBytes: number;
  /** Of them nothing was transferred. */
  readonly zeroBytes: number;
  /** Of what is fetched, averaged over some seconds; 0 while stalled. */
  readonly bytesPerSecond: number;
  /** Unknown while stalled. */
  readonly etaMs?: number;
  readonly elapsedMs: number;
  readonly rateLimit?: number;
  /** Fetches at the same time, or else the window that follows the path. */
  readonly windowUnits?: number;
  readonly window?: WindowStatus;
  readonly fetchesUnderWay: number;
  readonly failed: {
    readonly bytes: number;
    /** At most 1000. */
    readonly ranges: readonly FailedRange[];
    readonly unlisted: number;
  };
  /** What was wrong with the local disk. */
  readonly error?: string;
}

const STALLS: Partial<Record<HydrationState, StallReason>> = {
  paused: "operator",
  disconnected: "source",
  "no-space": "no-space",
  incomplete: "source-errors",
  failed: "local-disk",
};

export function stallReason(state: HydrationState, source: SourceState): StallReason | undefined {
  return state === "disconnected" && source === "connecting" ? "connecting" : STALLS[state];
}

/** Counts what hydration stores. */
export class Meter {
  readonly #clock: Clock;
  readonly #startMs: number;
  readonly #wire: Throughput;
  /** With the zeroes: what is missing becomes fewer by these. */
  readonly #growth: Throughput;
  #endMs: number | undefined;
  #fetchedBytes = 0;
  #zeroBytes = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#startMs = clock.nowMs();
    this.#wire = new Throughput(this.#startMs);
    this.#growth = new Throughput(this.#startMs);
  }

  get counts(): { readonly hydratedBytes: number; readonly fetchedBytes: number; readonly zeroBytes: number } {
    const [fetchedBytes, zeroBytes] = [this.#fetchedBytes, this.#zeroBytes];
    return { hydratedBytes: fetchedBytes + zeroBytes, fetchedBytes, zeroBytes };
  }

  get elapsedMs(): number {
    return (this.#endMs ?? this.#clock.nowMs()) - this.#startMs;
  }

  add(kind: "data" | "zero", bytes: number): void {
    const nowMs = this.#clock.nowMs();
    this.#growth.add(bytes, nowMs);
    if (kind === "zero") {
      this.#zeroBytes += bytes;
      return;
    }
    this.#fetchedBytes += bytes;
    this.#wire.add(bytes, nowMs);
  }

  /** After a stop the average begins anew. */
  restart(): void {
    this.#wire.restart(this.#clock.nowMs());
    this.#growth.restart(this.#clock.nowMs());
  }

  /** No time passes any more. */
  stop(): void {
    this.#endMs ??= this.#clock.nowMs();
  }

  rates(missingBytes: number): { bytesPerSecond: number; etaMs?: number } {
    const nowMs = this.#clock.nowMs();
    const growth = this.#growth.bytesPerSecond(nowMs);
    const bytesPerSecond = Math.round(this.#wire.bytesPerSecond(nowMs));
    if (growth === 0) return { bytesPerSecond };
    return { bytesPerSecond, etaMs: Math.round((missingBytes / growth) * 1000) };
  }
}
