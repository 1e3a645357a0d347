/**
 * Histories of a stream: real NBD sessions over a network that cuts, swallows and splits, a server that dies and comes
 * back, sometimes with another disk, a disk with bad sectors at one end and one that is full now and then at the other;
 * guests that read, and an operator who plays with the switches. Then everything heals, and hydration must come to its end.
 */
import { BlockError } from "../../src/block/error.ts";
import { Hydrator } from "../../src/stream/hydrator.ts";
import { nbdSource } from "../../src/stream/nbd-source.ts";
import { type PacedSources, paceSources } from "../../src/stream/pull.ts";
import { ReconnectingSource } from "../../src/stream/reconnecting-source.ts";
import { identifySource, samplesOf } from "../../src/stream/source-identity.ts";
import { type SimEnv, SimLeakError, SimWorld } from "./sim-env.ts";
import { drawBad, drawContent, SOURCE_ADDRESS, SourceDisk, serve } from "./stream-source.ts";
import { StreamError, StreamTarget } from "./stream-target.ts";

const CLUSTER_BYTES = 4096;
const LEAVE_MS_MAX = 1000;
/** Pause before a mismatch is looked at again, a silent peer's time, a bad range's retry: it all adds up to less than this. */
const HEALED_MS_MAX = 400_000;

export interface StreamResult {
  readonly trace: string;
  readonly virtualMs: number;
  readonly reconnects: number;
  readonly failedReads: number;
  readonly end: "complete" | "closed";
}

/** Rejects with `StreamError`, `SimHangError` or `SimLeakError`. */
export async function streamHistory(seed: number, mutant?: string): Promise<StreamResult> {
  const story = await StreamStory.begin(new SimWorld(seed), mutant);
  return await story.play();
}

class StreamStory {
  readonly #world: SimWorld;
  readonly #env: SimEnv;
  readonly #disk: SourceDisk;
  readonly #impostor: SourceDisk;
  readonly #sources: PacedSources;
  readonly #background: ReconnectingSource;
  readonly #target: StreamTarget;
  readonly #hydrator: Hydrator;
  readonly #faults: Set<string>;
  readonly #guests: Promise<void>[] = [];
  #calm = false;
  #closing = false;
  #failedReads = 0;
  #badAtAll = false;
  #guestError: unknown;

  static async begin(world: SimWorld, mutant: string | undefined): Promise<StreamStory> {
    const { rng } = world;
    const sizeBytes = rng.integer(3, 120) * CLUSTER_BYTES - rng.pick([0, 512, 2048]);
    const truth = drawContent(rng, sizeBytes, 1);
    const disk = new SourceDisk(world, truth);
    const other = rng.chance(0.5) ? drawContent(rng, sizeBytes, 2) : drawContent(rng, sizeBytes + 512, 1);
    // One sample at least tells the two apart.
    other.set([7, 7, 7, 7], 0);
    const identity = await world.scheduler.complete(identifySource(disk));
    const impostor = new SourceDisk(world, other);
    return new StreamStory({ world, disk, impostor, truth, identity, mutant });
  }

  private constructor(parts: {
    readonly world: SimWorld;
    readonly disk: SourceDisk;
    readonly impostor: SourceDisk;
    readonly truth: Uint8Array;
    readonly identity: string;
    readonly mutant: string | undefined;
  }) {
    const { world, disk, impostor, truth, identity, mutant } = parts;
    const { rng } = world;
    this.#world = world;
    this.#disk = disk;
    this.#impostor = impostor;
    const host = world.host("destination");
    if (mutant !== undefined) host.chaos = new Set([mutant]);
    this.#env = host.start();
    const all = ["cuts", "black holes", "restarts", "impostor", "bad sectors", "no space", "operator"];
    this.#faults = new Set(all.filter(() => rng.chance(0.4)));
    world.net.onConnection = ({ near, far }) => {
      if (this.#calm) return;
      const end = rng.pick([near, far]);
      if (this.#faults.has("cuts") && rng.chance(0.7)) end.cutAfter(rng.integer(1, rng.pick([300, 20_000, 300_000])));
      if (this.#faults.has("black holes") && rng.chance(0.2)) {
        world.scheduler.after(rng.float() * 2000, "black hole", () => end.block());
      }
    };
    const source = (): ReconnectingSource =>
      new ReconnectingSource({
        ...this.#env,
        connect: nbdSource(this.#env, { address: SOURCE_ADDRESS, exportName: "", dialectMax: rng.pick(DIALECTS) }),
        expected: { sizeBytes: truth.length, identity },
        onLoss: "stall",
      });
    if (rng.chance(0.8)) serve(world.host("source"), disk);
    this.#background = source();
    this.#sources = paceSources(this.#env, source(), this.#background);
    this.#target = new StreamTarget({ world, rng, clusterBytes: CLUSTER_BYTES, truth, ...this.#sources });
    this.#hydrator = new Hydrator({
      ...this.#env,
      target: this.#target,
      source: this.#sources.background,
      ...(rng.chance(0.5) ? { pace: this.#sources.window } : { windowUnits: rng.integer(1, 8) }),
      fetchUnitBytes: rng.pick([4096, 16_384, 65_536]),
    });
  }

  async play(): Promise<StreamResult> {
    const { rng, scheduler } = this.#world;
    if (this.#faults.has("bad sectors")) {
      this.#disk.bad = drawBad(rng, this.#disk.sizeBytes);
      // Of a disk that gives none of its samples nobody can say whether it is the right one.
      const samples = samplesOf(this.#disk.sizeBytes);
      this.#badAtAll = samples.some(({ offset, length }) => !this.#disk.isBad(offset, length));
      if (!this.#badAtAll) this.#disk.bad = [];
    }
    if (this.#faults.has("no space")) this.#target.noSpace = 0.1;
    const end = rng.chance(0.15) ? "closed" : "complete";
    for (let steps = rng.integer(2, 25); steps > 0; steps--) {
      this.#step();
      await scheduler.runFor(rng.float() * rng.pick([20, 1000, 20_000]));
      this.#checkNow();
    }
    if (end === "complete") await this.#heal();
    await this.#close();
    const { reconnects } = this.#background.status();
    const { traceHash: trace, nowMs: virtualMs } = scheduler;
    return { trace, virtualMs, reconnects, failedReads: this.#failedReads, end };
  }

  #step(): void {
    const { rng } = this.#world;
    const host = this.#world.host("source");
    this.#guests.push(this.#guestReads(rng.integer(0, this.#target.clusters - 1)));
    if (this.#faults.has("restarts") && rng.chance(0.5)) {
      if (rng.chance(0.5)) host.kill();
      else serve(host, this.#disk);
    }
    if (this.#faults.has("impostor") && rng.chance(0.3)) serve(host, rng.pick([this.#impostor, this.#disk]));
    if (this.#faults.has("operator")) this.#operate();
  }

  #operate(): void {
    const { rng } = this.#world;
    rng.pick([
      () => this.#hydrator.pause(),
      () => this.#hydrator.resume(),
      () => this.#hydrator.setRate(rng.pick([undefined, 50_000, 1_000_000])),
      () => this.#hydrator.setWindow(rng.integer(1, 16)),
      () => this.#hydrator.setWindowBytes(rng.pick([undefined, 4096, 1_000_000])),
    ])();
  }

  async #guestReads(cluster: number): Promise<void> {
    try {
      await this.#target.read(cluster);
    } catch (error) {
      const start = cluster * CLUSTER_BYTES;
      const expected =
        error instanceof BlockError &&
        (error.code === "shutting-down" ? this.#closing : this.#disk.isBad(start, CLUSTER_BYTES));
      if (!expected) this.#guestError ??= error;
      this.#failedReads += 1;
    }
  }

  /** What must hold at every moment. */
  #checkNow(): void {
    if (this.#guestError !== undefined) throw new StreamError("a guest's read failed", { cause: this.#guestError });
    const progress = this.#hydrator.progress();
    if (progress.state === "failed") throw new StreamError(`hydration failed: ${progress.error}`);
    if (progress.state === "complete" && !this.#target.completed) throw new StreamError("it is not complete");
    const listed = progress.failed.ranges.find(({ offset, length }) => !this.#disk.isBad(offset, length));
    if (listed !== undefined) throw new StreamError(`${listed.offset}+${listed.length} is listed, and is not bad`);
    if (progress.state === "incomplete") this.#checkList();
  }

  /** All that is missing is listed. */
  #checkList(): void {
    const { ranges } = this.#hydrator.progress().failed;
    for (let cluster = 0; cluster < this.#target.clusters; cluster++) {
      const at = cluster * CLUSTER_BYTES;
      const listed = ranges.some(({ offset, length }) => offset <= at && at < offset + length);
      if (!this.#target.isLocal(cluster) && !listed) throw new StreamError(`cluster ${cluster} is bad and not listed`);
    }
  }

  async #heal(): Promise<void> {
    const { scheduler } = this.#world;
    this.#calm = true;
    this.#target.noSpace = 0;
    serve(this.#world.host("source"), this.#disk);
    this.#hydrator.setRate(undefined);
    this.#hydrator.resume();
    if (this.#badAtAll) {
      await scheduler.runFor(HEALED_MS_MAX);
      this.#checkNow();
      if (!["incomplete", "complete"].includes(this.#hydrator.state)) {
        throw new StreamError(`with nothing but bad sectors left it is ${this.#hydrator.state}`);
      }
      this.#disk.bad = [];
    }
    const outcome = await scheduler.complete(this.#hydrator.whenDone(), HEALED_MS_MAX);
    if (outcome.state !== "complete") throw new StreamError(`hydration ended as ${outcome.state}`);
    await scheduler.complete(Promise.all(this.#guests), HEALED_MS_MAX);
    this.#checkNow();
    this.#target.check(0, this.#target.bytes);
  }

  async #close(): Promise<void> {
    const { scheduler } = this.#world;
    this.#closing = true;
    await scheduler.complete(this.#hydrator[Symbol.asyncDispose](), 10_000);
    await scheduler.complete(this.#sources.demand.close(), 10_000);
    await scheduler.complete(Promise.all(this.#guests), LEAVE_MS_MAX);
    this.#checkNow();
    if (this.#target.fetchesUnderWay > 0) throw new SimLeakError("a fetch is still under way");
    // A link that was broken may still be taking leave.
    await scheduler.runFor(LEAVE_MS_MAX);
    this.#env.checkNothingLeft();
    this.#world.host("source").kill();
    await scheduler.idle();
    const open = this.#world.net.connections.filter(({ near }) => !near.closed);
    if (open.length > 0) throw new SimLeakError(`${open.length} connections are still open`);
  }
}

const DIALECTS = ["simple", "structured", "extended"] as const;
