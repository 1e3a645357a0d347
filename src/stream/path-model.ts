/** What a path looks like, from what went over it lately: its round-trip time without a queue, and its rate. */

/** A while in which the window stays the same, and what was seen of it. */
export interface Round {
  readonly startMs: number;
  samples: number;
  shortestMs: number;
  /** Also of what was sent while the window was not used. */
  shortestOfAllMs: number;
  bytes: number;
}

export function newRound(startMs: number): Round {
  return { startMs, samples: 0, shortestMs: Infinity, shortestOfAllMs: Infinity, bytes: 0 };
}

/** The smallest round trip lately. Two periods are kept: an increase is believed once both began after it. */
export class MinRtt {
  #before = Infinity;
  #now = Infinity;

  /** Milliseconds; Infinity: nothing is known. */
  get ms(): number {
    return Math.min(this.#before, this.#now);
  }

  /** Counts for nothing less than 0. */
  add(rttMs: number): void {
    this.#now = Math.min(this.#now, Math.max(0, rttMs));
  }

  /** A new period begins. */
  turn(): void {
    this.#before = this.#now;
    this.#now = Infinity;
  }

  /** The path is another one. */
  restart(rttMs = Infinity): void {
    this.#before = Infinity;
    this.#now = Math.max(0, rttMs);
  }
}

const RATES_KEPT = 10;
const RATE_AGE_MS = 700;

/** The highest delivery rate of the last rounds. */
export class MaxRate {
  #rates: { readonly atMs: number; readonly rate: number }[] = [];

  /** Bytes per millisecond; 0: nothing is known. */
  get bytesPerMs(): number {
    let most = 0;
    for (const { rate } of this.#rates) if (rate > most) most = rate;
    return most;
  }

  add(nowMs: number, bytesPerMs: number): void {
    this.#rates.push({ atMs: nowMs, rate: bytesPerMs });
    while (this.#rates.length > RATES_KEPT || nowMs - (this.#rates[0]?.atMs ?? nowMs) > RATE_AGE_MS)
      this.#rates.shift();
  }

  restart(): void {
    this.#rates = [];
  }
}
