/**
 * Space for new clusters. It is reserved many clusters at a time: part of the file, and counted if the format counts,
 * durably, before the first of them is used. So an entry may point to a new cluster as soon as it is taken, in whatever
 * order things reach the disk: at worst it points to zeroes that nothing else refers to. What a crash leaves unused is
 * lost space; closing gives it back.
 */
import type { ImageFile } from "./image-file.ts";

const RESERVED_CLUSTERS_MIN = 8;
const RESERVED_BYTES_MAX = 16 * 1024 * 1024;

/** A run of clusters in the file. */
export interface Place {
  /** In bytes. */
  readonly offset: number;
  /** Of clusters. */
  readonly count: number;
}

/** Clusters of the file, by their index. */
export interface ClusterRange {
  readonly first: number;
  readonly count: number;
}

/** Where the space comes from. */
export interface SpaceSource {
  /** All that is in use, or reserved, lies before this cluster. */
  readonly endCluster: number;
  /** Up to `wanted` clusters that read as zeroes, durably part of the file. */
  reserve(wanted: number): Promise<ClusterRange>;
  /** Clusters that were reserved and never used. */
  free(range: ClusterRange): Promise<void>;
}

/** What allocating writes take space from. */
export interface Space {
  /** Between one and `wanted` clusters, which read as zeroes, also after a crash. */
  take(wanted: number): Promise<Place>;
  /** As `take`, all of them, in one piece. */
  takeWhole(count: number): Promise<Place>;
  /** Clusters that no table on disk can refer to. */
  giveBack(place: Place): void;
}

export interface ClusterPoolParts {
  readonly file: ImageFile;
  readonly source: SpaceSource;
  readonly clusterBytes: number;
  /** Clusters before the end that nothing refers to, and that read as zeroes, durably. */
  readonly unused?: readonly ClusterRange[];
}

export class ClusterPool implements Space {
  readonly #file: ImageFile;
  readonly #source: SpaceSource;
  readonly #clusterBytes: number;
  #next = 0;
  #end = 0;
  /** How much the next reservation asks for. */
  #wanted = RESERVED_CLUSTERS_MIN;
  /** As good as new. */
  #unused: ClusterRange[];
  /** Taken, and not used after all. They may hold anything. */
  #returned: ClusterRange[] = [];
  #refilling: Promise<void> | undefined;

  constructor({ file, source, clusterBytes, unused = [] }: ClusterPoolParts) {
    this.#file = file;
    this.#source = source;
    this.#clusterBytes = clusterBytes;
    this.#unused = [...unused];
  }

  async take(wanted: number): Promise<Place> {
    for (;;) {
      const unused = this.#unused.pop();
      if (unused !== undefined) return this.#takeUnused(unused, wanted);
      const returned = this.#returned.pop();
      if (returned !== undefined) return await this.#takeReturned(returned, wanted);
      if (this.#next < this.#end) return this.#takeNext(Math.min(wanted, this.#end - this.#next));
      await this.#refill(wanted);
    }
  }

  /** Of sources that reserve in one piece. */
  async takeWhole(count: number): Promise<Place> {
    const unused = takeLongEnough(this.#unused, count);
    if (unused !== undefined) return this.#takeUnused(unused, count);
    const returned = takeLongEnough(this.#returned, count);
    if (returned !== undefined) return await this.#takeReturned(returned, count);
    while (this.#end - this.#next < count) {
      this.#setAside();
      await this.#refill(count);
    }
    return this.#takeNext(count);
  }

  giveBack({ offset, count }: Place): void {
    this.#returned.push({ first: offset / this.#clusterBytes, count });
  }

  /**
   * Gives back what was not used. Nobody takes anything meanwhile. Resolves to what lies before the end of the file, for
   * formats in which that cannot be given back.
   */
  async finish(): Promise<ClusterRange[]> {
    const ranges = [...this.#unused, ...this.#returned, { first: this.#next, count: this.#end - this.#next }];
    this.#unused = [];
    this.#returned = [];
    this.#end = this.#next;
    this.#wanted = RESERVED_CLUSTERS_MIN;
    const left: ClusterRange[] = [];
    for (const range of ranges.sort((a, b) => b.first - a.first)) {
      if (range.count === 0) continue;
      // What is last will be reserved again: cut off, it reads as zeroes then.
      const isLast = range.first + range.count === this.#source.endCluster;
      if (isLast) await this.#file.shrink(range.first * this.#clusterBytes);
      else left.push(range);
      await this.#source.free(range);
    }
    return left;
  }

  #takeNext(count: number): Place {
    const first = this.#next;
    this.#next += count;
    return { offset: first * this.#clusterBytes, count };
  }

  #takeUnused({ first, count }: ClusterRange, wanted: number): Place {
    const some = Math.min(count, wanted);
    if (some < count) this.#unused.push({ first: first + some, count: count - some });
    return { offset: first * this.#clusterBytes, count: some };
  }

  async #takeReturned({ first, count }: ClusterRange, wanted: number): Promise<Place> {
    const some = Math.min(count, wanted);
    if (some < count) this.#returned.push({ first: first + some, count: count - some });
    const place = { offset: first * this.#clusterBytes, count: some };
    try {
      await this.#file.zero(place.offset, some * this.#clusterBytes);
      await this.#file.sync();
    } catch (error) {
      this.giveBack(place);
      throw error;
    }
    return place;
  }

  #setAside(): void {
    if (this.#next < this.#end) this.#unused.push({ first: this.#next, count: this.#end - this.#next });
    this.#next = this.#end;
  }

  /** For all who ask at the same time. */
  async #refill(wanted: number): Promise<void> {
    this.#refilling ??= this.#reserve(wanted).finally(() => {
      this.#refilling = undefined;
    });
    await this.#refilling;
  }

  async #reserve(wanted: number): Promise<void> {
    const most = Math.max(RESERVED_CLUSTERS_MIN, RESERVED_BYTES_MAX / this.#clusterBytes);
    const { first, count } = await this.#source.reserve(Math.max(wanted, Math.min(this.#wanted, most)));
    this.#wanted = Math.min(2 * this.#wanted, most);
    this.#setAside();
    this.#next = first;
    this.#end = first + count;
  }
}

/** One of the ranges that has so many clusters; it is not among them any more. */
function takeLongEnough(ranges: ClusterRange[], count: number): ClusterRange | undefined {
  const index = ranges.findIndex((range) => range.count >= count);
  return index === -1 ? undefined : ranges.splice(index, 1)[0];
}
