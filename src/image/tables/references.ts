/**
 * Which clusters of a file something refers to, in bounded memory: a bitmap of one *window* of the file. A check of a file
 * with more clusters walks its tables once for each window that anything refers to.
 */
import { Windows } from "./windows.ts";

/** Clusters that one window covers: 8 MiB of bits, 4 TiB of 64 KiB. */
const WINDOW_CLUSTERS_MAX = 2 ** 26;

export class References {
  /** Clusters of all windows so far that are referred to, each counted once. */
  used = 0;
  readonly #windows: Windows;
  readonly #bits: Uint8Array;

  constructor(clusters: number, windowClustersMax = WINDOW_CLUSTERS_MAX) {
    const windowClusters = Math.min(Math.max(clusters, 1), windowClustersMax);
    this.#windows = new Windows(windowClusters);
    this.#bits = new Uint8Array(Math.ceil(windowClusters / 8));
  }

  /** False: `cluster`, which is in the present window, was marked already. One of another window is left for later. */
  mark(cluster: number): boolean {
    if (!this.#windows.has(cluster)) {
      this.#windows.need(cluster, cluster + 1);
      return true;
    }
    const index = cluster - this.#windows.first;
    const byte = this.#bits[index >>> 3] ?? 0;
    const bit = 1 << (index & 7);
    if ((byte & bit) !== 0) return false;
    this.#bits[index >>> 3] = byte | bit;
    this.used += 1;
    return true;
  }

  /** Goes on to the next window that needs it; false when there is none. */
  nextWindow(): boolean {
    if (!this.#windows.advance()) return false;
    this.#bits.fill(0);
    return true;
  }
}
