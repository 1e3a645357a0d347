/**
 * Writes in place that are under way. They hold no lock: whoever makes a cluster a zero cluster that keeps its place waits
 * for those that were begun before, so that none of them lands behind the entry and is seen when the place is used again.
 */
interface Active {
  readonly offset: number;
  readonly end: number;
  readonly done: Promise<void>;
}

export class InPlaceWrites {
  readonly #active = new Set<Active>();

  /** `offset`: in the file. To be called in the same turn in which the table was looked up. */
  async run(offset: number, length: number, act: () => Promise<void>): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const mine = { offset, end: offset + length, done: promise };
    this.#active.add(mine);
    try {
      await act();
    } finally {
      this.#active.delete(mine);
      resolve();
    }
  }

  /** Resolves when none that is under way now touches the range any more. */
  async drained(offset: number, length: number): Promise<void> {
    const those = [...this.#active].filter((one) => one.offset < offset + length && offset < one.end);
    for (const { done } of those) await done;
  }
}
