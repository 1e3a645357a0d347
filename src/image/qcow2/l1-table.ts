/** The entries of an L1 table, in four bytes each as long as the file is not so large that they need eight. */

/** Stands for an entry that is wrong. */
const WRONG = 2 ** 32 - 1;

export class L1Table {
  readonly length: number;
  readonly #clusterBytes: number;
  /** Twice the number of the table's cluster, plus the flag. */
  #short: Uint32Array | undefined;
  #long: Float64Array | undefined;

  /** All entries are 0. */
  constructor(length: number, clusterBytes: number) {
    this.length = length;
    this.#clusterBytes = clusterBytes;
    this.#short = new Uint32Array(length);
  }

  get heldBytes(): number {
    return (this.#short ?? this.#long ?? []).length * (this.#short === undefined ? 8 : 4);
  }

  /** 0: no table; NaN: wrong. Otherwise its offset, plus 1 if that was set. */
  get(index: number): number {
    if (this.#short === undefined) return this.#long?.[index] ?? 0;
    const word = this.#short[index] ?? 0;
    if (word === WRONG) return Number.NaN;
    return (word >>> 1) * this.#clusterBytes + (word & 1);
  }

  /** `value`: as `get` tells it; the offset is one of a cluster. */
  set(index: number, value: number): void {
    const flag = value % 2;
    const word = Number.isNaN(value) ? WRONG : (2 * (value - flag)) / this.#clusterBytes + flag;
    if (word >= WRONG && !Number.isNaN(value)) this.#lengthen();
    if (this.#short !== undefined) this.#short[index] = word;
    else if (this.#long !== undefined) this.#long[index] = value;
  }

  #lengthen(): void {
    if (this.#short === undefined) return;
    this.#long = Float64Array.from({ length: this.length }, (_, index) => this.get(index));
    this.#short = undefined;
  }
}
