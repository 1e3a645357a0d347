/**
 * Which bytes of one READ have arrived. A reply counts only when its chunks cover the request once, without a gap.
 * proto.md, "Request types", NBD_CMD_READ, "Structured replies".
 */

/**
 * Islands of arrived bytes that are kept apart. A server that sends chunks in order needs one; one that scatters them
 * may have many, but what a hostile one can make us keep must end somewhere.
 */
export const ISLANDS_MAX = 16_384;

export type CoverageResult = "added" | "overlap" | "too-scattered";

export class ReadCoverage {
  readonly #length: number;
  /** start, end, start, end, …: ascending, disjoint, never touching. Absent until a chunk is not the whole. */
  #bounds: number[] | undefined;
  #covered = 0;

  constructor(length: number) {
    this.#length = length;
  }

  get complete(): boolean {
    return this.#covered === this.#length;
  }

  /** [start, end) is relative to the request and within it, and not empty. */
  add(start: number, end: number): CoverageResult {
    if (this.#covered === 0 && end - start === this.#length) {
      this.#covered = this.#length;
      return "added";
    }
    if (this.complete) return "overlap";
    this.#bounds ??= [];
    return this.#insert(this.#bounds, start, end);
  }

  #insert(bounds: number[], start: number, end: number): CoverageResult {
    const at = firstEndingAtOrAfter(bounds, start);
    // bounds[at], bounds[at + 1]: the first island that ends at `start` or behind it.
    const touchesLeft = bounds[at + 1] === start;
    const next = touchesLeft ? at + 2 : at;
    const nextStart = bounds[next];
    if (nextStart !== undefined && nextStart < end) return "overlap";
    const touchesRight = nextStart === end;
    if (touchesLeft && touchesRight) bounds.splice(at + 1, 2);
    else if (touchesLeft) bounds[at + 1] = end;
    else if (touchesRight) bounds[next] = start;
    else if (bounds.length >= 2 * ISLANDS_MAX) return "too-scattered";
    else bounds.splice(at, 0, start, end);
    this.#covered += end - start;
    return "added";
  }
}

/** Index, even, of the first island whose end is ≥ `start`; the length when there is none. */
function firstEndingAtOrAfter(bounds: readonly number[], start: number): number {
  let low = 0;
  let high = bounds.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((bounds[2 * middle + 1] ?? 0) < start) low = middle + 1;
    else high = middle;
  }
  return 2 * low;
}
