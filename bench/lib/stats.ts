/** The little statistics that a comparison needs. Nothing here looks at a clock or at the machine. */

/** The middle value; of an even number of values, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error("no median of nothing");
  const sorted = ascending(values);
  const upper = sorted.length >> 1;
  const middle = sorted[upper] ?? 0;
  return sorted.length % 2 === 1 ? middle : ((sorted[upper - 1] ?? 0) + middle) / 2;
}

/** The smallest value that at least `fraction` (0 … 1) of the values do not exceed: the nearest-rank percentile. */
export function percentile(values: readonly number[], fraction: number): number {
  if (values.length === 0) throw new Error("no percentile of nothing");
  if (!(fraction >= 0 && fraction <= 1)) throw new Error(`a fraction lies between 0 and 1, not at ${fraction}`);
  const sorted = ascending(values);
  return sorted[Math.max(0, Math.ceil(fraction * sorted.length) - 1)] ?? 0;
}

export interface Spread {
  readonly min: number;
  readonly max: number;
  /** (max − min) / median: how far the samples lie apart. Infinite around a median of zero. */
  readonly relative: number;
}

export function spread(values: readonly number[]): Spread {
  const middle = median(values);
  const min = Math.min(...values);
  const max = Math.max(...values);
  return { min, max, relative: max === min ? 0 : (max - min) / Math.abs(middle) };
}

/**
 * Latencies as an observer on a fixed schedule would have met them. A client that waits for each reply before it asks
 * again sees one slow reply per stall, however long ("coordinated omission"); whoever would have asked in the meantime,
 * every `interval`, would have waited for the rest of the stall. Those waits are added. Any unit, the same for both.
 */
export function withOmittedWaits(latencies: readonly number[], interval: number): number[] {
  if (!(interval > 0)) throw new Error(`an interval is positive, not ${interval}`);
  const all: number[] = [];
  for (const latency of latencies) {
    all.push(latency);
    for (let rest = latency - interval; rest >= interval; rest -= interval) all.push(rest);
  }
  return all;
}

function ascending(values: readonly number[]): number[] {
  if (values.some(Number.isNaN)) throw new Error("not a number among the samples");
  return values.toSorted((a, b) => a - b);
}
