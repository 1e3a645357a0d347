/** A clock that stands still until a test moves it. */
import type { Clock, Timer } from "../../../../src/env/clock.ts";

interface Waiting {
  readonly atMs: number;
  readonly fire: () => void;
}

export class ManualClock implements Clock {
  #nowMs = 1000;
  readonly #timers = new Set<Waiting>();

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#nowMs;
  }

  setTimer(delayMs: number, fire: () => void): Timer {
    const waiting = { atMs: this.#nowMs + delayMs, fire };
    this.#timers.add(waiting);
    return { cancel: () => void this.#timers.delete(waiting) };
  }

  /** Timers that would still fire. */
  get timers(): number {
    return this.#timers.size;
  }

  /** Moves time on; timers fire in order, each at its own time. */
  advance(ms: number): void {
    const endMs = this.#nowMs + ms;
    for (;;) {
      const due = [...this.#timers].filter((timer) => timer.atMs <= endMs).sort((a, b) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      this.#timers.delete(due);
      this.#nowMs = due.atMs;
      due.fire();
    }
    this.#nowMs = endMs;
  }
}
