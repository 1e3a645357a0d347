/**
 * What allocating writes pass through. While somebody holds the gate none of them is inside and new ones wait: for the
 * table check (the *barrier*), or for the moment in which a dirty flag is cleared.
 */

/** The tables behind the gate are no longer those of the image: begin again with the new ones. */
export class RetiredError extends Error {
  override readonly name = "RetiredError";
}

export interface GateStatus {
  /** Requests that wait now. */
  readonly waiting: number;
  /** The longest that any request has waited, those that still wait included. */
  readonly longestWaitMs: number;
}

export class Gate {
  readonly #nowMs: () => number;
  #inside = 0;
  #holds = 0;
  #retired = false;
  #opened: PromiseWithResolvers<void> | undefined;
  #emptied: PromiseWithResolvers<void> | undefined;
  /** When each of those who wait came, the first first. */
  readonly #waiting = new Set<{ readonly sinceMs: number }>();
  #longestWaitMs = 0;

  constructor(nowMs: () => number = () => 0) {
    this.#nowMs = nowMs;
  }

  get status(): GateStatus {
    const [oldest] = this.#waiting;
    const current = oldest === undefined ? 0 : this.#nowMs() - oldest.sinceMs;
    return { waiting: this.#waiting.size, longestWaitMs: Math.max(this.#longestWaitMs, current) };
  }

  /** Resolves inside; `leave` is to be called exactly once. Rejects with `RetiredError`. */
  async enter(): Promise<void> {
    if (this.#holds > 0 && !this.#retired) await this.#wait();
    if (this.#retired) throw new RetiredError("the tables were dropped");
    this.#inside += 1;
  }

  leave(): void {
    this.#inside -= 1;
    if (this.#inside === 0) this.#emptied?.resolve();
  }

  /** Resolves when nobody is inside. Holds add up; each ends with `release`. */
  async hold(): Promise<void> {
    this.#holds += 1;
    while (this.#inside > 0) {
      this.#emptied ??= Promise.withResolvers();
      await this.#emptied.promise;
      this.#emptied = undefined;
    }
  }

  release(): void {
    this.#holds -= 1;
    if (this.#holds === 0) this.#open();
  }

  /** Nobody enters any more, those who wait included; resolves when nobody is inside. */
  async retire(): Promise<void> {
    this.#retired = true;
    this.#open();
    await this.hold();
  }

  async #wait(): Promise<void> {
    const waiter = { sinceMs: this.#nowMs() };
    this.#waiting.add(waiter);
    while (this.#holds > 0 && !this.#retired) {
      this.#opened ??= Promise.withResolvers();
      await this.#opened.promise;
    }
    this.#waiting.delete(waiter);
    this.#longestWaitMs = Math.max(this.#longestWaitMs, this.#nowMs() - waiter.sinceMs);
  }

  #open(): void {
    this.#opened?.resolve();
    this.#opened = undefined;
  }
}
