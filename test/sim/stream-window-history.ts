/**
 * Histories of a line that hydration, read-ahead and demand reads share, and whose round trip, rate and sessions change;
 * others use it too, now and then. What must hold at each request and over time is checked from outside.
 */
import { type PacedSources, paceSources } from "../../src/stream/pull.ts";
import { ReconnectingSource } from "../../src/stream/reconnecting-source.ts";
import { identifySource } from "../../src/stream/source-identity.ts";
import { type StreamSource, WrappedSource } from "../../src/stream/wrapped-source.ts";
import { type SimEnv, SimWorld } from "./sim-env.ts";
import { type LineShape, SharedLine } from "./stream-line.ts";
import { StreamError } from "./stream-target.ts";

const SIZE_BYTES = 2 ** 40;
/** Read-ahead reads here, hydration below. */
const AHEAD_FROM = SIZE_BYTES / 2;
const DEMAND_BYTES = 4096;
/** What is read goes nowhere. */
const ANY = new Uint8Array(2 ** 20);
/** A window follows a change of everything at once, with all its sessions cut, within this. Nearly always. */
const FOLLOWS_MS = 3000;
/** And within so much more in any case, which a tenth of the rate with half a second of data under way may take. */
const SETTLES_MS = 1000;
const MEASURED_MS = 1000;
/** The queue on average, as promised; on top come two units, which are on their way through the narrowest place. */
const PROMISED = { full: 0.9, queueMs: 8 };
const LIMIT = { full: 0.85, queueMs: 15 };
/** On top of what a demand read takes. */
const QUEUE_MS_MAX = LIMIT.queueMs;
/** What others put into the queue, and for how many round trips; by then hydration has given way to this part at most. */
const OTHERS_MS = 30;
const OTHERS_RTTS = 16;
const LEAST_SHARE = 0.75;
const LEAST_CUT_MS = 6;
/** Ten times what a history takes. */
const EVENTS_MAX = 500_000;

export interface WindowResult {
  readonly trace: string;
  readonly demandReads: number;
  readonly longestDemandMs: number;
  /** How the line was found each time, when the window should have followed. */
  readonly found: readonly Found[];
}

export interface Found {
  readonly where: string;
  /** Of what the line could have carried. */
  readonly full: number;
  readonly queueMs: number;
  /** The line was as full, and its queue as short, as is promised. */
  readonly asPromised: boolean;
}

/** Rejects with `StreamError` or `SimHangError`. */
export async function windowHistory(seed: number, mutant?: string): Promise<WindowResult> {
  const world = new SimWorld(seed);
  world.scheduler.eventsMax = EVENTS_MAX;
  const story = await WindowStory.begin(world, mutant);
  return await story.play();
}

class WindowStory {
  readonly #world: SimWorld;
  readonly #env: SimEnv;
  readonly #line: SharedLine;
  readonly #sources: PacedSources;
  readonly #watched: WatchedSource;
  #stopped = false;
  #aheadWanted = 0;
  #sentMs = 0;
  #windowBefore = Infinity;
  #windowMost = Infinity;
  #demandReads = 0;
  /** Lately, and of all. */
  #longestDemandMs = 0;
  #slowestDemandMs = 0;
  readonly #found: Found[] = [];

  static async begin(world: SimWorld, mutant: string | undefined): Promise<WindowStory> {
    const line = new SharedLine(world.scheduler, drawShape(world), SIZE_BYTES);
    const identity = await world.scheduler.complete(identifySource(line.dial()));
    return new WindowStory(world, line, { identity, mutant });
  }

  private constructor(world: SimWorld, line: SharedLine, parts: { identity: string; mutant: string | undefined }) {
    this.#world = world;
    this.#line = line;
    const host = world.host("destination");
    if (parts.mutant !== undefined) host.chaos = new Set([parts.mutant]);
    this.#env = host.start();
    const source = (): ReconnectingSource =>
      new ReconnectingSource({
        ...this.#env,
        connect: async () => line.dial(),
        expected: { sizeBytes: SIZE_BYTES, identity: parts.identity },
        onLoss: "stall",
      });
    this.#watched = new WatchedSource(source(), (bytes) => this.#checkSent(bytes));
    this.#sources = paceSources(this.#env, source(), this.#watched);
  }

  async play(): Promise<WindowResult> {
    const { scheduler, rng } = this.#world;
    this.#hydrate();
    void this.#demandLoop();
    for (let turns = rng.integer(1, 3); turns > 0; turns--) {
      await scheduler.runFor(FOLLOWS_MS);
      this.#found.push(await this.#measure(PROMISED));
      await scheduler.runFor(SETTLES_MS);
      this.#judge(await this.#measure(LIMIT));
      await this.#disturb();
      this.#line.shape = drawShape(this.#world);
      if (rng.chance(0.5)) this.#line.cut();
    }
    await this.#close();
    return {
      trace: scheduler.traceHash,
      demandReads: this.#demandReads,
      longestDemandMs: this.#slowestDemandMs,
      found: this.#found,
    };
  }

  /** As hydration does: as much as the pace allows, stored in no time. */
  #hydrate(): void {
    const { background, window } = this.#sources;
    let underWay = 0;
    let at = 0;
    const pump = (): void => {
      while (!this.#stopped && underWay < window.bytesMax) {
        const bytes = window.unitBytes;
        underWay += bytes;
        const done = (): void => {
          underWay -= bytes;
          pump();
        };
        background.read(at, ANY.subarray(0, bytes)).then(done, done);
        at += bytes;
      }
    };
    pump();
  }

  async #demandLoop(): Promise<void> {
    const { scheduler, rng } = this.#world;
    while (!this.#stopped) {
      const sentMs = scheduler.nowMs;
      await this.#sources.demand.read(0, new Uint8Array(DEMAND_BYTES)).catch(() => undefined);
      this.#demandReads += 1;
      this.#longestDemandMs = Math.max(this.#longestDemandMs, scheduler.nowMs - sentMs);
      this.#slowestDemandMs = Math.max(this.#slowestDemandMs, this.#longestDemandMs);
      await new Promise<void>((resolve) => void scheduler.after(rng.float() * 10, "guest", resolve));
    }
  }

  /** How full the line is, and how long its queue, compared with `limit`. */
  async #measure(limit: typeof PROMISED): Promise<Found> {
    const { scheduler } = this.#world;
    const { bytesPerMs, rttMs } = this.#line.shape;
    const before = this.#line.deliveredBytes;
    this.#longestDemandMs = 0;
    let queueMs = 0;
    const steps = 50;
    for (let step = 0; step < steps; step++) {
      await scheduler.runFor(MEASURED_MS / steps);
      queueMs += this.#line.queueMs / steps;
    }
    const full = (this.#line.deliveredBytes - before) / MEASURED_MS / bytesPerMs;
    const unitMs = this.#sources.window.unitBytes / bytesPerMs;
    const where = `at ${rttMs.toFixed(1)} ms and ${bytesPerMs} bytes/ms`;
    const asPromised = full >= limit.full && queueMs <= limit.queueMs + 2 * unitMs;
    return { where, full, queueMs, asPromised };
  }

  /** What must not be, however the line was before. Nor may a demand read take much longer than the line alone does. */
  #judge({ where, full, queueMs, asPromised }: Found): void {
    if (!asPromised) {
      throw new StreamError(
        `the line is ${full.toFixed(2)} full, and its queue takes ${queueMs.toFixed(1)} ms ${where}`,
      );
    }
    const { bytesPerMs, rttMs } = this.#line.shape;
    const most = rttMs * 1.25 + 2 * QUEUE_MS_MAX + (4 * this.#sources.window.unitBytes) / bytesPerMs;
    if (this.#longestDemandMs > most) {
      throw new StreamError(`a demand read took ${this.#longestDemandMs.toFixed(1)} ms ${where}`);
    }
  }

  /** Others fill the line's queue, and a guest reads sequentially. Hydration gives way, and goes on all the same. */
  async #disturb(): Promise<void> {
    const { scheduler } = this.#world;
    const { rttMs } = this.#line.shape;
    const before = this.#watched.hydrationBytes;
    let leastShare = 1;
    this.#longestDemandMs = 0;
    for (let sentMs = 0; sentMs < OTHERS_RTTS * (rttMs + 2 * OTHERS_MS); sentMs += 5) {
      if (this.#line.queueMs < OTHERS_MS) this.#line.occupy(OTHERS_MS / 2);
      await scheduler.runFor(5);
      leastShare = Math.min(leastShare, this.#sources.window.share);
    }
    const late = this.#longestDemandMs > rttMs + QUEUE_MS_MAX + OTHERS_MS / 2;
    // Off a long path it takes a usual queue's length at a time.
    if (late && leastShare > Math.max(LEAST_SHARE, 1 - LEAST_CUT_MS / (rttMs + PROMISED.queueMs)))
      throw new StreamError("demand reads are late, and hydration does not give way");
    await scheduler.runFor(FOLLOWS_MS);
    await this.#readAhead();
    const most = this.#watched.hydrationBytes - before;
    if (most === 0) throw new StreamError("hydration does not advance");
  }

  /** Far more than the window is wanted at once: it goes before hydration, which keeps a part. */
  async #readAhead(): Promise<void> {
    const { ahead, window } = this.#sources;
    const bytes = window.unitBytes;
    const before = this.#watched.aheadBytes;
    const reads = 200;
    const all = Array.from({ length: reads }, (_, at) => {
      this.#aheadWanted += 1;
      const done = (): void => {
        this.#aheadWanted -= 1;
      };
      return ahead.read(AHEAD_FROM + at * bytes, ANY.subarray(0, bytes)).then(done, done);
    });
    const hydrated = this.#watched.hydrationBytes;
    await this.#world.scheduler.complete(Promise.all(all), 600_000);
    const passed = this.#watched.aheadBytes - before;
    const meanwhile = this.#watched.hydrationBytes - hydrated;
    // An eighth is its right; at both ends hydration uses the window alone.
    const allowed = passed / 4 + 2 * window.control.windowBytes + 4 * window.unitBytes + 2 ** 20;
    if (passed === reads * bytes && meanwhile > allowed) {
      throw new StreamError(`${meanwhile} bytes of hydration went before ${passed} of read-ahead`);
    }
  }

  #checkSent(bytes: number): void {
    // What still waits is let go when everything is closed.
    if (this.#stopped) return;
    const { window } = this.#sources;
    const { windowBytes } = window.control;
    const asked = window.bytesAsked;
    // It may have shrunk since this one was admitted, in the same instant.
    const nowMs = this.#env.clock.nowMs();
    if (nowMs !== this.#sentMs) this.#windowMost = this.#windowBefore;
    this.#windowMost = Math.max(this.#windowMost, windowBytes);
    [this.#sentMs, this.#windowBefore] = [nowMs, windowBytes];
    if (asked > bytes && asked > this.#windowMost + 4 * bytes) {
      throw new StreamError(`${asked} bytes are under way, and the window is ${windowBytes}`);
    }
  }

  async #close(): Promise<void> {
    const { scheduler } = this.#world;
    this.#stopped = true;
    await scheduler.complete(this.#sources.demand.close(), 10_000);
    await scheduler.complete(this.#sources.background.close(), 10_000);
    await scheduler.runFor(1000);
    if (this.#watched.failure !== undefined) throw this.#watched.failure;
    if (this.#sources.window.waiting > 0) throw new StreamError("somebody waits for the window still");
    this.#env.checkNothingLeft();
  }
}

/** Sees each request as it is sent. */
class WatchedSource extends WrappedSource {
  readonly #onSent: (bytes: number) => void;
  hydrationBytes = 0;
  aheadBytes = 0;
  failure: Error | undefined;

  constructor(source: StreamSource, onSent: (bytes: number) => void) {
    super(source);
    this.#onSent = onSent;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    try {
      this.#onSent(into.length);
    } catch (error) {
      this.failure ??= error as Error;
    }
    if (offset >= AHEAD_FROM) this.aheadBytes += into.length;
    else this.hydrationBytes += into.length;
    await this.source.read(offset, into);
  }
}

function drawShape({ rng }: SimWorld): LineShape {
  return {
    rttMs: rng.pick([0.5, 1, 10, 50]) * (0.8 + rng.float() / 2),
    bytesPerMs: rng.pick([12_500, 50_000, 125_000]),
  };
}
