/**
 * A guest that waits for what is missing: some readers, each of which asks for 4 KiB at a random place, one at a time and
 * not too often, on the local export of a disk that is being brought over.
 *
 * A read that took less than the line's round trip cannot have been to the source, so its block was local: only the others
 * count. A reader that waited long asked less often than it would have; the waits that it left out are added.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type Listen, NbdProbe } from "../lib/nbd-probe.ts";
import type { Pattern } from "../lib/pattern.ts";
import { percentile, withOmittedWaits } from "../lib/stats.ts";

const READERS = 4;
const EVERY_MS = 10;
const BLOCK_BYTES = 4096;
/** Of a round trip: whatever took longer has been to the source. */
const REMOTE_PART = 0.9;
/** Both programs have just begun, with code that is not compiled yet. */
const RUN_IN_MS = 500;
const POLL_MS = 5;
/** Multiplies two primes: a walk over all blocks in an order that looks random, each block once. */
const STRIDES = [7919 * 104_729, 7907 * 104_723, 7901 * 104_717, 7883 * 104_711] as const;

export interface DemandReads {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  readonly count: number;
}

export interface ReaderOptions {
  readonly listen: Listen;
  readonly pattern: Pattern;
  readonly sizeBytes: number;
  readonly rttMs: number;
}

/** Reads until `ended` says so, or the server hangs up when it is done. Rejects at the first wrong byte. */
export class DemandReader {
  readonly #options: ReaderOptions;
  readonly #latenciesMs: number[] = [];
  readonly #running: Promise<unknown>;
  #over = false;

  constructor(options: ReaderOptions) {
    this.#options = options;
    this.#running = Promise.all(STRIDES.slice(0, READERS).map((stride) => this.#readAll(stride)));
    // Told by `stop`, which may come later.
    this.#running.catch(() => undefined);
  }

  /** The server is going away, or has gone. Rejects when anything was wrong before. */
  async stop(): Promise<DemandReads | undefined> {
    this.#over = true;
    await this.#running;
    const interval = EVERY_MS + this.#options.rttMs;
    const all = withOmittedWaits(this.#latenciesMs, interval);
    if (all.length === 0) return undefined;
    const at = (part: number): number => percentile(all, part);
    return { p50Ms: at(0.5), p99Ms: at(0.99), maxMs: at(1), count: this.#latenciesMs.length };
  }

  async #readAll(stride: number): Promise<void> {
    const { sizeBytes, rttMs } = this.#options;
    const probe = await this.#connected();
    if (probe === undefined) return;
    await using reader: NbdProbe = probe;
    const blocks = sizeBytes / BLOCK_BYTES;
    const startMs = performance.now();
    for (let at = stride % blocks; !this.#over; at = (at + stride) % blocks) {
      const begunMs = performance.now();
      if (!(await this.#readOne(reader, at * BLOCK_BYTES))) return;
      const tookMs = performance.now() - begunMs;
      if (tookMs >= REMOTE_PART * rttMs && begunMs - startMs >= RUN_IN_MS) this.#latenciesMs.push(tookMs);
      await delay(Math.max(0, EVERY_MS - tookMs));
    }
  }

  /** False: the server has left, as it does when everything is there. */
  async #readOne(reader: NbdProbe, offset: number): Promise<boolean> {
    const { pattern } = this.#options;
    let bytes: Buffer;
    try {
      bytes = await reader.read(offset, BLOCK_BYTES);
    } catch (error) {
      // Whether it was allowed to leave is asked where its exit status is known.
      if ((error as Error).message.includes("hung up")) return false;
      if ((error as NodeJS.ErrnoException).code !== undefined) return false;
      throw error;
    }
    const wrong = pattern.mismatch(bytes, offset);
    if (wrong >= 0) throw new Error(`a reader: the byte at ${wrong} is not that of "${pattern.tag}"`);
    return true;
  }

  async #connected(): Promise<NbdProbe | undefined> {
    while (!this.#over) {
      try {
        return await NbdProbe.connect(this.#options.listen);
      } catch {
        await delay(POLL_MS);
      }
    }
    return undefined;
  }
}
