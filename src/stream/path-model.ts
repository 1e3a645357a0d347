/** What a path looks like, from what went over it lately: its round-trip time without a queue, and its rate. */

/** The smallest round trip lately. Two periods are kept: an increase is believed once both began after it. */
export class MinRtt {
  #before = Infinity;
  #now = Infinity;

  /** Milliseconds; Infinity: nothing is known. */
  get ms(): number {
    return Math.min(this.#before, this.#now);
  }

  add(rttMs: number): void {
    if (rttMs < this.#now) this.#now = rttMs;
  }

  /** A new period begins. */
  turn(): void {
    this.#before = this.#now;
    this.#now = Infinity;
  }

  /** The path is another one. */
  restart(rttMs = Infinity): void {
    this.#before = Infinity;
    this.#now = rttMs;
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
