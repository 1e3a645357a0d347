/** The machine's clocks and timers. */
import { performance } from "node:perf_hooks";
import type { Clock, Timer } from "../env/clock.ts";

/** Node fires at once, instead of late, when a delay does not fit 31 bits. */
const DELAY_MS_MAX = 2 ** 31 - 1;

export const realClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  setTimer: (delayMs, fire) => new RealTimer(delayMs, fire),
};

class RealTimer implements Timer {
  #handle: NodeJS.Timeout;
  #restMs: number;
  readonly #fire: () => void;

  constructor(delayMs: number, fire: () => void) {
    this.#restMs = delayMs;
    this.#fire = fire;
    this.#handle = this.#wait();
  }

  cancel(): void {
    clearTimeout(this.#handle);
  }

  #wait(): NodeJS.Timeout {
    const stepMs = Math.min(this.#restMs, DELAY_MS_MAX);
    this.#restMs -= stepMs;
    return setTimeout(() => {
      if (this.#restMs > 0) this.#handle = this.#wait();
      else this.#fire();
    }, stepMs);
  }
}
