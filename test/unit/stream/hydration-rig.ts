/** A hydrator over a target and a source that do what a test tells them to, on virtual time. */
import { BlockError } from "../../../src/block/error.ts";
import type { Extent } from "../../../src/block/extents.ts";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import type { ClusterRange } from "../../../src/stream/cluster-range.ts";
import { SourceAnsweredError } from "../../../src/stream/errors.ts";
import type { HydrationSource, HydrationTarget } from "../../../src/stream/hydration-parts.ts";
import { Hydrator } from "../../../src/stream/hydrator.ts";
import type { Order } from "../../../src/stream/order.ts";
import type { SourceState } from "../../../src/stream/source-session.ts";
import { Scheduler, SimClock } from "../../sim/scheduler.ts";
import { Prng, runSeed } from "../../support/seed.ts";

export const CLUSTER_BYTES = 4096;
const FETCH_MS = 10;

class RigTarget implements HydrationTarget {
  readonly clusterBytes = CLUSTER_BYTES;
  readonly fetched: ClusterRange[] = [];
  readonly zeroed: ClusterRange[] = [];
  /** Clusters that the source cannot give. */
  bad = new Set<number>();
  /** Clusters that are not stored, although nothing fails. */
  ignored = new Set<number>();
  fetchError: Error | undefined;
  completeError: Error | undefined;
  mostUnderWay = 0;
  readonly clusters: number;
  readonly #scheduler: Scheduler;
  readonly #local = new Set<number>();
  #underWay = 0;
  #held: Promise<Error> | undefined;

  constructor(scheduler: Scheduler, clusters: number) {
    this.#scheduler = scheduler;
    this.clusters = clusters;
  }

  get sizeBytes(): number {
    return this.clusters * CLUSTER_BYTES;
  }

  get localClusters(): number {
    return this.#local.size;
  }

  /** Fetches from now on wait, until the function returned fails them. */
  hold(): (error: Error) => void {
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.#held = promise;
    return resolve;
  }

  async *missing(first = 0): AsyncGenerator<ClusterRange> {
    for (let at = first; at < this.clusters; ) {
      let end = at;
      while (end < this.clusters && this.#local.has(end) === this.#local.has(at)) end += 1;
      if (!this.#local.has(at)) yield { first: at, count: end - at };
      at = end;
    }
  }

  async fetchBackground({ first, count }: ClusterRange): Promise<number> {
    this.fetched.push({ first, count });
    this.#underWay += 1;
    this.mostUnderWay = Math.max(this.mostUnderWay, this.#underWay);
    try {
      if (this.#held !== undefined) throw await this.#held;
      await new Promise<void>((resolve) => void this.#scheduler.after(FETCH_MS, "fetch", resolve));
    } finally {
      this.#underWay -= 1;
    }
    if (this.fetchError !== undefined) throw this.fetchError;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.bad.has(cluster)) throw new SourceAnsweredError(new BlockError("io", "a bad block"), 0, 0);
    }
    return this.#store({ first, count });
  }

  async zeroBackground({ first, count }: ClusterRange): Promise<number> {
    this.zeroed.push({ first, count });
    return this.#store({ first, count });
  }

  async complete(): Promise<void> {
    if (this.localClusters < this.clusters) throw new BlockError("invalid", "clusters are still missing");
    if (this.completeError !== undefined) throw this.completeError;
  }

  #store({ first, count }: ClusterRange): number {
    const before = this.#local.size;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (!this.ignored.has(cluster)) this.#local.add(cluster);
    }
    return (this.#local.size - before) * CLUSTER_BYTES;
  }
}

class RigSource implements HydrationSource {
  state: SourceState = "connected";
  onClose: () => void = () => {};
  /** Times that extents were asked for. */
  asked = 0;
  readonly #zeroFromBytes: number;
  readonly #listeners = new Set<(state: SourceState) => void>();

  constructor(zeroFromBytes: number) {
    this.#zeroFromBytes = zeroFromBytes;
  }

  become(state: SourceState): void {
    this.state = state;
    for (const listener of [...this.#listeners]) listener(state);
  }

  onState(listener: (state: SourceState) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    this.asked += 1;
    const data = Math.min(length, Math.max(0, this.#zeroFromBytes - offset));
    const list: Extent[] = [];
    if (data > 0) list.push({ length: data, hole: false, zero: false });
    if (data < length) list.push({ length: length - data, hole: true, zero: true });
    return list;
  }

  async close(): Promise<void> {
    this.become("closed");
    this.onClose();
  }
}

interface RigOptions {
  readonly clusters: number;
  /** From this cluster on the source has zeroes. */
  readonly zeroFrom?: number;
  readonly windowUnits?: number;
  readonly rate?: number;
  readonly orders?: readonly Order[];
  readonly avoid?: (range: ClusterRange) => number | undefined;
  readonly begin?: Promise<void>;
}

export function begin({ clusters, zeroFrom = clusters, ...options }: RigOptions) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const clock = new SimClock(scheduler, 0);
  const target = new RigTarget(scheduler, clusters);
  const source = new RigSource(zeroFrom * CLUSTER_BYTES);
  const fetchUnitBytes = options.rate === undefined ? 4 * CLUSTER_BYTES : 1024 * 1024;
  const hydrator = new Hydrator({ clock, chaos: NO_CHAOS, target, source, fetchUnitBytes, ...options });
  const close = (): Promise<void> => scheduler.complete(hydrator[Symbol.asyncDispose](), 1000);
  return { scheduler, clock, target, source, hydrator, close };
}
