/**
 * Space for new clusters. It is reserved many clusters at a time: counted in the refcount blocks and part of the file,
 * durably, before the first of them is used. So an entry may point to a new cluster as soon as it is taken, in whatever
 * order things reach the disk: at worst it points to zeroes that nothing else refers to. What a crash leaves unused is
 * lost space; closing gives it back.
 */
import type { ImageFile } from "../tables/image-file.ts";
import type { ClusterRange, Refcounts } from "./refcounts.ts";

const RESERVED_CLUSTERS_MIN = 8;
const RESERVED_BYTES_MAX = 16 * 1024 * 1024;

/** A run of clusters in the file. */
export interface Place {
  /** In bytes. */
  readonly offset: number;
  /** Of clusters. */
  readonly count: number;
}

export class ClusterPool {
  readonly #file: ImageFile;
  readonly #refcounts: Refcounts;
  readonly #clusterBytes: number;
  #next = 0;
  #end = 0;
  /** How much the next reservation asks for. */
  #wanted = RESERVED_CLUSTERS_MIN;
  /** Taken, and not used after all. They may hold anything. */
  #returned: ClusterRange[] = [];
  #refilling: Promise<void> | undefined;

  constructor(file: ImageFile, refcounts: Refcounts, clusterBytes: number) {
    this.#file = file;
    this.#refcounts = refcounts;
    this.#clusterBytes = clusterBytes;
  }

  /** Between one and `wanted` clusters, which read as zeroes, also after a crash. */
  async take(wanted: number): Promise<Place> {
    for (;;) {
      const returned = this.#returned.pop();
      if (returned !== undefined) return await this.#takeReturned(returned, wanted);
      if (this.#next < this.#end) {
        const count = Math.min(wanted, this.#end - this.#next);
        const first = this.#next;
        this.#next += count;
        return { offset: first * this.#clusterBytes, count };
      }
      this.#refilling ??= this.#refill(wanted).finally(() => {
        this.#refilling = undefined;
      });
      await this.#refilling;
    }
  }

  /** Clusters that no table on disk can refer to. */
  giveBack({ offset, count }: Place): void {
    this.#returned.push({ first: offset / this.#clusterBytes, count });
  }

  /** Gives back what was not used. Nobody takes anything any more. */
  async finish(): Promise<void> {
    const unused = [...this.#returned, { first: this.#next, count: this.#end - this.#next }];
    this.#returned = [];
    const isLast = this.#end > this.#next && this.#end === this.#refcounts.endCluster;
    for (const range of unused) if (range.count > 0) await this.#refcounts.free(range);
    if (isLast) await this.#file.shrink(this.#next * this.#clusterBytes);
    this.#end = this.#next;
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

  async #refill(wanted: number): Promise<void> {
    const most = Math.max(RESERVED_CLUSTERS_MIN, RESERVED_BYTES_MAX / this.#clusterBytes);
    const { first, count } = await this.#refcounts.reserve(Math.min(Math.max(wanted, this.#wanted), most));
    this.#wanted = Math.min(2 * this.#wanted, most);
    this.#next = first;
    this.#end = first + count;
  }
}
