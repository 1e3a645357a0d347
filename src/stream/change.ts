/**
 * Waiting for a condition: whoever waits looks, waits for the next change, and looks again. Nobody is woken for a change
 * that came before it began to wait, so the look and the call of `next` must come without an `await` between them.
 */
export class Change {
  #next = Promise.withResolvers<void>();

  /** Resolves at the next `notify`. */
  next(): Promise<void> {
    return this.#next.promise;
  }

  notify(): void {
    const { resolve } = this.#next;
    this.#next = Promise.withResolvers<void>();
    resolve();
  }
}
