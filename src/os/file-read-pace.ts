/**
 * When a long read may be tried on the event loop's own thread. A cached one takes 50 µs for 256 KiB. But when a file is
 * read for the first time, the kernel starts reading ahead within the very call that was not to wait, and that alone can
 * take a millisecond (seen: 0.3–1 ms, with 8 MiB of read-ahead), for which everybody else waits too. So after a slow long
 * read the next ones go to the thread pool, for so long that slow ones take half a per cent of the time at most: then they
 * do not decide anybody's 99th percentile.
 */

/** Shorter reads take 10 µs even when they miss. */
const LONG_BYTES = 64 * 1024;
const SLOW_READ_MS = 0.3;
const BACK_OFF_FACTOR = 200;

export class ReadPace {
  readonly #nowMs: () => number;
  #notBeforeMs = 0;
  #startMs = 0;

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /** Whether a read of `length` bytes may be tried now. If so, `ended` must follow. */
  begins(length: number): boolean {
    if (length < LONG_BYTES) return true;
    this.#startMs = this.#nowMs();
    return this.#startMs >= this.#notBeforeMs;
  }

  ended(length: number): void {
    if (length < LONG_BYTES) return;
    const endMs = this.#nowMs();
    const tookMs = endMs - this.#startMs;
    if (tookMs > SLOW_READ_MS) this.#notBeforeMs = endMs + tookMs * BACK_OFF_FACTOR;
  }
}
