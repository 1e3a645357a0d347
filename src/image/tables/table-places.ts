/**
 * Which clusters of a file are tables: numbers in four bytes each, in as many buckets as make it quick to find one. There
 * may be millions of them, in any order and several times over, as whoever made the image has chosen: they are put in order
 * in turns, and in the memory in which they are kept.
 */
import type { Turns } from "./turns.ts";

const BUCKETS_MAX = 4096;
const BUCKET_CLUSTERS_MIN = 64;
/** What a number within a bucket has room for. */
const BUCKET_CLUSTERS_MAX = 2 ** 32;
/** Numbers that are sorted in one go. */
const SORTED_AT_ONCE = 16_384;
/** Steps for each of them. */
const SORT_STEPS = 4;

/** A table of tables. */
export interface NamesTables {
  readonly length: number;
  /** Where the table that an entry names begins, as a cluster of the file; 0: it names none. */
  clusterAt(index: number): number;
}

/** Numbers of a bucket that are all of [low, low + span); `span` is a power of two. */
interface Part {
  readonly from: number;
  readonly to: number;
  readonly low: number;
  readonly span: number;
}

export class TablePlaces {
  readonly #bucketClusters: number;
  /** Where in `#numbers` each bucket begins; at the end, where the last one ends. */
  readonly #starts: Uint32Array;
  /** Of clusters, within their bucket. */
  #numbers = new Uint32Array(0);

  private constructor(fileClusters: number) {
    const least = Math.max(BUCKET_CLUSTERS_MIN, fileClusters / BUCKETS_MAX);
    this.#bucketClusters = Math.min(2 ** Math.ceil(Math.log2(least)), BUCKET_CLUSTERS_MAX);
    this.#starts = new Uint32Array(Math.ceil(fileClusters / this.#bucketClusters) + 1);
  }

  static none(): TablePlaces {
    return new TablePlaces(0);
  }

  /** All that these tables name. They must lie within the file. */
  static async of(tables: readonly NamesTables[], fileClusters: number, turns: Turns): Promise<TablePlaces> {
    const places = new TablePlaces(fileClusters);
    await places.#count(tables, turns);
    await places.#fill(tables, turns);
    for (let bucket = 0; bucket + 1 < places.#starts.length; bucket++) await places.#sort(bucket, turns);
    return places;
  }

  get heldBytes(): number {
    return this.#starts.byteLength + this.#numbers.byteLength;
  }

  /** Whether a table of so many clusters (64 at most) has `cluster` for one of them. */
  has(cluster: number, tableClusters = 1): boolean {
    const bucket = Math.floor(cluster / this.#bucketClusters);
    const firstAt = cluster - tableClusters + 1;
    if (this.#lastUpTo(cluster, bucket) >= firstAt) return true;
    const before = Math.floor(firstAt / this.#bucketClusters);
    return before < bucket && this.#lastUpTo(cluster, before) >= firstAt;
  }

  /** The last one of a bucket that is not behind `cluster`; if there is none, none that matters. */
  #lastUpTo(cluster: number, bucket: number): number {
    const start = this.#starts[bucket] ?? 0;
    const firstOfBucket = bucket * this.#bucketClusters;
    let low = start;
    for (let high = this.#starts[bucket + 1] ?? 0; low < high; ) {
      const middle = (low + high) >>> 1;
      if ((this.#numbers[middle] ?? 0) <= cluster - firstOfBucket) low = middle + 1;
      else high = middle;
    }
    return low === start ? -Infinity : firstOfBucket + (this.#numbers[low - 1] ?? 0);
  }

  /** Afterwards `#starts` has the end of each bucket. */
  async #count(tables: readonly NamesTables[], turns: Turns): Promise<void> {
    const starts = this.#starts;
    for (const table of tables) {
      for (let index = 0; index < table.length; index++) {
        const cluster = table.clusterAt(index);
        const bucket = Math.floor(cluster / this.#bucketClusters);
        if (cluster > 0) starts[bucket] = (starts[bucket] ?? 0) + 1;
        if (turns.over()) await turns.next();
      }
    }
    let end = 0;
    for (const [bucket, count] of starts.entries()) {
      end += count;
      starts[bucket] = end;
    }
    this.#numbers = new Uint32Array(end);
  }

  /** From behind: afterwards `#starts` has what its name says, and what was in order still is. */
  async #fill(tables: readonly NamesTables[], turns: Turns): Promise<void> {
    const [starts, numbers] = [this.#starts, this.#numbers];
    for (const table of [...tables].reverse()) {
      for (let index = table.length - 1; index >= 0; index--) {
        const cluster = table.clusterAt(index);
        if (cluster > 0) {
          const bucket = Math.floor(cluster / this.#bucketClusters);
          const at = (starts[bucket] ?? 0) - 1;
          starts[bucket] = at;
          numbers[at] = cluster - bucket * this.#bucketClusters;
        }
        if (turns.over()) await turns.next();
      }
    }
  }

  /** Halves what is too much to be sorted in one go, by value: at most 32 times, whatever the numbers are. */
  async #sort(bucket: number, turns: Turns): Promise<void> {
    const { [bucket]: from = 0, [bucket + 1]: to = 0 } = this.#starts;
    const parts: Part[] = [{ from, to, low: 0, span: this.#bucketClusters }];
    for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
      const { span, low } = part;
      const count = part.to - part.from;
      // Of one value, and as often as somebody likes.
      if (count < 2 || span === 1) continue;
      if (count <= SORTED_AT_ONCE) {
        const numbers = this.#numbers.subarray(part.from, part.to);
        const steps = isAscending(numbers) ? 1 : SORT_STEPS;
        if (steps > 1) numbers.sort();
        if (turns.over(steps * count)) await turns.next();
        continue;
      }
      const middle = await this.#halve(part, turns);
      parts.push({ from: part.from, to: middle, low, span: span / 2 });
      parts.push({ from: middle, to: part.to, low: low + span / 2, span: span / 2 });
    }
  }

  /** Puts the lower numbers first. Resolves to where the others begin. */
  async #halve({ from, to, low, span }: Part, turns: Turns): Promise<number> {
    const numbers = this.#numbers;
    const limit = low + span / 2;
    let end = to;
    for (let at = from; at < end; ) {
      const number = numbers[at] ?? 0;
      if (number < limit) at += 1;
      else {
        end -= 1;
        numbers[at] = numbers[end] ?? 0;
        numbers[end] = number;
      }
      if (turns.over()) await turns.next();
    }
    return end;
  }
}

function isAscending(numbers: Uint32Array): boolean {
  for (let i = 1; i < numbers.length; i++) if ((numbers[i - 1] ?? 0) > (numbers[i] ?? 0)) return false;
  return true;
}
