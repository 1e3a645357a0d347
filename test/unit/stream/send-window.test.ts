import { expect, test } from "vitest";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import { DemandSource } from "../../../src/stream/demand-source.ts";
import { PacedSource } from "../../../src/stream/paced-source.ts";
import { SendWindow } from "../../../src/stream/send-window.ts";
import type { SourceState } from "../../../src/stream/source-session.ts";
import { type StreamSource, WrappedSource } from "../../../src/stream/wrapped-source.ts";
import { Scheduler, SimClock } from "../../sim/scheduler.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { Prng, runSeed } from "../../support/seed.ts";

const KIB = 1024;

/** A source whose reads are answered when a test says so. */
class HeldSource extends WrappedSource {
  #now: SourceState = "connected";
  readonly sent: number[] = [];
  readonly #held: PromiseWithResolvers<void>[] = [];
  readonly #listeners = new Set<(state: SourceState) => void>();

  constructor() {
    const device = new ScriptedDevice({ sizeBytes: 2 ** 30 });
    super(device as unknown as StreamSource);
  }

  override get state(): SourceState {
    return this.#now;
  }

  override async read(offset: number): Promise<void> {
    this.sent.push(offset);
    const held = Promise.withResolvers<void>();
    this.#held.push(held);
    await held.promise;
  }

  override onState(listener: (state: SourceState) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  become(state: SourceState): void {
    this.#now = state;
    for (const listener of [...this.#listeners]) listener(state);
  }

  answer(count = 1): void {
    for (const held of this.#held.splice(0, count)) held.resolve();
  }
}

function begin(late = { now: false }) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const clock = new SimClock(scheduler, 0);
  const source = new HeldSource();
  const window = new SendWindow(clock, NO_CHAOS, { isLate: () => late.now });
  window.fix(256 * KIB);
  const hydration = new PacedSource(source, window, "hydration");
  const ahead = new PacedSource(source, window, "read-ahead");
  const read = (lane: PacedSource, offset: number): Promise<void> => lane.read(offset, new Uint8Array(64 * KIB));
  return { scheduler, clock, source, window, hydration, ahead, read, late };
}

test("what exceeds the window waits, and is sent as answers come", async () => {
  const rig = begin();
  const reads = [0, 1, 2, 3, 4, 5].map((offset) => rig.read(rig.hydration, offset));
  await rig.scheduler.runFor(1);
  expect(rig.source.sent).toEqual([0, 1, 2, 3]);
  rig.source.answer(2);
  await rig.scheduler.runFor(1);
  expect(rig.source.sent).toEqual([0, 1, 2, 3, 4, 5]);
  rig.source.answer(4);
  await rig.scheduler.complete(Promise.all(reads));
  expect(rig.window.bytesAsked).toBe(0);
});

test("read-ahead goes before hydration that has waited longer, and hydration keeps a part", async () => {
  const rig = begin();
  const reads = [0, 1, 2, 3].map((offset) => rig.read(rig.hydration, offset));
  for (let offset = 100; offset < 104; offset++) reads.push(rig.read(rig.hydration, offset));
  for (let offset = 1000; offset < 1030; offset++) reads.push(rig.read(rig.ahead, offset));
  await rig.scheduler.runFor(1);
  for (let answers = 0; answers < 20; answers++) {
    rig.source.answer();
    await rig.scheduler.runFor(1);
  }
  const later = rig.source.sent.slice(4);
  const hydrated = later.filter((offset) => offset < 1000).length;
  expect(later.slice(0, 8).every((offset) => offset >= 1000)).toBe(true);
  expect(hydrated).toBeGreaterThanOrEqual(1);
  expect(hydrated).toBeLessThanOrEqual(later.length / 6);
  while (rig.window.bytesAsked > 0) {
    rig.source.answer(4);
    await rig.scheduler.runFor(1);
  }
  await rig.scheduler.complete(Promise.all(reads));
});

test("somebody who waits for what is to be read ahead makes it leave at once", async () => {
  const rig = begin();
  for (const offset of [0, 1, 2, 3]) void rig.read(rig.hydration, offset);
  void rig.read(rig.ahead, 10 * KIB * KIB);
  await rig.scheduler.runFor(1);
  expect(rig.source.sent).toHaveLength(4);
  rig.window.hurry(10 * KIB * KIB + 4096, 4096);
  await rig.scheduler.runFor(1);
  expect(rig.source.sent).toHaveLength(5);
});

test("hydration gives way while demand reads are late, and always has one request under way", async () => {
  const rig = begin({ now: true });
  const reads = Array.from({ length: 40 }, (_, offset) => rig.read(rig.hydration, offset));
  let most = 0;
  for (let step = 0; step < 39; step++) {
    await rig.scheduler.runFor(5);
    if (step > 20) most = Math.max(most, rig.window.bytesAsked);
    expect(rig.window.bytesAsked).toBeGreaterThan(0);
    rig.source.answer();
  }
  expect(most).toBe(64 * KIB);
  rig.late.now = false;
  for (let step = 0; step < 10; step++) {
    rig.source.answer(4);
    await rig.scheduler.runFor(5);
  }
  await rig.scheduler.complete(Promise.all(reads));
  expect(rig.window.bytesAsked).toBe(0);
});

test("read-ahead ends when the session is lost, hydration waits for the next one", async () => {
  const rig = begin();
  const ahead = rig.read(rig.ahead, 0);
  const hydration = rig.read(rig.hydration, 1);
  await rig.scheduler.runFor(1);
  rig.source.become("disconnected");
  await expect(ahead).rejects.toMatchObject({ code: "io" });
  await expect(rig.read(rig.ahead, 2)).rejects.toMatchObject({ code: "io" });
  rig.source.become("connected");
  rig.source.answer(2);
  await rig.scheduler.complete(hydration);
  expect(rig.window.bytesAsked).toBe(0);
  // What spans two sessions is no round trip.
  expect(rig.window.status()).not.toHaveProperty("rttMs");
});

test("a demand read is late 8 ms after the time that one takes, and not when none is under way", async () => {
  const { scheduler, clock, source } = begin();
  const demand = new DemandSource(source, clock);
  const first = demand.read(0, new Uint8Array(4096));
  await scheduler.runFor(10);
  expect(demand.isLate(clock.nowMs())).toBe(false);
  source.answer();
  await scheduler.complete(first);
  const second = demand.read(0, new Uint8Array(4096));
  await scheduler.runFor(17);
  expect(demand.isLate(clock.nowMs())).toBe(false);
  await scheduler.runFor(2);
  expect(demand.isLate(clock.nowMs())).toBe(true);
  source.answer();
  await scheduler.complete(second);
  expect(demand.isLate(clock.nowMs())).toBe(false);
});
