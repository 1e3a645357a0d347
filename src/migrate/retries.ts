/**
 * What has to be written down in the end, whatever the disk says now: it is done in the line of its side, and while it
 * fails, done again, at growing intervals. The line is free in between, so every job looks first whether it is still wanted.
 */
import type { Clock, Timer } from "../env/clock.ts";
import type { Serial } from "./serial.ts";

const FIRST_MS = 250;
/** Somebody has just made room, and waits. */
const LATER_MS_MAX = 10_000;

export interface RetriesOptions {
  readonly clock: Pick<Clock, "setTimer">;
  readonly line: Serial;
  /** It has failed, and comes again. Must not throw. */
  readonly onFailure: (error: unknown) => void;
}

interface Waiting {
  readonly delayMs: number;
  readonly timer: Timer;
}

export class Retries {
  readonly #options: RetriesOptions;
  readonly #waiting = new Map<string, Waiting>();
  #stopped = false;

  constructor(options: RetriesOptions) {
    this.#options = options;
  }

  /**
   * In the line: does it now. Resolves to whether it is done; if not, it comes again by itself. Of one name there is one job:
   * the latest. Never rejects.
   */
  async attempt(name: string, job: () => Promise<void>): Promise<boolean> {
    const before = this.#waiting.get(name);
    before?.timer.cancel();
    try {
      await job();
      this.#waiting.delete(name);
      return true;
    } catch (error) {
      if (!this.#stopped) this.#again(name, job, Math.min(LATER_MS_MAX, 2 * (before?.delayMs ?? FIRST_MS / 2)));
      this.#options.onFailure(error);
      return false;
    }
  }

  /** Nothing comes again. What is in the line by now may still be done. */
  stop(): void {
    this.#stopped = true;
    for (const { timer } of this.#waiting.values()) timer.cancel();
    this.#waiting.clear();
  }

  #again(name: string, job: () => Promise<void>, delayMs: number): void {
    const { clock, line } = this.#options;
    const timer = clock.setTimer(delayMs, () => {
      void line.run(async () => {
        // Meanwhile it may have been done, or begun anew, at somebody else's wish.
        if (!this.#stopped && this.#waiting.get(name)?.timer === timer) await this.attempt(name, job);
      });
    });
    this.#waiting.set(name, { delayMs, timer });
  }
}
