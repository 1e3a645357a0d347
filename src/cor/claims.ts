/**
 * Who is fetching what. A fetch holds no lock while it waits for the network; it holds a claim on its clusters. Whoever
 * makes a cluster local voids every claim on it, and a reply is stored only where its claim is still good: checked and
 * written under one hold of the clusters' lock.
 */
export class Claim {
  readonly first: number;
  readonly count: number;
  readonly #good: Uint8Array;

  constructor(first: number, count: number) {
    this.first = first;
    this.count = count;
    this.#good = new Uint8Array(count).fill(1);
  }

  isGood(cluster: number): boolean {
    return this.#good[cluster - this.first] === 1;
  }

  void(first: number, last: number): void {
    const start = Math.max(first - this.first, 0);
    const end = Math.min(last + 1 - this.first, this.count);
    if (start < end) this.#good.fill(0, start, end);
  }
}

export class Claims {
  readonly #held = new Set<Claim>();

  get count(): number {
    return this.#held.size;
  }

  /** To be given back with `release` exactly once. */
  take(first: number, count: number): Claim {
    const claim = new Claim(first, count);
    this.#held.add(claim);
    return claim;
  }

  release(claim: Claim): void {
    this.#held.delete(claim);
  }

  void(first: number, last: number): void {
    for (const claim of this.#held) claim.void(first, last);
  }

  /** For a backing that is about to change: nothing that is on its way may be stored. */
  voidAll(): void {
    this.void(0, Infinity);
  }
}
