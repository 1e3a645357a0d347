/**
 * Where an overlay keeps its local data. Implemented by the image formats, consumed by the overlay, joined in the
 * command line. A cluster is an index; `clusterBytes` is its size. The caller holds the cluster's lock during each call.
 */
import type { BlockDevice } from "./device.ts";

/**
 * What the overlay's map says of its own last end. `new`: the image was just made; `open`: in use or killed; `clean`: closed
 * in order, with all of it durable; `complete`: the image may stand alone already.
 */
export type MapState = "new" | "open" | "clean" | "complete";

export interface OverlayStore extends BlockDevice {
  readonly clusterBytes: number;
  /** The store's own view of whether it holds the cluster; formats without one (raw) answer `undefined`. */
  isLocal(cluster: number): boolean | undefined;
  /**
   * Stores whole clusters that came from the backing: `cluster` and as many after it as `from` has bytes for; the last of
   * the device may be short. Not durable before `commit`.
   */
  putFetched(cluster: number, from: Uint8Array): Promise<void>;
  /** Stores guest data at a byte offset of the device, across any number of clusters. Not durable before `commit`. */
  putWritten(offset: number, from: Uint8Array): Promise<void>;
  /** Makes a whole cluster read as zeroes, locally. Not durable before `commit`. */
  zero(cluster: number): Promise<void>;
  /** Asks for puts in the range to be written back soon, so that `commit` finds less to do. Returns at once; a hint. */
  startWriteback?(offset: number, length: number): void;
  /** Makes durable every put and zero that had resolved before the call, data before tables. */
  commit(): Promise<void>;
  /** Drops the reference to the backing; afterwards the image stands alone. Durable when resolved. */
  complete(): Promise<void>;
}
