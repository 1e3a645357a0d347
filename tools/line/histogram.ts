/** How long something took, in logarithmic buckets: quantiles within 5 %, in constant memory. Milliseconds. */

const LEAST_MS = 0.001;
const RATIO = 1.05;
const BUCKETS = 480; // up to 0.001 × 1.05^479 ms: four hours

export interface Quantiles {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  readonly mean: number;
}

export class Histogram {
  readonly #weights = new Float64Array(BUCKETS);
  #weight = 0;
  #sum = 0;
  #max = 0;

  add(ms: number, weight: number): void {
    const value = Math.max(0, ms);
    const bucket = value <= LEAST_MS ? 0 : Math.ceil(Math.log(value / LEAST_MS) / Math.log(RATIO));
    const index = Math.min(BUCKETS - 1, bucket);
    this.#weights[index] = (this.#weights[index] ?? 0) + weight;
    this.#weight += weight;
    this.#sum += value * weight;
    if (value > this.#max) this.#max = value;
  }

  quantiles(): Quantiles {
    const mean = this.#weight === 0 ? 0 : this.#sum / this.#weight;
    return { p50: this.#quantile(0.5), p99: this.#quantile(0.99), max: round(this.#max), mean: round(mean) };
  }

  reset(): void {
    this.#weights.fill(0);
    this.#weight = 0;
    this.#sum = 0;
    this.#max = 0;
  }

  /** The upper edge of the bucket that holds the quantile. */
  #quantile(fraction: number): number {
    let rest = this.#weight * fraction;
    if (rest === 0) return 0;
    for (let index = 0; index < BUCKETS; index++) {
      rest -= this.#weights[index] ?? 0;
      if (rest <= 0) return round(Math.min(this.#max, LEAST_MS * RATIO ** index));
    }
    return round(this.#max);
  }
}

function round(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
