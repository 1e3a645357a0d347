/**
 * The stages that an instance has reached, and whoever waits for one. A stage once reached stays reached, unless the
 * instance begins anew (a source whose migration was called off).
 */
import type { Clock } from "../env/clock.ts";
import { ControlError } from "./errors.ts";
import type { EventHub } from "./event-hub.ts";
import type { VerbRegistry } from "./registry.ts";
import { type Milestone, VERBS } from "./verbs.ts";

export interface MilestonesOptions {
  readonly clock: Clock;
  /** Those that this kind of instance can come to. Waiting for another one is refused. */
  readonly possible: readonly Milestone[];
  /** Told of each one that is reached, as an event of its name. */
  readonly events: EventHub;
}

export class Milestones {
  readonly #options: MilestonesOptions;
  readonly #reached = new Set<Milestone>();
  readonly #waiting = new Map<() => void, Milestone>();

  constructor(options: MilestonesOptions) {
    this.#options = options;
  }

  get reached(): Milestone[] {
    return [...this.#reached];
  }

  /** Idempotent. */
  reach(milestone: Milestone): void {
    if (!this.#options.possible.includes(milestone)) throw new Error(`this instance never comes to be ${milestone}`);
    if (this.#reached.has(milestone)) return;
    this.#reached.add(milestone);
    this.#options.events.publish(milestone);
    for (const [wake, wanted] of [...this.#waiting]) if (wanted === milestone) wake();
  }

  /** It begins anew, and is there no more. Idempotent. */
  forget(...milestones: readonly Milestone[]): void {
    for (const milestone of milestones) this.#reached.delete(milestone);
  }

  /** Resolves to whether it was reached within `timeoutMs` (null: no limit). Rejects when `signal` is aborted first. */
  async wait(milestone: Milestone, timeoutMs: number | null, signal: AbortSignal): Promise<boolean> {
    const { clock, possible } = this.#options;
    if (!possible.includes(milestone)) {
      throw new ControlError(
        "never",
        `this instance never comes to be ${milestone}`,
        `it can be: ${possible.join(", ")}`,
      );
    }
    if (this.#reached.has(milestone)) return true;
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = (): void => reject(signal.reason);
    const timer = timeoutMs === null ? undefined : clock.setTimer(timeoutMs, resolve);
    this.#waiting.set(resolve, milestone);
    signal.addEventListener("abort", onAbort);
    try {
      await promise;
      return this.#reached.has(milestone);
    } finally {
      timer?.cancel();
      this.#waiting.delete(resolve);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Adds the verb `wait`. */
  registerVerbs(registry: VerbRegistry): void {
    registry.register("wait", VERBS.wait, async (params, { signal }) => ({
      reached: await this.wait(params.for, params.timeoutMs, signal),
    }));
  }
}
