/**
 * Something to hydrate, in memory, and the guest that uses it meanwhile. It checks what it is given: a cluster is stored
 * once, with the bytes that the source has, and hydration is not called complete before it is.
 */
import { BlockError } from "../../src/block/error.ts";
import type { ClusterRange } from "../../src/stream/cluster-range.ts";
import type { StreamSource } from "../../src/stream/wrapped-source.ts";
import type { Prng } from "../support/seed.ts";
import type { SimWorld } from "./sim-env.ts";

export interface SampledRange {
  readonly offset: number;
  readonly length: number;
}

export class StreamError extends Error {
  override readonly name = "StreamError";
}

export interface StreamTargetParts {
  readonly world: SimWorld;
  readonly rng: Prng;
  readonly clusterBytes: number;
  /** What the source holds. */
  readonly truth: Uint8Array;
  readonly demand: StreamSource;
  readonly background: StreamSource;
}

export class StreamTarget {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly clusters: number;
  readonly bytes: Uint8Array;
  /** How likely a store write finds the disk full. */
  noSpace = 0;
  /** Set by a successful `complete`. */
  completed = false;
  fetchesUnderWay = 0;
  readonly #parts: StreamTargetParts;
  readonly #local: Uint8Array;
  #localClusters = 0;

  constructor(parts: StreamTargetParts) {
    this.#parts = parts;
    this.sizeBytes = parts.truth.length;
    this.clusterBytes = parts.clusterBytes;
    this.clusters = Math.ceil(this.sizeBytes / this.clusterBytes);
    // What was never stored must not look right.
    this.bytes = new Uint8Array(this.sizeBytes).fill(0xdd);
    this.#local = new Uint8Array(this.clusters);
  }

  get localClusters(): number {
    return this.#localClusters;
  }

  isLocal(cluster: number): boolean {
    return this.#local[cluster] === 1;
  }

  async *missing(first = 0): AsyncGenerator<ClusterRange> {
    for (let at = first; at < this.clusters; ) {
      let end = at;
      while (end < this.clusters && this.isLocal(end) === this.isLocal(at)) end += 1;
      if (!this.isLocal(at)) yield { first: at, count: end - at };
      at = end;
    }
  }

  async fetchBackground(range: ClusterRange): Promise<number> {
    this.fetchesUnderWay += 1;
    try {
      const [start, end] = this.#bytesOf(range);
      const bytes = new Uint8Array(end - start).fill(0xcc);
      await this.#parts.background.read(start, bytes);
      return await this.#store(range, bytes);
    } finally {
      this.fetchesUnderWay -= 1;
    }
  }

  zeroBackground(range: ClusterRange): Promise<number> {
    const [start, end] = this.#bytesOf(range);
    return this.#store(range, new Uint8Array(end - start));
  }

  async complete(): Promise<void> {
    if (this.localClusters < this.clusters) throw new BlockError("invalid", "clusters are still missing");
    await this.#disk();
    this.completed = true;
  }

  /** A guest's read, of one cluster: what is missing is fetched on the demand session. */
  async read(cluster: number): Promise<void> {
    const [start, end] = this.#bytesOf({ first: cluster, count: 1 });
    if (this.isLocal(cluster)) return;
    const bytes = new Uint8Array(end - start).fill(0xcc);
    await this.#parts.demand.read(start, bytes);
    this.check(start, bytes);
    await this.#store({ first: cluster, count: 1 }, bytes).catch((error: unknown) => {
      if (!(error instanceof BlockError && error.code === "no-space")) throw error;
    });
  }

  check(offset: number, bytes: Uint8Array): void {
    const wrong = bytes.findIndex((byte, at) => byte !== this.#parts.truth[offset + at]);
    if (wrong >= 0) throw new StreamError(`byte ${offset + wrong} is not what the source has`);
  }

  async #store({ first, count }: ClusterRange, bytes: Uint8Array): Promise<number> {
    const [origin] = this.#bytesOf({ first, count });
    this.check(origin, bytes);
    await this.#disk();
    let stored = 0;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.isLocal(cluster)) continue;
      const [start, end] = this.#bytesOf({ first: cluster, count: 1 });
      this.bytes.set(bytes.subarray(start - origin, end - origin), start);
      this.#local[cluster] = 1;
      this.#localClusters += 1;
      stored += end - start;
    }
    return stored;
  }

  async #disk(): Promise<void> {
    const { world, rng } = this.#parts;
    await new Promise<void>((resolve) => void world.scheduler.after(rng.float(), "store", resolve));
    if (rng.chance(this.noSpace)) throw new BlockError("no-space", "the disk is full");
  }

  #bytesOf({ first, count }: ClusterRange): [start: number, end: number] {
    const { clusterBytes, sizeBytes } = this;
    return [first * clusterBytes, Math.min((first + count) * clusterBytes, sizeBytes)];
  }
}
