/**
 * How often each cluster of a file is referred to, in bounded memory: counts for one *window* of the file. A check of a
 * larger file walks its tables once for each window that anything refers to.
 */

/** Clusters that one window covers: 64 MiB of counts, enough for 1 TiB of 64 KiB and its tables in one walk. */
const WINDOW_CLUSTERS_MAX = 2 ** 25;
const COUNT_MAX = 65_535;

export class ReferenceCounts {
  readonly #windowClusters: number;
  readonly #counts: Uint16Array;
  #window = 0;
  readonly #windowsSeen = new Set<number>([0]);
  readonly #windowsDone = new Set<number>();

  constructor(clusters: number, windowClustersMax = WINDOW_CLUSTERS_MAX) {
    this.#windowClusters = Math.min(Math.max(clusters, 1), windowClustersMax);
    this.#counts = new Uint16Array(this.#windowClusters);
  }

  /** The present window. */
  get first(): number {
    return this.#window * this.#windowClusters;
  }

  get end(): number {
    return this.first + this.#windowClusters;
  }

  /** One more; false if there was one already. A cluster of another window is left for later. */
  mark(cluster: number): boolean {
    if (!this.has(cluster)) {
      const window = Math.floor(cluster / this.#windowClusters);
      if (!this.#windowsDone.has(window)) this.#windowsSeen.add(window);
      return true;
    }
    const index = cluster - this.first;
    const count = this.#counts[index] ?? 0;
    this.#counts[index] = Math.min(count + 1, COUNT_MAX);
    return count === 0;
  }

  has(cluster: number): boolean {
    return cluster >= this.first && cluster < this.end;
  }

  /** Of the present window. */
  get(cluster: number): number {
    return this.#counts[cluster - this.first] ?? 0;
  }

  /** From now on, that is how many there are. */
  set(cluster: number, count: number): void {
    this.#counts[cluster - this.first] = Math.min(count, COUNT_MAX);
  }

  /** Goes on to the next window that needs it; false when there is none. */
  nextWindow(): boolean {
    this.#windowsSeen.delete(this.#window);
    this.#windowsDone.add(this.#window);
    const [next] = this.#windowsSeen;
    if (next === undefined) return false;
    this.#window = next;
    this.#counts.fill(0);
    return true;
  }
}
