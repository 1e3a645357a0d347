/**
 * What is hydrated before everything else. Hydration goes through the disk from the first cluster to the last; before each
 * unit it asks its orders, one after the other, whether something else comes first. What they name may be local already.
 */
import type { ClusterRange } from "./cluster-range.ts";

export interface Order {
  /** The next range, none again before everything else was named; undefined: nothing at the moment. */
  next(): ClusterRange | undefined;
}

/** Bytes that somebody will want. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** Ranges in the order given. */
export class ListedOrder implements Order {
  readonly #ranges: readonly ByteRange[];
  readonly #clusterBytes: number;
  readonly #sizeBytes: number;
  #at = 0;

  constructor(ranges: readonly ByteRange[], disk: { readonly clusterBytes: number; readonly sizeBytes: number }) {
    this.#ranges = ranges;
    this.#clusterBytes = disk.clusterBytes;
    this.#sizeBytes = disk.sizeBytes;
  }

  next(): ClusterRange | undefined {
    for (let range = this.#ranges[this.#at]; range !== undefined; range = this.#ranges[this.#at]) {
      this.#at += 1;
      const end = Math.min(range.offset + range.length, this.#sizeBytes);
      if (range.offset >= end) continue;
      const first = Math.floor(range.offset / this.#clusterBytes);
      return { first, count: Math.ceil(end / this.#clusterBytes) - first };
    }
    return undefined;
  }
}
