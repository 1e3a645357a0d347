/** Asks an overlay for what is missing, with a few requests at a time, as whoever fills it in the background does. */
import type { BlockDevice } from "../../src/block/device.ts";
import { BlockError } from "../../src/block/error.ts";
import type { ClusterRange, Overlay } from "../../src/cor/overlay.ts";
import type { Prng } from "../support/seed.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimProcess } from "./sim-process.ts";

export interface PullerParts {
  readonly overlay: Overlay;
  /** Asked what is zero. */
  readonly backing: BlockDevice;
  readonly scheduler: Scheduler;
  readonly rng: Prng;
  readonly process: SimProcess;
  /** Requests under way at a time. */
  readonly window: number;
  readonly clustersMax: number;
  readonly pauseMs: number;
}

export class Puller {
  readonly #parts: PullerParts;
  readonly #underWay = new Set<Promise<void>>();
  #stopped = false;
  failures = 0;

  constructor(parts: PullerParts) {
    this.#parts = parts;
  }

  get inFlight(): number {
    return this.#underWay.size;
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Until nothing is missing, `passes` are over, or `stop`. True: nothing is missing. */
  async run(passes: number): Promise<boolean> {
    const { overlay } = this.#parts;
    for (let pass = 0; pass < passes && overlay.localClusters < overlay.clusters && !this.#over; pass++) {
      for await (const range of overlay.missing()) {
        await this.#pull(range);
        if (this.#over) break;
      }
      while (this.#underWay.size > 0) await Promise.all(this.#underWay);
      await this.#pause();
    }
    return overlay.localClusters === overlay.clusters;
  }

  get #over(): boolean {
    return this.#stopped || !this.#parts.process.alive;
  }

  async #pull({ first, count }: ClusterRange): Promise<void> {
    const { rng, clustersMax, window } = this.#parts;
    for (let at = first; at < first + count && !this.#over; ) {
      const zeroes = await this.#zeroClusters(at, first + count - at);
      const piece = zeroes > 0 ? zeroes : Math.min(rng.integer(1, clustersMax), first + count - at);
      const job = this.#piece({ first: at, count: piece }, zeroes > 0).finally(() => this.#underWay.delete(job));
      this.#underWay.add(job);
      at += piece;
      while (this.#underWay.size >= window) await Promise.race(this.#underWay);
      if (rng.chance(0.3)) await this.#pause();
    }
  }

  /** How many clusters from `first` on the source has as zeroes; often nobody asks. */
  async #zeroClusters(first: number, count: number): Promise<number> {
    const { backing, overlay, rng } = this.#parts;
    if (count < 1000 && rng.chance(0.3)) return 0;
    const offset = first * overlay.clusterBytes;
    const length = Math.min(count * overlay.clusterBytes, overlay.sizeBytes - offset);
    const [extent] = await backing.extents(offset, length, 1);
    if (extent?.zero !== true) return 0;
    return extent.length === length ? count : Math.floor(extent.length / overlay.clusterBytes);
  }

  async #piece(range: ClusterRange, zero: boolean): Promise<void> {
    const { overlay } = this.#parts;
    try {
      await (zero ? overlay.zeroBackground(range) : overlay.fetchBackground(range));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.failures += 1;
    }
  }

  #pause(): Promise<void> {
    const { scheduler, rng, pauseMs, process } = this.#parts;
    return new Promise((resolve) => {
      scheduler.after(rng.float() * pauseMs, "puller", () => {
        if (process.alive) resolve();
      });
    });
  }
}
