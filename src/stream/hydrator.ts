/**
 * Hydration: brings everything that is missing from the source to the store, in the background.
 *
 * It passes over what is missing from the first cluster to the last (`units.ts`), with a bounded window of fetches under
 * way. A pass skips what the source cannot give, and lists it. Is anything left at the end of a pass, another one follows,
 * so a fetch whose place a guest's write or demand read has taken needs no bookkeeping: the presence map is the only truth.
 *
 * Invariants
 * - A fetch is started only while `#mayGo`; it is looked at again after each wait, in the same turn as the start.
 * - `complete` comes only from the target's `complete()`, which proves that nothing is missing and makes it durable.
 * - Nothing ends silently: every error goes through `#judge`, into the list, into a wait, or into `failed`.
 */
import { BlockError } from "../block/error.ts";
import type { Extent } from "../block/extents.ts";
import { Change } from "./change.ts";
import type { ClusterRange } from "./cluster-range.ts";
import { reasonOf, SourceAnsweredError, SourceLostError } from "./errors.ts";
import { FailedRanges } from "./failed-ranges.ts";
import {
  checkWindow,
  type HydrationOutcome,
  type HydrationSource,
  type HydrationTarget,
  type HydratorOptions,
  unitBytesOf,
  WINDOW_UNITS_DEFAULT,
  WINDOW_UNITS_MAX,
} from "./hydration-parts.ts";
import { HYDRATION_EDGES, type HydrationState } from "./hydration-states.ts";
import { type HydrationProgress, Meter, stallReason } from "./progress.ts";
import { RateLimiter } from "./rate-limit.ts";
import { SpaceWait } from "./space-wait.ts";
import { Standstill } from "./standstill.ts";
import { StateTable } from "./state-table.ts";
import { type Unit, type UnitSource, unitsOf } from "./units.ts";

const FAILED_RETRY_MS_DEFAULT = 30_000;
const NO_SPACE_RETRY_MS_DEFAULT = 5000;
/** Between passes, when something is left although nothing failed: a demand read's reply was not stored, say. */
const STRAGGLER_RETRY_MS = 1000;

export class Hydrator implements AsyncDisposable {
  readonly #options: HydratorOptions;
  readonly #target: HydrationTarget;
  readonly #source: HydrationSource;
  readonly #state: StateTable<HydrationState>;
  readonly #change = new Change();
  readonly #abort = new AbortController();
  readonly #limiter: RateLimiter;
  readonly #meter: Meter;
  readonly #failed = new FailedRanges();
  readonly #listeners = new Set<(state: HydrationState) => void>();
  readonly #outcome = Promise.withResolvers<HydrationOutcome>();
  readonly #running: Promise<void>;
  readonly #unsubscribe: () => void;
  readonly #space: SpaceWait<Unit>;
  readonly #standstill: Standstill;
  #windowUnits: number;
  #underWay = 0;
  #bytesUnderWay = 0;
  #paused = false;
  /** At least one pass is over, and has left ranges that the source could not give. */
  #onlyFailedLeft = false;
  #retryNow = false;
  #error: unknown;
  #disposing: Promise<void> | undefined;

  constructor(options: HydratorOptions) {
    this.#options = options;
    this.#target = options.target;
    this.#source = options.source;
    this.#state = new StateTable<HydrationState>(HYDRATION_EDGES, "running", options.clock.nowMs());
    this.#limiter = new RateLimiter(options.clock, options.rate);
    this.#meter = new Meter(options.clock);
    this.#windowUnits = checkWindow(options.windowUnits ?? WINDOW_UNITS_DEFAULT);
    const { noSpaceRetryMs = NO_SPACE_RETRY_MS_DEFAULT } = options;
    this.#space = new SpaceWait(options.clock, noSpaceRetryMs, () => this.#changed());
    this.#standstill = new Standstill({
      clock: options.clock,
      waitsForRate: () => this.#limiter.waiting > 0,
      bytesAsked: () => options.pace?.bytesAsked,
      ask: () => options.source.extents(0, Math.min(options.target.sizeBytes, options.target.clusterBytes), 1),
    });
    this.#unsubscribe = options.source.onState(() => this.#changed());
    this.#changed();
    this.#running = this.#run();
  }

  get state(): HydrationState {
    return this.#state.current;
  }

  /** `listener` is told of each new state, within the change: it must not throw. Returns the way to unsubscribe. */
  onState(listener: (state: HydrationState) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Resolves at the end, whatever it is; never rejects. "incomplete" is no end: it goes on trying. */
  whenDone(): Promise<HydrationOutcome> {
    return this.#outcome.promise;
  }

  /** Starts no more fetches; those under way finish. Idempotent. */
  pause(): void {
    this.#paused = true;
    this.#changed();
  }

  /** Goes on, and asks at once again for what the source could not give. Idempotent. */
  resume(): void {
    this.#paused = false;
    this.#retryNow = true;
    this.#space.hurry();
    this.#changed();
  }

  /** Bytes per second that are fetched; undefined: no limit. Throws `RangeError`. */
  setRate(bytesPerSecond: number | undefined): void {
    this.#limiter.setRate(bytesPerSecond);
  }

  /** Bytes under way at the same time, for a hydrator with a pace; undefined: it follows the path. */
  setWindowBytes(bytes: number | undefined): void {
    this.#options.pace?.fix(bytes);
    this.#changed();
  }

  /** Fetches under way at the same time, for one without. Throws `RangeError`. */
  setWindow(units: number): void {
    this.#windowUnits = checkWindow(units);
    this.#changed();
  }

  progress(): HydrationProgress {
    const { sizeBytes, clusterBytes, clusters, localClusters } = this.#target;
    const missingBytes = Math.min(sizeBytes, (clusters - localClusters) * clusterBytes);
    const state = this.#state.current;
    const moving = state === "running";
    const stalledBy = moving && this.#underWay > 0 ? this.#standstill.reason() : stallReason(state, this.#source.state);
    const window = this.#options.pace?.status();
    return {
      state,
      forMs: this.#options.clock.nowMs() - this.#state.sinceMs,
      ...(stalledBy === undefined ? {} : { stalledBy }),
      totalBytes: sizeBytes,
      localBytes: sizeBytes - missingBytes,
      missingBytes,
      ...this.#meter.counts,
      ...(moving ? this.#meter.rates(missingBytes) : { bytesPerSecond: 0 }),
      elapsedMs: this.#meter.elapsedMs,
      ...(this.#limiter.rate === undefined ? {} : { rateLimit: this.#limiter.rate }),
      ...(window === undefined ? { windowUnits: this.#windowUnits } : { window }),
      fetchesUnderWay: this.#underWay,
      failed: { bytes: this.#failed.totalBytes, ranges: this.#failed.list(), unlisted: this.#failed.unlisted },
      ...(this.#error === undefined ? {} : { error: reasonOf(this.#error) }),
    };
  }

  /** Stops, closes the source, and waits for what is under way. Idempotent. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposing ??= this.#dispose();
    return this.#disposing;
  }

  async #dispose(): Promise<void> {
    this.#end({ state: "closed" });
    await this.#source.close();
    await this.#running;
    this.#unsubscribe();
  }

  async #run(): Promise<void> {
    const { begin } = this.#options;
    try {
      if (begin !== undefined) await Promise.race([begin, this.#outcome.promise]);
      while (!this.#ended) {
        await this.#onePass();
        if (this.#ended) return;
        if (this.#target.localClusters < this.#target.clusters) await this.#betweenPasses();
        else await this.#complete();
      }
    } catch (error) {
      this.#stopBy(error);
    }
  }

  async #onePass(): Promise<void> {
    const jobs = new Set<Promise<void>>();
    this.#retryNow = false;
    try {
      for await (const unit of unitsOf(this.#unitSource())) {
        await this.#untilRoom();
        if (unit.kind === "data") await this.#limiter.take(this.#bytesOf(unit), this.#abort.signal);
        await this.#untilRoom();
        if (this.#ended) break;
        const bytes = unit.kind === "data" ? this.#bytesOf(unit) : 0;
        this.#started(1, bytes);
        const job = this.#bring(unit)
          .catch((error: unknown) => this.#stopBy(error))
          .finally(() => {
            this.#started(-1, -bytes);
            jobs.delete(job);
            this.#changed();
          });
        jobs.add(job);
      }
    } catch (error) {
      // Told before the fetches are waited for, which may take long when the source is away.
      this.#stopBy(error);
    } finally {
      await Promise.all(jobs);
    }
    this.#failed.endPass();
    this.#onlyFailedLeft = this.#failed.any;
    this.#changed();
  }

  #unitSource(): UnitSource {
    const { chaos, orders, avoid } = this.#options;
    const { sizeBytes, clusterBytes } = this.#target;
    return {
      ...{ sizeBytes, clusterBytes, chaos },
      missing: (first, end) => this.#target.missing(first, end),
      extents: this.#extents.bind(this),
      unitBytes: () => unitBytesOf(this.#options, this.#limiter.rate),
      ...(orders !== undefined && { orders }),
      ...(avoid !== undefined && { avoid }),
    };
  }

  /** Waits until a fetch may be started, or everything has ended. */
  async #untilRoom(): Promise<void> {
    while (!this.#ended && !(this.#mayGo(undefined) && this.#hasRoom)) await this.#change.next();
  }

  get #hasRoom(): boolean {
    const { pace } = this.#options;
    if (pace === undefined) return this.#underWay < this.#windowUnits;
    return this.#underWay === 0 || (this.#underWay < WINDOW_UNITS_MAX && this.#bytesUnderWay < pace.bytesMax);
  }

  #started(units: number, bytes: number): void {
    if (this.#underWay === 0) this.#standstill.moved();
    this.#underWay += units;
    this.#bytesUnderWay += bytes;
  }

  /** Brings a unit, however often that has to be tried; what the source cannot give of it is listed. */
  async #bring(unit: Unit): Promise<void> {
    for (;;) {
      while (!this.#ended && !this.#mayGo(unit)) await this.#change.next();
      if (this.#ended) return;
      try {
        const zero = unit.kind === "zero";
        const bytes = zero ? await this.#target.zeroBackground(unit) : await this.#target.fetchBackground(unit);
        this.#meter.add(unit.kind, bytes);
        this.#failed.cleared(unit.first * this.#target.clusterBytes, this.#bytesOf(unit));
        this.#standstill.moved();
        this.#space.noteRoom(unit);
        return;
      } catch (error) {
        if (error instanceof SourceAnsweredError) {
          this.#space.noteRoom(unit);
          await this.#narrow(unit, error);
          return;
        }
        this.#judge(error, unit);
      }
    }
  }

  /** The source has a bad block somewhere in the unit: finds out where, and gets the rest. */
  async #narrow(unit: Unit, error: SourceAnsweredError): Promise<void> {
    const half = Math.floor(unit.count / 2);
    if (half === 0 || !this.#failed.hasRoom) {
      if (this.#options.chaos.on("stream/failed-unit-is-fetched")) return;
      this.#failed.note(unit.first * this.#target.clusterBytes, this.#bytesOf(unit), error.code);
      return;
    }
    await this.#bring({ ...unit, count: half });
    await this.#bring({ ...unit, first: unit.first + half, count: unit.count - half });
  }

  /** Returns when it is worth another try, once `#mayGo`; otherwise throws `error`. */
  #judge(error: unknown, unit: Unit | undefined): void {
    if (this.#ended || error instanceof SourceLostError) return;
    const full = error instanceof BlockError && error.code === "no-space";
    if (!full || this.#options.chaos.on("stream/no-space-is-final")) throw error;
    this.#space.noteFull(unit);
  }

  /** The source's extents. A source that is away for too long is waited for. */
  async #extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    for (;;) {
      while (!this.#ended && !this.#mayGo(undefined)) await this.#change.next();
      if (this.#ended) throw new BlockError("shutting-down", "hydration has ended");
      try {
        return await this.#source.extents(offset, length, countMax);
      } catch (error) {
        if (!(error instanceof SourceLostError)) throw error;
      }
    }
  }

  async #betweenPasses(): Promise<void> {
    const { clock, failedRetryMs = FAILED_RETRY_MS_DEFAULT } = this.#options;
    const delayMs = this.#onlyFailedLeft ? failedRetryMs : STRAGGLER_RETRY_MS;
    const timer = clock.setTimer(delayMs, () => {
      this.#retryNow = true;
      this.#changed();
    });
    while (!this.#ended && !this.#retryNow) await this.#change.next();
    timer.cancel();
  }

  /** Everything is local. Neither the source nor an operator's leave is needed any more. */
  async #complete(): Promise<void> {
    this.#advance("completing");
    try {
      await this.#target.complete();
      this.#end({ state: "complete" });
    } catch (error) {
      if (this.#ended) return;
      if (error instanceof BlockError && error.code === "invalid") {
        this.#leaveCompleting();
        return;
      }
      this.#judge(error, undefined);
      this.#leaveCompleting();
      while (!this.#ended && this.#space.waits) await this.#change.next();
      this.#space.noteRoom(undefined);
    }
  }

  #leaveCompleting(): void {
    this.#advance("running");
    this.#changed();
  }

  get #ended(): boolean {
    return this.#state.final;
  }

  /** Whether `unit` may be fetched now. */
  #mayGo(unit: Unit | undefined): boolean {
    if (this.#paused || this.#source.state !== "connected") return false;
    return this.#space.mayTry(unit);
  }

  #bytesOf({ first, count }: ClusterRange): number {
    const { clusterBytes, sizeBytes } = this.#target;
    return Math.min((first + count) * clusterBytes, sizeBytes) - first * clusterBytes;
  }

  /** Something that a state or a wait depends on may be different now. */
  #changed(): void {
    if (this.#source.state === "closed") this.#end({ state: "closed" });
    if (!this.#ended && this.#state.current !== "completing") this.#advance(this.#stateNow());
    this.#change.notify();
  }

  #stateNow(): HydrationState {
    if (this.#paused) return "paused";
    if (this.#space.isFull) return "no-space";
    if (this.#source.state !== "connected") return "disconnected";
    return this.#onlyFailedLeft ? "incomplete" : "running";
  }

  #advance(next: HydrationState): void {
    if (this.#state.current === next) return;
    const { clock } = this.#options;
    this.#state.advance(next, clock.nowMs());
    if (next === "running") {
      this.#meter.restart();
      this.#standstill.moved();
    }
    for (const listener of [...this.#listeners]) listener(next);
  }

  /** What was under way fails because something below was closed, or because it is broken. */
  #stopBy(error: unknown): void {
    const closed = error instanceof BlockError && error.code === "shutting-down";
    this.#end(closed ? { state: "closed" } : { state: "failed", error });
  }

  #end(outcome: HydrationOutcome): void {
    if (this.#ended) return;
    if (outcome.state === "failed") this.#error = outcome.error;
    this.#advance(outcome.state);
    this.#meter.stop();
    this.#space.cancel();
    this.#abort.abort(new BlockError("shutting-down", "hydration has ended"));
    this.#change.notify();
    this.#outcome.resolve(outcome);
  }
}
