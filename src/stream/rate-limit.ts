/**
 * A limit on bytes per second: a bucket that fills at the rate and holds what `BURST_MS` bring. A request passes unless the
 * bucket is overdrawn, and may overdraw it: those behind it then wait. So requests of any size pass, a timer that fires
 * late costs nothing, and over a long time the rate is exact. First come, first served. A new rate holds at once, also for those who wait.
 */
import type { Clock, Timer } from "../env/clock.ts";

const BURST_MS = 100;
/** Times are fractions; an amount this small is a rounding error. */
const TOLERANCE_BYTES = 1;

interface Waiting {
  readonly bytes: number;
  readonly admit: () => void;
}

export class RateLimiter {
  readonly #clock: Clock;
  /** At most as many as callers have fetches: they bound it. */
  readonly #waiting: Waiting[] = [];
  #rate: number | undefined;
  #tokens = 0;
  #filledMs: number;
  #timer: Timer | undefined;

  /** `bytesPerSecond` undefined: no limit. */
  constructor(clock: Clock, bytesPerSecond?: number) {
    this.#clock = clock;
    this.#filledMs = clock.nowMs();
    this.setRate(bytesPerSecond);
  }

  /** Bytes per second; undefined: no limit. */
  get rate(): number | undefined {
    return this.#rate;
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Throws `RangeError` unless the rate is above zero: whoever wants to stop, stops. */
  setRate(bytesPerSecond: number | undefined): void {
    if (bytesPerSecond !== undefined && !(bytesPerSecond > 0)) {
      throw new RangeError(`${bytesPerSecond} bytes per second is no rate`);
    }
    this.#fill();
    this.#rate = bytesPerSecond;
    // A full bucket begins with no more than the new rate allows, and no debt outlives the limit.
    this.#tokens = bytesPerSecond === undefined ? 0 : Math.min(this.#tokens, this.#capacity);
    this.#admit();
  }

  /** Resolves when `bytes` may be sent. Rejects with the signal's reason, having taken nothing. */
  take(bytes: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
        this.#admit();
        reject(signal?.reason);
      };
      const admit = (): void => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      };
      const waiting: Waiting = { bytes, admit };
      this.#waiting.push(waiting);
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#admit();
    });
  }

  get #capacity(): number {
    return ((this.#rate ?? 0) * BURST_MS) / 1000;
  }

  #fill(): void {
    const nowMs = this.#clock.nowMs();
    const gained = ((this.#rate ?? 0) * (nowMs - this.#filledMs)) / 1000;
    this.#tokens = Math.min(this.#capacity, this.#tokens + gained);
    this.#filledMs = nowMs;
  }

  #admit(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#fill();
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      if (this.#rate !== undefined) {
        const lacking = -this.#tokens;
        if (lacking > TOLERANCE_BYTES) {
          // Whole milliseconds: a shorter wait could be too short for the clock to move.
          this.#timer = this.#clock.setTimer(Math.ceil((lacking * 1000) / this.#rate), () => this.#admit());
          return;
        }
        this.#tokens -= first.bytes;
      }
      this.#waiting.shift();
      first.admit();
    }
  }
}
