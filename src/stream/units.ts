/**
 * What hydration has to do, in the order in which it does it: units of missing clusters, from the first to the last. What
 * the source has as zeroes is found out by asking for its extents, in long strides, and becomes units of its own, which
 * are never fetched. A cluster counts as zeroes when all of it is; a cluster in part zeroes is data.
 */
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import { SourceAnsweredError } from "./errors.ts";

/** Also the longest unit of zeroes, so that stopping does not wait for terabytes. */
const STRIDE_BYTES = 1024 * 1024 * 1024;
const EXTENTS_MAX = 1024;

export interface ClusterRange {
  readonly first: number;
  readonly count: number;
}

export interface Unit extends ClusterRange {
  readonly kind: "data" | "zero";
}

export interface UnitSource {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly chaos: Chaos;
  /** Bytes of the next unit of data, looked at for each one; a multiple of the cluster size is made of it. */
  readonly unitBytes: () => number;
  readonly missing: () => AsyncIterable<ClusterRange>;
  readonly extents: (offset: number, length: number, countMax: number) => Promise<Extent[]>;
}

export async function* unitsOf(source: UnitSource): AsyncGenerator<Unit> {
  const { clusterBytes } = source;
  const extents = new ExtentCursor(source);
  for await (const { first, count } of source.missing()) {
    for (let at = first; at < first + count; ) {
      const { kind, end } = await extents.at(at);
      const unitClusters = Math.max(1, Math.floor(source.unitBytes() / clusterBytes));
      // Units of data begin and end at multiples of their size, whatever was missing before.
      const step = kind === "data" ? unitClusters - (at % unitClusters) : Infinity;
      const length = Math.min(end - at, step, first + count - at);
      yield { kind, first: at, count: length };
      at += length;
    }
  }
}

interface Run {
  readonly kind: "data" | "zero";
  /** Clusters, exclusive. */
  readonly end: number;
}

/** The source's extents, kept from one stride on to the next: runs of missing clusters may be many and short. */
class ExtentCursor {
  readonly #source: UnitSource;
  /** Ascending, without gaps, neighbours differing; `end` in bytes. */
  #known: { readonly zero: boolean; readonly end: number }[] = [];
  #start = 0;
  #end = 0;

  constructor(source: UnitSource) {
    this.#source = source;
  }

  /** What `cluster` and those that follow it are. Clusters are asked for in ascending order. */
  async at(cluster: number): Promise<Run> {
    const { clusterBytes, sizeBytes } = this.#source;
    const start = cluster * clusterBytes;
    const clusterEnd = Math.min(start + clusterBytes, sizeBytes);
    if (!(start >= this.#start && clusterEnd <= this.#end)) await this.#ask(start, clusterEnd);
    while ((this.#known[0]?.end ?? Infinity) <= start) this.#known.shift();
    const extent = this.#known[0];
    // An answer that does not even cover the cluster leaves only one thing that is always right.
    if (extent === undefined || clusterEnd > this.#end) return { kind: "data", end: cluster + 1 };
    if (extent.zero && this.#source.chaos.on("stream/zero-rounds-out")) {
      return { kind: "zero", end: Math.ceil(extent.end / clusterBytes) };
    }
    if (extent.zero && extent.end >= clusterEnd) {
      const end =
        extent.end === sizeBytes ? Math.ceil(extent.end / clusterBytes) : Math.floor(extent.end / clusterBytes);
      return { kind: "zero", end };
    }
    // The cluster in which the data end is data too; the next look begins behind it.
    return { kind: "data", end: extent.zero ? cluster + 1 : Math.ceil(extent.end / clusterBytes) };
  }

  async #ask(start: number, clusterEnd: number): Promise<void> {
    const { sizeBytes, extents } = this.#source;
    const length = Math.max(clusterEnd - start, Math.min(STRIDE_BYTES, sizeBytes - start));
    let list: readonly Extent[];
    try {
      list = await extents(start, length, EXTENTS_MAX);
    } catch (error) {
      if (!(error instanceof SourceAnsweredError)) throw error;
      list = [{ length, hole: false, zero: false }];
    }
    this.#known = [];
    this.#start = start;
    this.#end = start;
    for (const extent of list) {
      this.#end += extent.length;
      const last = this.#known.at(-1);
      if (last?.zero === extent.zero) this.#known[this.#known.length - 1] = { zero: extent.zero, end: this.#end };
      else this.#known.push({ zero: extent.zero, end: this.#end });
    }
  }
}
