import { expect, test } from "vitest";
import { parseTrace, TraceError, TraceRecorder } from "../../../src/stream/access-trace.ts";
import { GuestDevice, type GuestTarget } from "../../../src/stream/guest-device.ts";
import { HeatMap, heatOrder } from "../../../src/stream/heat.ts";
import { ListedOrder } from "../../../src/stream/order.ts";
import { StallHistogram } from "../../../src/stream/stall-times.ts";
import { Standstill } from "../../../src/stream/standstill.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { itSeeded } from "../../support/seed.ts";
import { begin, CLUSTER_BYTES } from "./hydration-rig.ts";

const MIB = 1024 * 1024;
const DISK = { clusterBytes: 4096, sizeBytes: 1024 * MIB };

function fakeClock() {
  const clock = { ms: 0, nowMs: () => clock.ms };
  return clock;
}

test("heat halves in its half-life, and the hottest regions come first", () => {
  const clock = fakeClock();
  const heat = new HeatMap(clock, { halfLifeMs: 1000 });
  heat.touch(5 * MIB, 4096);
  clock.ms = 1000;
  expect(heat.heatOf(5 * MIB)).toBeCloseTo(2048);
  heat.touch(9 * MIB - 100, 4096);
  const snapshot = heat.snapshot();
  expect(snapshot.regions.map(([region]) => region)).toEqual([9, 5, 8]);
  const order = heatOrder(JSON.parse(JSON.stringify(snapshot)), DISK);
  expect([order.next(), order.next(), order.next(), order.next()]).toEqual([
    { first: 9 * 256, count: 256 },
    { first: 5 * 256, count: 256 },
    { first: 8 * 256, count: 256 },
    undefined,
  ]);
  expect(() => heatOrder({ version: 1, regionBytes: MIB, regions: [[-1, 5]] }, DISK)).toThrow(RangeError);
});

test("the memory that heat takes is bounded, and the coldest regions are forgotten", () => {
  const heat = new HeatMap(fakeClock(), { regionsMax: 100 });
  for (let region = 0; region < 1000; region++) heat.touch(region * MIB, region < 20 ? 100_000 : 4096);
  expect(heat.regions).toBeLessThanOrEqual(100);
  expect(heat.heatOf(0)).toBe(100_000);
});

test("a trace holds each region once, in the order of its first use, and is read as it was written", () => {
  const clock = fakeClock();
  let text = "";
  const recorder = new TraceRecorder(clock, DISK.sizeBytes, (lines) => {
    text += lines;
  });
  recorder.note(10 * MIB, 4096, true);
  clock.ms = 12;
  recorder.note(10 * MIB + 8192, 4096, false);
  recorder.note(0, 200_000, false);
  recorder.note(10 * MIB - 65_536, 131_072, true);
  expect(text.split("\n").slice(1, 4)).toEqual(['[0,160,1,"fault"]', '[12,0,4,"read"]', '[12,159,1,"fault"]']);
  expect(parseTrace(text, DISK.sizeBytes)).toEqual([
    { offset: 10 * MIB, length: 65_536 },
    { offset: 0, length: 262_144 },
    { offset: 10 * MIB - 65_536, length: 65_536 },
  ]);
  expect(parseTrace(`${text}[13,4`, DISK.sizeBytes)).toHaveLength(3);
});

test("what is no trace of this disk is refused with the reason", () => {
  const header = '{"blockferryTrace":1,"regionBytes":65536,"sizeBytes":4096}\n';
  expect(() => parseTrace("hello", 4096)).toThrow("line 1 is not JSON");
  expect(() => parseTrace("{}\n", 4096)).toThrow("no trace");
  expect(() => parseTrace(header, 8192)).toThrow("recorded with a disk of 4096 bytes");
  expect(() => parseTrace(header.replace("65536", "0"), 4096)).toThrow(TraceError);
  expect(() => parseTrace(`${header}[1,-1,1]\n`, 4096)).toThrow("line 2 is no access");
  expect(() => parseTrace(`${header}null\n`, 4096)).toThrow(TraceError);
});

test("hydration brings what its orders name before everything else", async () => {
  const ranges = [
    { offset: 80 * CLUSTER_BYTES, length: 8 * CLUSTER_BYTES },
    { offset: 0, length: 4 * CLUSTER_BYTES },
    { offset: 2 ** 40, length: 4096 },
  ];
  const rig = begin({
    clusters: 100,
    windowUnits: 1,
    orders: [new ListedOrder(ranges, { clusterBytes: CLUSTER_BYTES, sizeBytes: 100 * CLUSTER_BYTES })],
  });
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("complete");
  expect(rig.target.fetched.slice(0, 4)).toEqual([
    { first: 80, count: 4 },
    { first: 84, count: 4 },
    { first: 0, count: 4 },
    { first: 0, count: 4 },
  ]);
  await rig.close();
});

test("hydration leaves out what somebody else is bringing, and comes back for it", async () => {
  let busy = true;
  const avoid = ({ first }: { first: number }): number | undefined => (busy && first < 40 ? 40 : undefined);
  const rig = begin({ clusters: 100, avoid });
  await rig.scheduler.runFor(200);
  expect(rig.target.fetched.every(({ first }) => first >= 40)).toBe(true);
  busy = false;
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 10_000)).state).toBe("complete");
  await rig.close();
});

itSeeded("quantiles of stall times are right to an eighth, and the longest is exact", (rng) => {
  const stalls = new StallHistogram();
  const all = Array.from({ length: 5000 }, () => 10 ** (rng.float() * 6 - 1));
  for (const ms of all) stalls.add(ms);
  all.sort((a, b) => a - b);
  const { count, p50Ms, p99Ms, maxMs, totalMs } = stalls.summary();
  expect(count).toBe(5000);
  expect(maxMs).toBe(all.at(-1));
  expect(totalMs).toBeCloseTo(
    all.reduce((sum, ms) => sum + ms, 0),
    0,
  );
  for (const [found, exact] of [
    [p50Ms, all[2499] ?? 0],
    [p99Ms, all[4949] ?? 0],
  ] as const) {
    expect(found).toBeGreaterThanOrEqual(exact);
    expect(found).toBeLessThanOrEqual(exact * 1.13);
  }
});

test("a standstill is told with what it waits for", async () => {
  const clock = fakeClock();
  const state = { rate: false, asked: 0, answer: Promise.withResolvers<void>() };
  const still = new Standstill({
    clock: { ...clock, nowMs: () => clock.ms, wallMs: () => 0, setTimer: () => ({ cancel: () => {} }) },
    waitsForRate: () => state.rate,
    bytesAsked: () => state.asked,
    ask: () => state.answer.promise,
  });
  clock.ms = 2999;
  expect(still.reason()).toBeUndefined();
  clock.ms = 3000;
  expect(still.reason()).toBe("slow-disk");
  state.rate = true;
  expect(still.reason()).toBe("rate-limit");
  [state.rate, state.asked] = [false, 4096];
  expect(still.reason()).toBe("slow-source");
  clock.ms = 4500;
  expect(still.reason()).toBe("line");
  state.answer.resolve();
  await state.answer.promise;
  expect(still.reason()).toBe("slow-source");
  still.moved();
  expect(still.reason()).toBeUndefined();
});

test("only reads that meet something missing count as stalls, and watching ends when everything is local", async () => {
  const clock = fakeClock();
  const device = new ScriptedDevice({ sizeBytes: MIB });
  const target: GuestTarget = Object.assign(device, { isLocal: (offset: number) => offset < 65_536 });
  const seen: [number, number, boolean][] = [];
  const guest = new GuestDevice(target, clock, { onRead: (...read) => void seen.push(read) });
  await guest.read(0, new Uint8Array(4096));
  const waiting = guest.read(65_536, new Uint8Array(8192));
  clock.ms = 20;
  await waiting;
  expect(guest.stalls()).toMatchObject({ count: 1, totalMs: 20, maxMs: 20 });
  guest.stopWatching();
  await guest.read(65_536, new Uint8Array(4096));
  expect(seen).toEqual([
    [0, 4096, false],
    [65_536, 8192, true],
  ]);
});
