/**
 * Which clusters of a file something refers to, in bounded memory: a bitmap of one *window* of the file. A check of a file
 * with more clusters walks its tables once for each window that anything refers to.
 */

/** Clusters that one window covers: 32 MiB of bits. */
const WINDOW_CLUSTERS_MAX = 2 ** 28;

export class References {
  readonly windowClusters: number;
  /** Clusters of all windows so far that are referred to, each counted once. */
  used = 0;
  #window = 0;
  #bits: Uint8Array;
  readonly #windowsSeen = new Set<number>([0]);
  readonly #windowsDone = new Set<number>();

  constructor(clusters: number, windowClustersMax = WINDOW_CLUSTERS_MAX) {
    this.windowClusters = Math.min(Math.max(clusters, 1), windowClustersMax);
    this.#bits = new Uint8Array(Math.ceil(this.windowClusters / 8));
  }

  /** False: `cluster`, which is in the present window, was marked already. One of another window is left for later. */
  mark(cluster: number): boolean {
    const window = Math.floor(cluster / this.windowClusters);
    if (window !== this.#window) {
      if (!this.#windowsDone.has(window)) this.#windowsSeen.add(window);
      return true;
    }
    const index = cluster % this.windowClusters;
    const byte = this.#bits[index >>> 3] ?? 0;
    const bit = 1 << (index & 7);
    if ((byte & bit) !== 0) return false;
    this.#bits[index >>> 3] = byte | bit;
    this.used += 1;
    return true;
  }

  /** Goes on to the next window that needs it; false when there is none. */
  nextWindow(): boolean {
    this.#windowsSeen.delete(this.#window);
    this.#windowsDone.add(this.#window);
    const [next] = this.#windowsSeen;
    if (next === undefined) return false;
    this.#window = next;
    this.#bits = this.#bits.fill(0);
    return true;
  }
}
