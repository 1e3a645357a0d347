/**
 * One sample of a line that changes while a clone is under way: how long it takes until the line is full again, and a read
 * that somebody waits for takes about a round trip again.
 */
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { LineProcess } from "../../tools/line/client.ts";
import type { Change } from "../../tools/line/messages.ts";
import { NbdProbe } from "../lib/nbd-probe.ts";
import { percentile } from "../lib/stats.ts";
import type { Measurement } from "../lib/suite.ts";
import type { GuestRun } from "./wan-guest.ts";
import { lazyClone } from "./wan-lazy.ts";
import { LINE_BITS_PER_SECOND, patternMismatch, withScene } from "./wan-scene.ts";

/** Looked at so often, and judged over so many looks. */
const LOOK_MS = 100;
const LOOKS = 5;
const FULL_PART = 0.9;
const BEYOND_MS_MAX = 8;
const READ_EVERY_MS = 5;
const BLOCK_BYTES = 4096;
const STRIDE_BLOCKS = 7919 * 104_729;

export interface Step {
  /** Of the metric: the step "rtt50" gives "rtt50Seconds". */
  readonly name: string;
  readonly change: Required<Pick<Change, "rttMs">> & { readonly bitsPerSecond: number };
}

export const STEPS: readonly Step[] = [
  { name: "rtt50", change: { rttMs: 50, bitsPerSecond: LINE_BITS_PER_SECOND } },
  { name: "rtt10", change: { rttMs: 10, bitsPerSecond: LINE_BITS_PER_SECOND } },
  { name: "slow", change: { rttMs: 10, bitsPerSecond: LINE_BITS_PER_SECOND / 5 } },
  { name: "fast", change: { rttMs: 10, bitsPerSecond: LINE_BITS_PER_SECOND } },
];

export interface FollowRun extends GuestRun {
  readonly steps: readonly Step[];
  /** Before the first change. */
  readonly settleMs: number;
  readonly stepMs: number;
}

export function measureFollowing({ disk, rttMs, steps, settleMs, stepMs }: FollowRun): Promise<Measurement> {
  return withScene({ disk, rttMs, source: "pattern" }, async (scene) => {
    const socketPath = join(scene.folder, "guest.sock");
    await using clone = await lazyClone().start(scene, socketPath);
    const reads = new Reads(await NbdProbe.connect(socketPath), disk.sizeBytes);
    await using _reads = reads;
    const values: Record<string, number> = {};
    const notes: string[] = [];
    await delay(settleMs);
    for (const { name, change } of steps) {
      await scene.line.set(change);
      const seconds = await secondsUntilFollowed(scene.line, reads, { ...change, stepMs });
      // Not within the time that there was: at least that long.
      values[`${name}Seconds`] = seconds ?? stepMs / 1000;
      if (seconds === undefined) notes.push(`${name}: not followed within ${stepMs / 1000} s`);
    }
    clone.assertRunning();
    const all = Object.values(values);
    return { values: { slowestSeconds: all.length === 0 ? 0 : Math.max(...all), ...values }, notes };
  });
}

interface Look {
  readonly atMs: number;
  readonly deliveredBytes: number;
}

/** Looks for all of the time, so that each step begins alike. */
async function secondsUntilFollowed(
  line: LineProcess,
  reads: Reads,
  { rttMs, bitsPerSecond, stepMs }: { rttMs: number; bitsPerSecond: number; stepMs: number },
): Promise<number | undefined> {
  const startMs = performance.now();
  const looks: Look[] = [];
  let followed: number | undefined;
  while (performance.now() - startMs < stepMs) {
    looks.push({ atMs: performance.now(), deliveredBytes: (await line.stats()).down.deliveredBytes });
    const [first, last] = [looks.at(-1 - LOOKS), looks.at(-1)];
    if (first !== undefined && last !== undefined && followed === undefined) {
      const elapsedMs = last.atMs - first.atMs;
      const full = last.deliveredBytes - first.deliveredBytes >= (FULL_PART * bitsPerSecond * elapsedMs) / 8000;
      const typicalMs = reads.typicalSince(first.atMs, rttMs);
      // Counted to the beginning of what was good, which is when it had followed.
      if (full && typicalMs !== undefined && typicalMs <= rttMs + BEYOND_MS_MAX)
        followed = (first.atMs - startMs) / 1000;
    }
    await delay(LOOK_MS);
  }
  return followed;
}

/** Reads at random places, one at a time, until it is disposed of. */
class Reads implements AsyncDisposable {
  readonly #probe: NbdProbe;
  readonly #blocks: number;
  readonly #done: { readonly begunMs: number; readonly tookMs: number }[] = [];
  readonly #running: Promise<void>;
  #over = false;

  constructor(probe: NbdProbe, sizeBytes: number) {
    this.#probe = probe;
    this.#blocks = sizeBytes / BLOCK_BYTES;
    this.#running = this.#run();
    this.#running.catch(() => undefined);
  }

  /** The median of reads that began since then and have been to the source; undefined: none has come back. */
  typicalSince(sinceMs: number, rttMs: number): number | undefined {
    const recent = this.#done.filter(({ begunMs, tookMs }) => begunMs >= sinceMs && tookMs >= 0.9 * rttMs);
    return recent.length === 0
      ? undefined
      : percentile(
          recent.map(({ tookMs }) => tookMs),
          0.5,
        );
  }

  async #run(): Promise<void> {
    for (let at = STRIDE_BLOCKS % this.#blocks; !this.#over; at = (at + STRIDE_BLOCKS) % this.#blocks) {
      const begunMs = performance.now();
      const wrong = patternMismatch(await this.#probe.read(at * BLOCK_BYTES, BLOCK_BYTES), at * BLOCK_BYTES);
      if (wrong >= 0) throw new Error(`the bytes at ${wrong} are not the source's`);
      this.#done.push({ begunMs, tookMs: performance.now() - begunMs });
      await delay(READ_EVERY_MS);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over = true;
    try {
      await this.#running;
    } finally {
      await this.#probe[Symbol.asyncDispose]();
    }
  }
}
