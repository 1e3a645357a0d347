/**
 * Locks over ranges of whole numbers. A range is taken whole or not at all, and in the order of asking among those that
 * overlap: nobody holds a part while it waits for another, so there is no deadlock, and nobody is overtaken for ever.
 */
interface Holder {
  readonly first: number;
  readonly last: number;
  /** Set while it waits. */
  grant: (() => void) | undefined;
}

export class RangeLock {
  /** Holders and waiters, in the order of asking. */
  #line: Holder[] = [];

  /** Nobody holds or waits for any part of [first, last]. */
  isFree(first: number, last: number): boolean {
    return !this.#line.some((other) => other.first <= last && first <= other.last);
  }

  /** Resolves to the function that gives [first, last] back, to be called exactly once. */
  async take(first: number, last: number): Promise<() => void> {
    const mine: Holder = { first, last, grant: undefined };
    const wait = !this.isFree(first, last);
    this.#line.push(mine);
    if (wait) await new Promise<void>((resolve) => (mine.grant = resolve));
    return () => this.#giveBack(mine);
  }

  #giveBack(mine: Holder): void {
    this.#line = this.#line.filter((other) => other !== mine);
    for (const [index, waiter] of this.#line.entries()) {
      const { grant, first, last } = waiter;
      if (grant === undefined || !(first <= mine.last && mine.first <= last)) continue;
      const blocked = this.#line.slice(0, index).some((other) => other.first <= last && first <= other.last);
      if (blocked) continue;
      waiter.grant = undefined;
      grant();
    }
  }
}
