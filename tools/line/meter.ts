/** Counts what one direction carries. */
import { Histogram } from "./histogram.ts";
import type { LaneStats } from "./messages.ts";

export class Meter {
  acceptedBytes = 0;
  deliveredBytes = 0;
  lostBytes = 0;
  readonly #residence = new Histogram();
  readonly #lateness = new Histogram();

  delivered(bytes: number, residenceMs: number, latenessMs: number): void {
    this.deliveredBytes += bytes;
    this.#residence.add(residenceMs, bytes);
    this.#lateness.add(latenessMs, 1);
  }

  stats(queuedBytes: number, queuedBytesPeak: number): LaneStats {
    const { acceptedBytes, deliveredBytes, lostBytes } = this;
    const residenceMs = this.#residence.quantiles();
    const latenessMs = this.#lateness.quantiles();
    return { acceptedBytes, deliveredBytes, lostBytes, queuedBytes, queuedBytesPeak, residenceMs, latenessMs };
  }

  reset(): void {
    this.acceptedBytes = 0;
    this.deliveredBytes = 0;
    this.lostBytes = 0;
    this.#residence.reset();
    this.#lateness.reset();
  }
}
