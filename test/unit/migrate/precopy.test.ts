import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { OverlayStore } from "../../../src/block/overlay-store.ts";
import type { MigrateChaosPoint } from "../../../src/migrate/chaos-points.ts";
import { GrainSet } from "../../../src/migrate/grain-set.ts";
import { Precopy } from "../../../src/migrate/precopy.ts";
import { RateLimiter } from "../../../src/stream/rate-limit.ts";
import type { WindowStatus } from "../../../src/stream/window-control.ts";
import { Scheduler, SimClock } from "../../sim/scheduler.ts";
import { pattern } from "../../support/patterns.ts";
import { Prng, runSeed } from "../../support/seed.ts";

const GRAIN = 4096;
const GRAINS = 8;
const SIZE = GRAINS * GRAIN;

function storeOf(device: MemoryDevice): OverlayStore {
  return Object.assign(Object.create(device) as MemoryDevice, {
    clusterBytes: GRAIN,
    writeZeroes: (offset: number, length: number) => device.writeZeroes(offset, length),
    putFetched: (cluster: number, from: Uint8Array) => device.write(cluster * GRAIN, from),
    commit: async () => undefined,
  }) as unknown as OverlayStore;
}

/** A disk that is pulled; what the source says of it is in the test's hand. */
function begun(...mutants: MigrateChaosPoint[]) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const clock = new SimClock(scheduler, 0);
  const content = pattern(0, SIZE, 1);
  const target = new MemoryDevice({ sizeBytes: SIZE, content: new Uint8Array(SIZE) });
  const [landed, clean] = [new GrainSet(SIZE, GRAIN), new GrainSet(SIZE, GRAIN)];
  const source = {
    held: undefined as Promise<void> | undefined,
    reads: 0,
    async read(offset: number, into: Uint8Array): Promise<void> {
      source.reads += 1;
      await source.held;
      into.set(content.subarray(offset, offset + into.length));
      clean.addWithin(offset, into.length);
    },
    extents: async (_offset: number, length: number) => [{ length, hole: false, zero: false }],
  };
  const precopy = new Precopy({
    env: { clock, chaos: { on: (point) => mutants.some((mutant) => mutant === point) } },
    ...{ source, landed, clean, store: storeOf(target), limiter: new RateLimiter(clock) },
    pace: { unitBytes: GRAIN, bytesMax: SIZE, bytesAsked: 0, fix: () => undefined, status: () => ({}) as WindowStatus },
    sync: async () => true,
    onProgress: () => undefined,
  });
  return { scheduler, content, target, landed, clean, source, precopy };
}

async function end({ precopy, scheduler }: ReturnType<typeof begun>): Promise<void> {
  await scheduler.complete(precopy.stop());
  await scheduler.complete(precopy.ended());
}

test("all of a disk lands, and what its guest changes is pulled again", async () => {
  const at = begun();
  await at.scheduler.runFor(100);
  expect(at.landed.count).toBe(GRAINS);
  at.content.fill(0xab, 2 * GRAIN, 3 * GRAIN);
  at.clean.removeTouched(2 * GRAIN, 1);
  await at.scheduler.runFor(2000);
  expect([at.landed.count, at.precopy.pulledAgainBytes]).toEqual([GRAINS, GRAIN]);
  const bytes = Buffer.alloc(SIZE);
  await at.target.read(0, bytes);
  expect(bytes.equals(Buffer.from(at.content))).toBe(true);
  await end(at);
});

/** A grain is pulled again, the source has marked it, and its new bytes are still on the way when pulling is stopped. */
async function stoppedWhilePulling(...mutants: MigrateChaosPoint[]): Promise<boolean> {
  const at = begun(...mutants);
  await at.scheduler.runFor(100);
  at.clean.removeTouched(2 * GRAIN, 1);
  const late = Promise.withResolvers<void>();
  at.source.held = late.promise;
  await at.scheduler.runFor(2000);
  at.clean.addWithin(2 * GRAIN, GRAIN);
  await at.scheduler.complete(at.precopy.stop());
  at.landed.intersect(at.clean);
  const taken = at.landed.has(2);
  late.resolve();
  await end(at);
  return taken;
}

test("a grain whose new bytes have not come counts for nothing, though it is marked and was here before", async () => {
  expect(await stoppedWhilePulling()).toBe(false);
  expect(await stoppedWhilePulling("migrate/landed-kept-while-pulling")).toBe(true);
});

test("what arrives after it was stopped goes nowhere", async () => {
  const at = begun();
  const late = Promise.withResolvers<void>();
  at.source.held = late.promise;
  await at.scheduler.runFor(10);
  expect(at.source.reads).toBe(GRAINS);
  await at.scheduler.complete(at.precopy.stop());
  late.resolve();
  await at.scheduler.runFor(10);
  const bytes = Buffer.alloc(SIZE);
  await at.target.read(0, bytes);
  expect([at.landed.count, bytes.equals(Buffer.alloc(SIZE))]).toEqual([0, true]);
  await end(at);
});

test("while it is held or paused nothing is asked; then it goes on", async () => {
  const at = begun();
  at.precopy.pause();
  await at.scheduler.runFor(1000);
  expect(at.source.reads).toBe(0);
  await at.scheduler.complete(at.precopy.hold());
  at.precopy.resume();
  await at.scheduler.runFor(1000);
  expect(at.source.reads).toBe(0);
  at.precopy.go();
  await at.scheduler.runFor(1000);
  expect(at.landed.count).toBe(GRAINS);
  await end(at);
});
