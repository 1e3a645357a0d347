/**
 * What hydration has to do, in the order in which it does it: units of missing clusters. What its orders name comes first;
 * the rest from the first cluster to the last, but for what is being read ahead at the moment. What the source has as
 * zeroes becomes units of its own, which are never fetched.
 */
import type { ClusterRange } from "./cluster-range.ts";
import { ExtentCache, type ExtentSource } from "./extent-cache.ts";
import type { Order } from "./order.ts";

/** The longest unit of zeroes, so that stopping does not wait for terabytes. */
const ZERO_BYTES_MAX = 1024 * 1024 * 1024;

export interface Unit extends ClusterRange {
  readonly kind: "data" | "zero";
}

export interface UnitSource extends ExtentSource {
  /** Bytes of the next unit of data, looked at for each one; a multiple of the cluster size is made of it. */
  readonly unitBytes: () => number;
  /** Runs of missing clusters from `first` on. It need not look further than `end`. */
  readonly missing: (first: number, end?: number) => AsyncIterable<ClusterRange>;
  readonly orders?: readonly Order[];
  /** Somebody else is bringing the range: the cluster behind which to go on. Asked before each unit of the rest. */
  readonly avoid?: (range: ClusterRange) => number | undefined;
}

export async function* unitsOf(source: UnitSource): AsyncGenerator<Unit> {
  const extents = new ExtentCache(source);
  const { orders = [], avoid } = source;
  for await (const { first, count } of source.missing(0)) {
    const end = first + count;
    for (let at = first; at < end; ) {
      for (let named = nextNamed(orders); named !== undefined; named = nextNamed(orders)) {
        yield* unitsWithin(source, extents, named);
      }
      const unit = await unitAt(source, extents, { first: at, count: end - at });
      const behind = unit.kind === "data" ? avoid?.(unit) : undefined;
      if (behind === undefined) yield unit;
      at = Math.max(unit.first + unit.count, behind ?? 0);
    }
  }
}

function nextNamed(orders: readonly Order[]): ClusterRange | undefined {
  for (const order of orders) {
    const range = order.next();
    if (range !== undefined) return range;
  }
  return undefined;
}

async function* unitsWithin(source: UnitSource, extents: ExtentCache, named: ClusterRange): AsyncGenerator<Unit> {
  const namedEnd = named.first + named.count;
  for await (const { first, count } of source.missing(named.first, namedEnd)) {
    if (first >= namedEnd) return;
    const end = Math.min(first + count, namedEnd);
    for (let at = first; at < end; ) {
      const unit = await unitAt(source, extents, { first: at, count: end - at });
      yield unit;
      at += unit.count;
    }
  }
}

/** The first unit of a range of missing clusters. */
async function unitAt(source: UnitSource, extents: ExtentCache, { first, count }: ClusterRange): Promise<Unit> {
  const { clusterBytes } = source;
  const { kind, end } = await extents.at(first);
  const longest = kind === "data" ? source.unitBytes() : ZERO_BYTES_MAX;
  const unitClusters = Math.max(1, Math.floor(longest / clusterBytes));
  // Units of data begin and end at multiples of their size, whatever was missing before.
  const step = kind === "data" ? unitClusters - (first % unitClusters) : unitClusters;
  return { kind, first, count: Math.min(end - first, step, count) };
}
