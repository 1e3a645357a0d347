/** First in, first out, without the cost of `Array.shift`. */

/** Used entries at the front are cut off when there are this many of them, and more than there are others. */
const DEAD_MAX = 64;

export class Fifo<T> {
  #entries: (T | undefined)[] = [];
  #head = 0;

  get first(): T | undefined {
    return this.#entries[this.#head];
  }

  push(entry: T): void {
    this.#entries.push(entry);
  }

  shift(): void {
    this.#entries[this.#head++] = undefined;
    if (this.#head < DEAD_MAX || this.#head * 2 < this.#entries.length) return;
    this.#entries = this.#entries.slice(this.#head);
    this.#head = 0;
  }

  /** Puts what `change` makes of each entry in its place. */
  replaceEach(change: (entry: T) => T): void {
    for (let index = this.#head; index < this.#entries.length; index++) {
      this.#entries[index] = change(this.#entries[index] as T);
    }
  }
}
