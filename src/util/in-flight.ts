/**
 * Counts the operations that are under way, so that closing can wait for them. Nothing is allocated per operation:
 * `if (!inFlight.enter()) throw …; try { … } finally { inFlight.leave(); }`.
 */
export class InFlight {
  #count = 0;
  #closed = false;
  #drained: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  get count(): number {
    return this.#count;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** False once `close` was called: the operation must not start. */
  enter(): boolean {
    if (this.#closed) return false;
    this.#count += 1;
    return true;
  }

  /** Exactly once for every `enter` that returned true. */
  leave(): void {
    this.#count -= 1;
    if (this.#count === 0) this.#drained?.();
  }

  /** Refuses later operations; resolves when those under way have left. Idempotent. */
  close(): Promise<void> {
    this.#closed = true;
    this.#closing ??= this.#count === 0 ? Promise.resolve() : new Promise((resolve) => (this.#drained = resolve));
    return this.#closing;
  }
}
