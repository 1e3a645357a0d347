/**
 * Locks on byte ranges: many may share a range, one may have it alone. Granted in order of asking, so nobody starves:
 * a lock waits also for conflicting ones that wait already.
 */
import { BlockError } from "../../block/error.ts";

/** Locks that may wait; more are refused. */
const WAITING_MAX = 16_384;

export interface RangeHold {
  readonly start: number;
  readonly end: number;
  readonly alone: boolean;
}

export interface RangeLocking {
  /** Resolves once [start, end) is held; hand the result to `release`. */
  acquire(start: number, end: number, alone: boolean): Promise<RangeHold>;
  release(hold: RangeHold): void;
}

interface Waiter extends RangeHold {
  readonly grant: () => void;
}

export class RangeLock implements RangeLocking {
  readonly #held = new Set<RangeHold>();
  #waiting: Waiter[] = [];

  async acquire(start: number, end: number, alone: boolean): Promise<RangeHold> {
    const hold = { start, end, alone };
    if (!this.#conflicts(hold, this.#held) && !this.#conflicts(hold, this.#waiting)) {
      this.#held.add(hold);
      return hold;
    }
    if (this.#waiting.length >= WAITING_MAX) throw new BlockError("no-memory", "too many writes wait for one another");
    return await new Promise((resolve) => {
      const waiter: Waiter = { ...hold, grant: () => resolve(waiter) };
      this.#waiting.push(waiter);
    });
  }

  release(hold: RangeHold): void {
    this.#held.delete(hold);
    const still: Waiter[] = [];
    for (const waiter of this.#waiting) {
      if (this.#conflicts(waiter, this.#held) || this.#conflicts(waiter, still)) {
        still.push(waiter);
      } else {
        this.#held.add(waiter);
        waiter.grant();
      }
    }
    this.#waiting = still;
  }

  #conflicts(hold: RangeHold, others: Iterable<RangeHold>): boolean {
    for (const other of others) {
      if (hold.start < other.end && other.start < hold.end && (hold.alone || other.alone)) return true;
    }
    return false;
  }
}
