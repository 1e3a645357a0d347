/** Bytes per second, as a moving average whose weights fall to 1/e in `windowMs`. Needs no timer. */
const WINDOW_MS_DEFAULT = 7000;
/** Below it, it is the tail of the average and not a transfer. */
const RATE_MIN = 1;

export class Throughput {
  readonly #windowMs: number;
  #rate = 0;
  #startMs: number;
  #lastMs: number;

  constructor(nowMs: number, windowMs = WINDOW_MS_DEFAULT) {
    this.#windowMs = windowMs;
    this.#startMs = nowMs;
    this.#lastMs = nowMs;
  }

  add(bytes: number, nowMs: number): void {
    this.#decay(nowMs);
    this.#rate += (bytes * 1000) / this.#windowMs;
  }

  /** What came before no longer counts: after a stop, the average begins anew. */
  restart(nowMs: number): void {
    this.#rate = 0;
    this.#startMs = nowMs;
    this.#lastMs = nowMs;
  }

  /** 0 when next to nothing has come for a while. */
  bytesPerSecond(nowMs: number): number {
    this.#decay(nowMs);
    // At the start the average still lacks the weight of a past that it has not seen.
    const seen = 1 - Math.exp(-Math.max(nowMs - this.#startMs, 1) / this.#windowMs);
    const rate = this.#rate / seen;
    return rate < RATE_MIN ? 0 : rate;
  }

  #decay(nowMs: number): void {
    this.#rate *= Math.exp(-(nowMs - this.#lastMs) / this.#windowMs);
    this.#lastMs = nowMs;
  }
}
