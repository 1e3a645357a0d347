/** A bounded first-in-first-out line. Taking is cheap however long the line is. */
export class WaitingLine<T> {
  readonly #lengthMax: number;
  #items: (T | undefined)[] = [];
  #first = 0;

  constructor(lengthMax: number) {
    this.#lengthMax = lengthMax;
  }

  get length(): number {
    return this.#items.length - this.#first;
  }

  /** False when the line is full. */
  join(item: T): boolean {
    if (this.length >= this.#lengthMax) return false;
    this.#items.push(item);
    return true;
  }

  take(): T | undefined {
    const item = this.#items[this.#first];
    if (this.#first >= this.#items.length) return undefined;
    this.#items[this.#first] = undefined;
    this.#first++;
    // The taken front is given back once it is the larger part.
    if (this.#first * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#first);
      this.#first = 0;
    }
    return item;
  }
}
