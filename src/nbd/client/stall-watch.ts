/**
 * Notices a server that has gone silent: something is expected and nothing has moved for the time allowed. NBD has no
 * ping, and a slow disk is not a fault, so this is off unless the caller sets a time.
 */
import type { Clock, Timer } from "../../env/clock.ts";

export class StallWatch {
  readonly #clock: Clock;
  readonly #silenceMsMax: number;
  readonly #onStall: (silentMs: number) => void;
  #timer: Timer | undefined;
  #movedMs = 0;

  constructor(clock: Clock, silenceMsMax: number, onStall: (silentMs: number) => void) {
    this.#clock = clock;
    this.#silenceMsMax = silenceMsMax;
    this.#onStall = onStall;
  }

  /** Bytes have come or gone. */
  moved(): void {
    this.#movedMs = this.#clock.nowMs();
  }

  /** Something is expected from now on. */
  start(): void {
    if (this.#timer !== undefined) return;
    this.moved();
    this.#wait(this.#silenceMsMax);
  }

  /** Nothing is expected any more. Idempotent. */
  stop(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #wait(ms: number): void {
    this.#timer = this.#clock.setTimer(ms, () => {
      const silentMs = this.#clock.nowMs() - this.#movedMs;
      if (silentMs < this.#silenceMsMax) {
        // A timer shorter than the clock's step would fire in no time, again and again.
        this.#wait(Math.max(1, this.#silenceMsMax - silentMs));
        return;
      }
      this.#timer = undefined;
      this.#onStall(silentMs);
    });
  }
}
