/**
 * The windows of a file that a check goes through, one after the other: its clusters are looked at window by window, so that
 * what is known of each of them fits into bounded memory. What lies before a window is done with; of what lies behind it,
 * the first place that needs a window is remembered and no more, since every pass comes across all of them again.
 */
export class Windows {
  /** The present window. */
  first = 0;
  end: number;
  #next = Infinity;
  #length: number;

  constructor(length: number) {
    this.#length = length;
    this.end = length;
  }

  has(cluster: number): boolean {
    return cluster >= this.first && cluster < this.end;
  }

  /** [first, end) is to be looked at, in whatever windows. */
  need(first: number, end: number): void {
    if (end > this.end) this.#next = Math.min(this.#next, Math.max(first, this.end));
  }

  /** The present window is to be this long, and so is every later one; what it has met so far is to be met again. */
  resize(length: number): void {
    this.#length = length;
    this.end = this.first + length;
    this.#next = Infinity;
  }

  /** Goes on to the next window that needs it; false when there is none. */
  advance(): boolean {
    if (this.#next === Infinity) return false;
    this.first = this.#next;
    this.end = this.first + this.#length;
    this.#next = Infinity;
    return true;
  }
}
