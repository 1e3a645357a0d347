/**
 * A path of one bottleneck, in virtual time: a request travels for half the round trip, its answer waits behind those
 * before it, passes at the rate, and travels for the other half. Something else may use the bottleneck too.
 */
import type { Clock } from "../../../src/env/clock.ts";
import type { Scheduler } from "../../sim/scheduler.ts";

export interface PathShape {
  readonly rttMs: number;
  readonly bytesPerMs: number;
}

export class ModelledPath {
  shape: PathShape;
  readonly #scheduler: Scheduler;
  #freeMs = 0;
  #lastMs = 0;
  deliveredBytes = 0;

  constructor(scheduler: Scheduler, shape: PathShape) {
    this.#scheduler = scheduler;
    this.shape = shape;
  }

  /** How long a byte that reaches the bottleneck now would wait for it. */
  get queueMs(): number {
    return Math.max(0, this.#freeMs - this.#scheduler.nowMs);
  }

  /** Resolves when the answer, of so many bytes, is here. */
  request(bytes: number): Promise<void> {
    const scheduler = this.#scheduler;
    return new Promise((resolve) => {
      scheduler.after(this.shape.rttMs / 2, "asked", () => {
        const { rttMs, bytesPerMs } = this.shape;
        this.#freeMs = Math.max(this.#freeMs, scheduler.nowMs) + bytes / bytesPerMs;
        // Answers of one stream do not overtake each other.
        this.#lastMs = Math.max(this.#lastMs, this.#freeMs + rttMs / 2);
        scheduler.after(this.#lastMs - scheduler.nowMs, "answered", () => {
          this.deliveredBytes += bytes;
          resolve();
        });
      });
    });
  }
}

export type PathClock = Pick<Clock, "nowMs">;
