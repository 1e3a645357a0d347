/**
 * How long guests' reads waited for what was missing, as a histogram whose buckets grow by an eighth: quantiles are exact
 * to that, in constant memory. Milliseconds.
 */

export interface StallTimes {
  readonly count: number;
  /** All of it together; reads that wait side by side each count. */
  readonly totalMs: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

const SHORTEST_MS = 0.05;
const GROWTH = 1.125;
/** The last bucket begins at about a day. */
const BUCKETS = 182;

export class StallHistogram {
  readonly #counts = new Uint32Array(BUCKETS);
  #count = 0;
  #totalMs = 0;
  #maxMs = 0;

  add(ms: number): void {
    const bucket = ms <= SHORTEST_MS ? 0 : Math.ceil(Math.log(ms / SHORTEST_MS) / Math.log(GROWTH));
    const at = Math.min(BUCKETS - 1, bucket);
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.#count += 1;
    this.#totalMs += ms;
    this.#maxMs = Math.max(this.#maxMs, ms);
  }

  summary(): StallTimes {
    const p50Ms = this.#quantile(0.5);
    return { count: this.#count, totalMs: this.#totalMs, p50Ms, p99Ms: this.#quantile(0.99), maxMs: this.#maxMs };
  }

  /** The upper end of the bucket that holds it, and never more than the longest. */
  #quantile(part: number): number {
    if (this.#count === 0) return 0;
    let left = Math.ceil(this.#count * part);
    for (const [bucket, count] of this.#counts.entries()) {
      left -= count;
      if (left <= 0) return Math.min(this.#maxMs, SHORTEST_MS * GROWTH ** bucket);
    }
    return this.#maxMs;
  }
}
