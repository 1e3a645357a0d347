/** How evenly the guest's counter runs, as one sees it from outside. The guest counts ten times a second, without its disk. */
import type { Clock } from "../../env/clock.ts";
import type { GuestEvent } from "./guest-log.ts";

export class TickWatch {
  readonly #clock: Clock;
  #lastMs: number | undefined;
  #longestMs = 0;
  count = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  onEvent(event: GuestEvent): void {
    if (event.kind !== "tick") return;
    const now = this.#clock.nowMs();
    if (this.#lastMs !== undefined) this.#longestMs = Math.max(this.#longestMs, now - this.#lastMs);
    this.#lastMs = now;
    this.count = event.number;
  }

  /** Between two counts since this was asked last; one that is not over counts as long as it is. */
  takeLongestMs(): number {
    const now = this.#clock.nowMs();
    const longestMs = Math.max(this.#longestMs, now - (this.#lastMs ?? now));
    this.#longestMs = 0;
    return longestMs;
  }
}
