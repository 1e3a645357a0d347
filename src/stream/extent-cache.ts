/**
 * What the source says of its extents, asked for in long strides and kept: runs of missing clusters may be many and short,
 * and are not always looked at in ascending order.
 */
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import { SourceAnsweredError } from "./errors.ts";

const STRIDE_BYTES = 1024 * 1024 * 1024;
const EXTENTS_MAX = 1024;
const STRIDES_KEPT = 16;

export interface ExtentSource {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly chaos: Chaos;
  readonly extents: (offset: number, length: number, countMax: number) => Promise<Extent[]>;
}

/** What a cluster is, and those behind it up to `end`, which is exclusive. */
export interface ClusterRun {
  readonly kind: "data" | "zero";
  readonly end: number;
}

interface Stride {
  readonly start: number;
  readonly end: number;
  /** Ascending, without gaps from `start` to `end`, neighbours differing; `end` in bytes, exclusive. */
  readonly extents: readonly { readonly zero: boolean; readonly end: number }[];
}

export class ExtentCache {
  readonly #source: ExtentSource;
  /** The one used last at the end. */
  readonly #strides: Stride[] = [];

  constructor(source: ExtentSource) {
    this.#source = source;
  }

  /** A cluster counts as zeroes when all of it is; a cluster in part zeroes is data. */
  async at(cluster: number): Promise<ClusterRun> {
    const { clusterBytes, sizeBytes } = this.#source;
    const start = cluster * clusterBytes;
    const clusterEnd = Math.min(start + clusterBytes, sizeBytes);
    const stride = this.#known(start, clusterEnd) ?? (await this.#ask(start, clusterEnd));
    const extent = extentAt(stride, start);
    // An answer that does not even cover the cluster leaves only one thing that is always right.
    if (extent === undefined || clusterEnd > stride.end) return { kind: "data", end: cluster + 1 };
    if (extent.zero && this.#source.chaos.on("stream/zero-rounds-out")) {
      return { kind: "zero", end: Math.ceil(extent.end / clusterBytes) };
    }
    if (extent.zero && extent.end >= clusterEnd) {
      const whole = extent.end === sizeBytes ? Math.ceil : Math.floor;
      return { kind: "zero", end: whole(extent.end / clusterBytes) };
    }
    // The cluster in which the data end is data too; the next look begins behind it.
    return { kind: "data", end: extent.zero ? cluster + 1 : Math.ceil(extent.end / clusterBytes) };
  }

  #known(start: number, end: number): Stride | undefined {
    const at = this.#strides.findLastIndex((stride) => stride.start <= start && end <= stride.end);
    const [found] = at < 0 ? [] : this.#strides.splice(at, 1);
    if (found !== undefined) this.#strides.push(found);
    return found;
  }

  async #ask(start: number, clusterEnd: number): Promise<Stride> {
    const { sizeBytes, extents } = this.#source;
    const length = Math.max(clusterEnd - start, Math.min(STRIDE_BYTES, sizeBytes - start));
    let list: readonly Extent[];
    try {
      list = await extents(start, length, EXTENTS_MAX);
    } catch (error) {
      if (!(error instanceof SourceAnsweredError)) throw error;
      list = [{ length, hole: false, zero: false }];
    }
    const stride = strideOf(start, list);
    this.#strides.push(stride);
    if (this.#strides.length > STRIDES_KEPT) this.#strides.shift();
    return stride;
  }
}

function strideOf(start: number, list: readonly Extent[]): Stride {
  const extents: { zero: boolean; end: number }[] = [];
  let end = start;
  for (const extent of list) {
    end += extent.length;
    const last = extents.at(-1);
    if (last?.zero === extent.zero) last.end = end;
    else extents.push({ zero: extent.zero, end });
  }
  return { start, end, extents };
}

/** By bisection: the first that ends behind `offset`. */
function extentAt({ extents }: Stride, offset: number): Stride["extents"][number] | undefined {
  let low = 0;
  let high = extents.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((extents[middle]?.end ?? Infinity) > offset) high = middle;
    else low = middle + 1;
  }
  return extents[low];
}
