/**
 * How often each cluster of a file is referred to, in bounded memory: counts for one *window* of the file. A check of a
 * larger file walks its tables once for each window that anything refers to.
 *
 * A count has as few bits as will do: two where nothing is compressed, so that a window is long, otherwise 8 or 16. The few
 * counts that have no room are kept one by one. When they become many (`crowded`), the window is to be counted anew, with
 * more bits for each count, and is shorter.
 */
import { Windows } from "../tables/windows.ts";
import { type CountCodec, countCodec } from "./refcount-codec.ts";

/** Enough for 2 TiB of 64 KiB in one walk, while two bits are enough. */
export const COUNTS_BYTES_MAX = 8 * 1024 * 1024;
const COUNT_MAX = 65_535;
/** Counts that are kept one by one. */
const LARGE_MAX = 16_384;

export interface ReferenceCountsOptions {
  /** What a window may take; 2 at least. */
  readonly bytesMax?: number;
  /** For tests: how many counts may be kept one by one. */
  readonly largeMax?: number;
}

export class ReferenceCounts {
  readonly #clusters: number;
  readonly #largeMax: number;
  readonly #windows: Windows;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  #codec: CountCodec;
  readonly #widerCodecs: CountCodec[];
  /** By cluster, the counts for which the codec has no room; it has its `max` for them. */
  readonly #large = new Map<number, number>();
  #crowded = false;

  constructor(clusters: number, { bytesMax = COUNTS_BYTES_MAX, largeMax = LARGE_MAX }: ReferenceCountsOptions = {}) {
    [this.#codec, ...this.#widerCodecs] = [countCodec(1), countCodec(3), countCodec(4)];
    this.#clusters = Math.max(clusters, 1);
    this.#largeMax = largeMax;
    this.#bytes = new Uint8Array(Math.min(bytesMax, 2 * this.#clusters));
    this.#view = new DataView(this.#bytes.buffer);
    this.#windows = new Windows(this.#windowClusters);
  }

  /** The present window. */
  get first(): number {
    return this.#windows.first;
  }

  get end(): number {
    return this.#windows.end;
  }

  /** Counts are missing: `widen`, and mark everything again. */
  get crowded(): boolean {
    return this.#crowded;
  }

  /** One more; false if there was one already. A cluster of another window is left for later. */
  mark(cluster: number): boolean {
    if (!this.has(cluster)) {
      this.need(cluster, cluster + 1);
      return true;
    }
    const count = this.get(cluster);
    this.#put(cluster, Math.min(count + 1, COUNT_MAX));
    return count === 0;
  }

  /** What is in [first, end) is to be compared. */
  need(first: number, end: number): void {
    this.#windows.need(first, end);
  }

  has(cluster: number): boolean {
    return this.#windows.has(cluster);
  }

  /** Of the present window. */
  get(cluster: number): number {
    const count = this.#codec.get(this.#view, cluster - this.first);
    return count < this.#codec.max ? count : (this.#large.get(cluster) ?? count);
  }

  /** From now on, that is how many there are: none, one, or more. */
  set(cluster: number, count: number): void {
    this.#codec.set(this.#view, cluster - this.first, Math.min(count, 2));
  }

  /** All counts are 0 again, with more room for each of them: the window is shorter from now on. */
  widen(): void {
    this.#codec = this.#widerCodecs.shift() ?? this.#codec;
    this.#windows.resize(this.#windowClusters);
    this.#clear();
  }

  /** Goes on to the next window that needs it; false when there is none. */
  nextWindow(): boolean {
    if (!this.#windows.advance()) return false;
    this.#clear();
    return true;
  }

  get #windowClusters(): number {
    return Math.min(this.#clusters, Math.floor((this.#bytes.length * 8) / this.#codec.bits));
  }

  #put(cluster: number, count: number): void {
    const { max } = this.#codec;
    this.#codec.set(this.#view, cluster - this.first, Math.min(count, max));
    if (count <= max) return;
    if (this.#large.size < this.#largeMax || this.#large.has(cluster)) this.#large.set(cluster, count);
    else this.#crowded = true;
  }

  #clear(): void {
    this.#bytes.fill(0);
    this.#large.clear();
    this.#crowded = false;
  }
}
