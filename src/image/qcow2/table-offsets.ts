/**
 * The entries of an L1 table or of a table of reference counts, in four bytes each as long as the file is not so large that
 * they need six.
 */

/** Stands for an entry that is wrong: all bits of a word are set, of both words if there are two. */
const WRONG = 2 ** 32 - 1;
const WRONG_HIGH = 2 ** 16 - 1;
const HIGH = 2 ** 32;

export class TableOffsets {
  readonly length: number;
  readonly #clusterBytes: number;
  /** Twice the number of the table's cluster, plus the flag: the lower 32 bits, and the upper ones once they are needed. */
  readonly #low: Uint32Array;
  #high: Uint16Array | undefined;

  /** All entries are 0. */
  constructor(length: number, clusterBytes: number) {
    this.length = length;
    this.#clusterBytes = clusterBytes;
    this.#low = new Uint32Array(length);
  }

  get heldBytes(): number {
    return this.#low.byteLength + (this.#high?.byteLength ?? 0);
  }

  /** 0: no table; NaN: wrong. Otherwise its offset, plus 1 if that was set. */
  get(index: number): number {
    const low = this.#low[index] ?? 0;
    if (this.#high === undefined) {
      if (low === WRONG) return Number.NaN;
      return (low >>> 1) * this.#clusterBytes + (low & 1);
    }
    const high = this.#high[index] ?? 0;
    if (high === WRONG_HIGH) return Number.NaN;
    return (high * (HIGH / 2) + (low >>> 1)) * this.#clusterBytes + (low & 1);
  }

  /** Where the table is, as a cluster of the file; 0: nowhere. */
  clusterAt(index: number): number {
    const low = this.#low[index] ?? 0;
    if (this.#high === undefined) return low === WRONG ? 0 : low >>> 1;
    const high = this.#high[index] ?? 0;
    return high === WRONG_HIGH ? 0 : high * (HIGH / 2) + (low >>> 1);
  }

  /** `value`: as `get` tells it; the offset is one of a cluster. */
  set(index: number, value: number): void {
    if (Number.isNaN(value)) {
      this.#low[index] = WRONG;
      if (this.#high !== undefined) this.#high[index] = WRONG_HIGH;
      return;
    }
    const offset = withoutFlag(value);
    const word = (2 * offset) / this.#clusterBytes + (value - offset);
    if (word >= WRONG && this.#high === undefined) this.#high = this.#lengthen();
    this.#low[index] = word;
    if (this.#high !== undefined) this.#high[index] = word / HIGH;
  }

  /** A copy with more entries; those are 0. */
  grown(length: number): TableOffsets {
    const grown = new TableOffsets(length, this.#clusterBytes);
    grown.#low.set(this.#low);
    if (this.#high !== undefined) {
      grown.#high = new Uint16Array(length);
      grown.#high.set(this.#high);
    }
    return grown;
  }

  #lengthen(): Uint16Array {
    const high = new Uint16Array(this.length);
    for (let at = this.#low.indexOf(WRONG); at !== -1; at = this.#low.indexOf(WRONG, at + 1)) high[at] = WRONG_HIGH;
    return high;
  }
}

/** The offset that `TableOffsets` has. Of numbers beyond 32 bits, a remainder takes long. */
export function withoutFlag(value: number): number {
  return 2 * Math.floor(value / 2);
}
