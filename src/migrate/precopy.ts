/**
 * Pulls a disk while its guest still uses it elsewhere, in passes, until it is stopped for good. What it pulls is
 * provisional: it goes to the store, and into a set of grains in memory, and nowhere else. Only a grant says which of it
 * counts: what has landed and is clean at the source.
 *
 * Invariants
 * - A grain is out of `landed` from before it is asked for until its bytes are in the store. The source marks a grain as
 *   clean when it begins to read it: were the grain still in `landed`, an older copy would be taken for the marked one.
 * - That holds for questions about zeroes too, and nothing is asked twice at a time.
 * - Once stopped, nothing is stored, whatever still arrives.
 */

import { BlockError } from "../block/error.ts";
import type { Extent } from "../block/extents.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Env } from "../env/env.ts";
import { Change } from "../stream/change.ts";
import type { Pace } from "../stream/hydration-parts.ts";
import type { RateLimiter } from "../stream/rate-limit.ts";
import { BufferPool } from "../util/buffer-pool.ts";
import { isZero } from "../util/zeroes.ts";
import { messageOf } from "./errors.ts";
import type { GrainSet } from "./grain-set.ts";

/** Shorter runs are read without asking first what is zero in them. */
const EXTENTS_BYTES_MIN = 1024 * 1024;
const EXTENTS_BYTES_MAX = 256 * 1024 * 1024;
const EXTENTS_MAX = 128;
const PULLS_MAX = 256;
/** What was stored is synced now and then, so that activation finds little to do. */
const SYNC_BYTES = 32 * 1024 * 1024;
/** Between passes, when all is here or nothing can be had. */
const IDLE_MS = 500;

export interface PrecopySource {
  read(offset: number, into: Uint8Array): Promise<void>;
  extents(offset: number, length: number, countMax: number): Promise<Extent[]>;
}

export interface PrecopyParts {
  readonly env: Pick<Env, "clock" | "chaos">;
  readonly source: PrecopySource;
  readonly pace: Pace;
  readonly limiter: RateLimiter;
  readonly store: OverlayStore;
  readonly landed: GrainSet;
  /** What the source has told of its clean set. */
  readonly clean: GrainSet;
  /** Afterwards `clean` says what is so for all that has landed. False: it cannot be told now. */
  readonly sync: () => Promise<boolean>;
  /** Something has landed, or has to be pulled again. */
  readonly onProgress: () => void;
}

type Run = readonly [first: number, last: number];

export class Precopy {
  readonly #parts: PrecopyParts;
  readonly #change = new Change();
  readonly #abort = new AbortController();
  readonly #pool = new BufferPool();
  readonly #end = Promise.withResolvers<false>();
  readonly #running: Promise<void>;
  #pulls = 0;
  #bytesUnderWay = 0;
  #storing = 0;
  #unsyncedBytes = 0;
  #paused = false;
  #held = false;
  #stopped = false;
  #pulledAgainBytes = 0;
  #error: string | undefined;

  /** Begins at once. */
  constructor(parts: PrecopyParts) {
    this.#parts = parts;
    this.#running = this.#run().catch((error: unknown) => {
      if (!this.#stopped) this.#error = messageOf(error);
    });
  }

  /** Why it has come to an end by itself. */
  get error(): string | undefined {
    return this.#error;
  }

  get pulledAgainBytes(): number {
    return this.#pulledAgainBytes;
  }

  /** Bytes that are still to be pulled, as far as is known. */
  get restBytes(): number {
    const { landed } = this.#parts;
    return Math.max(0, landed.sizeBytes - landed.bytes);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#change.notify();
  }

  /** Begins nothing more until `go`. Resolves when nothing is under way, and what is here is durable. */
  async hold(): Promise<void> {
    this.#held = true;
    while (this.#pulls > 0 && !this.#stopped) await this.#change.next();
    if (!this.#stopped) await this.#parts.store.commit();
  }

  go(): void {
    this.#held = false;
    this.#change.notify();
  }

  /** For good. Resolves when nothing is being stored; what is being read goes nowhere. Idempotent. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#end.resolve(false);
    this.#abort.abort(new BlockError("shutting-down", "pulling has stopped"));
    this.#change.notify();
    while (this.#storing > 0) await this.#change.next();
  }

  /** Resolves when everything is over; the source has to be closed before. */
  async ended(): Promise<void> {
    await this.#running;
    while (this.#pulls > 0) await this.#change.next();
  }

  get #mayGo(): boolean {
    return !this.#paused && !this.#held;
  }

  async #run(): Promise<void> {
    const { landed, clean, sync } = this.#parts;
    while (!this.#stopped) {
      const before = landed.count;
      await this.#pass();
      while (this.#pulls > 0) await this.#change.next();
      if (this.#stopped) return;
      // Whoever stops it may be the one that keeps answers waiting.
      const told = await Promise.race([sync(), this.#end.promise]);
      if (told && !this.#stopped) this.#pulledAgainBytes += landed.intersect(clean) * landed.grainBytes;
      this.#parts.onProgress();
      if (landed.count === landed.grains || landed.count <= before) await this.#idle();
    }
  }

  async #pass(): Promise<void> {
    const { landed } = this.#parts;
    const last = landed.grains - 1;
    for (let at = 0; at <= last && !this.#stopped; ) {
      at = landed.runEnd(at, last, true) + 1;
      if (at > last) return;
      const longest = Math.max(1, Math.floor(EXTENTS_BYTES_MAX / landed.grainBytes));
      const end = landed.runEnd(at, Math.min(last, at + longest - 1), false);
      at = await this.#bringRun([at, end]);
    }
  }

  /** Resolves to the grain to go on with. */
  async #bringRun([first, last]: Run): Promise<number> {
    const [start, end] = this.#bytesOf([first, last]);
    if (end - start < EXTENTS_BYTES_MIN) {
      await this.#bringData([first, last]);
      return last + 1;
    }
    await this.#untilGo();
    if (this.#stopped) return last + 1;
    let extents: Extent[];
    try {
      extents = await this.#parts.source.extents(start, end - start, EXTENTS_MAX);
    } catch (error) {
      this.#judge(error);
      return last + 1;
    }
    let [told, data] = [start, first];
    for (const { length, zero } of extents) {
      const zeroes = zero ? this.#grainsWithin(told, told + length) : undefined;
      told += length;
      if (zeroes === undefined) continue;
      if (data < zeroes[0]) await this.#bringData([data, zeroes[0] - 1]);
      await this.#bringZeroes(zeroes);
      data = zeroes[1] + 1;
    }
    // A grain that is not told of as a whole is asked about again, unless nothing would come of it.
    const known = told >= end ? last : Math.max(Math.floor(told / this.#parts.landed.grainBytes) - 1, first);
    if (data <= known) await this.#bringData([data, known]);
    return Math.max(data, known + 1);
  }

  #grainsWithin(start: number, end: number): Run | undefined {
    const { grainBytes, sizeBytes, grains } = this.#parts.landed;
    const first = Math.ceil(start / grainBytes);
    const last = end >= sizeBytes ? grains - 1 : Math.floor(end / grainBytes) - 1;
    return first <= last ? [first, last] : undefined;
  }

  /** In pieces as long as the path has them. */
  async #bringData([first, last]: Run): Promise<void> {
    const { pace, landed, limiter } = this.#parts;
    for (let at = first; at <= last; ) {
      const count = Math.max(1, Math.floor(pace.unitBytes / landed.grainBytes));
      const run: Run = [at, Math.min(last, at + count - 1)];
      const [start, end] = this.#bytesOf(run);
      await this.#untilRoom();
      await limiter.take(end - start, this.#abort.signal);
      await this.#untilRoom();
      if (this.#stopped) return;
      this.#begin(end - start, () => this.#pull(run));
      at = run[1] + 1;
    }
  }

  async #bringZeroes(run: Run): Promise<void> {
    await this.#untilRoom();
    if (this.#stopped) return;
    const [start, end] = this.#bytesOf(run);
    this.#begin(0, () => this.#land(run, () => this.#parts.store.writeZeroes(start, end - start)));
  }

  #begin(bytes: number, work: () => Promise<void>): void {
    this.#pulls += 1;
    this.#bytesUnderWay += bytes;
    const ended = (): void => {
      this.#pulls -= 1;
      this.#bytesUnderWay -= bytes;
      this.#change.notify();
    };
    work()
      .catch((error: unknown) => this.#judge(error))
      .catch((error: unknown) => this.#fail(error))
      .finally(ended);
  }

  async #pull(run: Run): Promise<void> {
    const { source, store, landed, env } = this.#parts;
    const [start, end] = this.#bytesOf(run);
    const buffer = this.#pool.take(end - start);
    try {
      const bytes = buffer.subarray(0, end - start);
      if (env.chaos.on("migrate/landed-kept-while-pulling")) landed.add(...run);
      await source.read(start, bytes);
      const cluster = start / store.clusterBytes;
      await this.#land(run, () =>
        isZero(bytes) ? store.writeZeroes(start, bytes.length) : store.putFetched(cluster, bytes),
      );
      this.#unsyncedBytes += bytes.length;
      if (this.#unsyncedBytes >= SYNC_BYTES && !this.#stopped) {
        this.#unsyncedBytes = 0;
        await store.commit();
      }
    } finally {
      this.#pool.give(buffer);
    }
  }

  async #land(run: Run, put: () => Promise<void>): Promise<void> {
    if (this.#stopped) return;
    this.#storing += 1;
    try {
      await put();
      if (!this.#stopped) this.#parts.landed.add(...run);
    } finally {
      this.#storing -= 1;
      this.#change.notify();
    }
    this.#parts.onProgress();
  }

  /** What cannot be had now is asked for in the next pass; what is wrong here ends it. */
  #judge(error: unknown): void {
    if (this.#stopped) return;
    if (!(error instanceof BlockError) || error.code === "shutting-down") throw error;
    this.#error = messageOf(error);
  }

  #fail(error: unknown): void {
    this.#error = messageOf(error);
    this.#stopped = true;
    this.#change.notify();
  }

  async #untilGo(): Promise<void> {
    while (!this.#stopped && !this.#mayGo) await this.#change.next();
  }

  async #untilRoom(): Promise<void> {
    const { pace } = this.#parts;
    const full = (): boolean => this.#pulls > 0 && (this.#pulls >= PULLS_MAX || this.#bytesUnderWay >= pace.bytesMax);
    while (!this.#stopped && (!this.#mayGo || full())) await this.#change.next();
  }

  #idle(): Promise<void> {
    return new Promise((resolve) => {
      const { signal } = this.#abort;
      const done = (): void => {
        timer.cancel();
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = this.#parts.env.clock.setTimer(IDLE_MS, done);
      signal.addEventListener("abort", done, { once: true });
      if (signal.aborted) done();
    });
  }

  #bytesOf([first, last]: Run): [start: number, end: number] {
    const { grainBytes, sizeBytes } = this.#parts.landed;
    return [first * grainBytes, Math.min((last + 1) * grainBytes, sizeBytes)];
  }
}
