/**
 * Which regions of a disk are used: a counter a region, of the bytes read or written, whose weight halves in `halfLifeMs`.
 * Memory is bounded: when there are too many regions the coldest are forgotten. What is kept can be sent elsewhere as
 * plain data, and hydration there follows it.
 */
import type { Clock } from "../env/clock.ts";
import { type ByteRange, ListedOrder, type Order } from "./order.ts";

const REGION_BYTES_DEFAULT = 1024 * 1024;
const HALF_LIFE_MS_DEFAULT = 600_000;
const REGIONS_MAX_DEFAULT = 65_536;
/** Of all regions, that stay when there are too many. */
const KEPT_PART = 0.75;
/** What a snapshot of a peer may name. */
const REGION_BYTES_LIMITS = { min: 512, max: 2 ** 30 };

/** As JSON or msgpack; hottest first. `regions` holds pairs: the number of a region, its heat. */
export interface HeatSnapshot {
  readonly version: 1;
  readonly regionBytes: number;
  readonly regions: readonly (readonly [region: number, heat: number])[];
}

export interface HeatOptions {
  readonly regionBytes?: number;
  readonly halfLifeMs?: number;
  readonly regionsMax?: number;
}

interface Counter {
  /** As of `atMs`. */
  heat: number;
  atMs: number;
}

export class HeatMap {
  readonly #clock: Pick<Clock, "nowMs">;
  readonly #regionBytes: number;
  readonly #halfLifeMs: number;
  readonly #regionsMax: number;
  readonly #counters = new Map<number, Counter>();

  constructor(clock: Pick<Clock, "nowMs">, options: HeatOptions = {}) {
    this.#clock = clock;
    this.#regionBytes = options.regionBytes ?? REGION_BYTES_DEFAULT;
    this.#halfLifeMs = options.halfLifeMs ?? HALF_LIFE_MS_DEFAULT;
    this.#regionsMax = options.regionsMax ?? REGIONS_MAX_DEFAULT;
  }

  get regions(): number {
    return this.#counters.size;
  }

  touch(offset: number, length: number): void {
    const nowMs = this.#clock.nowMs();
    for (let at = offset; at < offset + length; ) {
      const region = Math.floor(at / this.#regionBytes);
      const end = Math.min((region + 1) * this.#regionBytes, offset + length);
      this.#add(region, end - at, nowMs);
      at = end;
    }
  }

  heatOf(offset: number): number {
    const counter = this.#counters.get(Math.floor(offset / this.#regionBytes));
    return counter === undefined ? 0 : this.#decayed(counter, this.#clock.nowMs());
  }

  /** The hottest regions, at most so many. */
  snapshot(countMax = this.#regionsMax): HeatSnapshot {
    const nowMs = this.#clock.nowMs();
    const all = [...this.#counters].map(([region, counter]) => [region, this.#decayed(counter, nowMs)] as const);
    const regions = all.sort(hottestFirst).slice(0, countMax);
    return { version: 1, regionBytes: this.#regionBytes, regions };
  }

  #add(region: number, bytes: number, nowMs: number): void {
    const counter = this.#counters.get(region);
    if (counter !== undefined) {
      counter.heat = this.#decayed(counter, nowMs) + bytes;
      counter.atMs = nowMs;
      return;
    }
    if (this.#counters.size >= this.#regionsMax) this.#forgetColdest(nowMs);
    this.#counters.set(region, { heat: bytes, atMs: nowMs });
  }

  #decayed({ heat, atMs }: Counter, nowMs: number): number {
    return heat * 2 ** ((atMs - nowMs) / this.#halfLifeMs);
  }

  /** A quarter of them at once, so that it costs little per region. A guest may be waiting: no more than a sort of numbers. */
  #forgetColdest(nowMs: number): void {
    const heats = Float64Array.from(this.#counters.values(), (counter) => this.#decayed(counter, nowMs)).sort();
    const excess = heats.length - Math.floor(this.#regionsMax * KEPT_PART);
    const threshold = heats[excess - 1] ?? 0;
    let left = excess;
    // The oldest first, where many are equally cold.
    for (const [region, counter] of this.#counters) {
      if (left === 0) return;
      if (this.#decayed(counter, nowMs) > threshold) continue;
      this.#counters.delete(region);
      left -= 1;
    }
  }
}

/**
 * The order of a snapshot. What a peer has sent is checked, so that it is a list of regions of this disk, none of them twice:
 * throws `RangeError`. That is all that matters, for an order decides when something is fetched, and never what.
 */
export function heatOrder(
  snapshot: HeatSnapshot,
  disk: { readonly clusterBytes: number; readonly sizeBytes: number },
): Order {
  const { regionBytes, regions } = snapshot;
  const { min, max } = REGION_BYTES_LIMITS;
  if (!(Number.isSafeInteger(regionBytes) && regionBytes >= min && regionBytes <= max)) {
    throw new RangeError(`regions cannot have ${regionBytes} bytes`);
  }
  const count = Math.ceil(disk.sizeBytes / regionBytes);
  const seen = new Set<number>();
  const ranges = [...regions].sort(hottestFirst).map(([region]): ByteRange => {
    const known = Number.isSafeInteger(region) && region >= 0 && region < count;
    if (!known) throw new RangeError(`the disk has no region ${region}`);
    if (seen.has(region)) throw new RangeError(`region ${region} is named twice`);
    seen.add(region);
    return { offset: region * regionBytes, length: regionBytes };
  });
  return new ListedOrder(ranges, disk);
}

type Hot = readonly [region: number, heat: number];

/** Regions that are equally hot in ascending order. */
function hottestFirst([regionA, heatA]: Hot, [regionB, heatB]: Hot): number {
  return heatB - heatA || regionA - regionB;
}
