import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { FileError } from "../../../src/env/files.ts";
import { SourceAnsweredError, SourceLostError } from "../../../src/stream/errors.ts";
import { begin, CLUSTER_BYTES } from "./hydration-rig.ts";

test("everything that is missing is fetched once, zeroes are not fetched, and the end is complete", async () => {
  const rig = begin({ clusters: 100, zeroFrom: 60 });
  expect(await rig.scheduler.complete(rig.hydrator.whenDone())).toEqual({ state: "complete" });
  expect(rig.target.fetched.reduce((sum, { count }) => sum + count, 0)).toBe(60);
  expect(rig.target.zeroed).toEqual([{ first: 60, count: 40 }]);
  expect(rig.hydrator.progress()).toMatchObject({
    ...{ state: "complete", totalBytes: 100 * CLUSTER_BYTES, missingBytes: 0, localBytes: 100 * CLUSTER_BYTES },
    ...{ fetchedBytes: 60 * CLUSTER_BYTES, zeroBytes: 40 * CLUSTER_BYTES, bytesPerSecond: 0, fetchesUnderWay: 0 },
  });
  expect(rig.clock.timers).toBe(0);
  await rig.close();
});

test("no more fetches are under way than the window allows, also when it is changed", async () => {
  const rig = begin({ clusters: 400, windowUnits: 3 });
  await rig.scheduler.runFor(55);
  expect(rig.target.mostUnderWay).toBe(3);
  rig.hydrator.setWindow(7);
  await rig.scheduler.runFor(55);
  expect(rig.target.mostUnderWay).toBe(7);
  expect(() => rig.hydrator.setWindow(0)).toThrow(RangeError);
  await rig.close();
});

test("an operator's pause lets what is under way finish and starts nothing; resume goes on", async () => {
  const rig = begin({ clusters: 400 });
  await rig.scheduler.runFor(25);
  rig.hydrator.pause();
  await rig.scheduler.runFor(20);
  const before = rig.target.fetched.length;
  await rig.scheduler.runFor(60_000);
  expect(rig.target.fetched).toHaveLength(before);
  expect(rig.hydrator.progress()).toMatchObject({ state: "paused", stalledBy: "operator", bytesPerSecond: 0 });
  expect(rig.hydrator.progress()).not.toHaveProperty("etaMs");
  rig.hydrator.resume();
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("complete");
  await rig.close();
});

test("it does nothing before it may begin, and can be closed meanwhile", async () => {
  const leisure = Promise.withResolvers<void>();
  const rig = begin({ clusters: 20, begin: leisure.promise });
  await rig.scheduler.runFor(60_000);
  expect([rig.target.fetched, rig.source.asked]).toEqual([[], 0]);
  leisure.resolve();
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("complete");
  await rig.close();
  const closed = begin({ clusters: 20, begin: new Promise(() => undefined) });
  await closed.close();
  expect([closed.target.fetched, closed.source.asked]).toEqual([[], 0]);
});

test("a source that is away shows as disconnected, not as paused, and hydration goes on when it is back", async () => {
  const rig = begin({ clusters: 400 });
  await rig.scheduler.runFor(25);
  rig.source.become("disconnected");
  rig.target.fetchError = new SourceLostError("away");
  await rig.scheduler.runFor(60_000);
  expect(rig.hydrator.progress()).toMatchObject({ state: "disconnected", stalledBy: "source" });
  rig.target.fetchError = undefined;
  rig.source.become("connected");
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("complete");
  expect(rig.hydrator.progress().failed.ranges).toEqual([]);
  await rig.close();
});

test("a source that is connected to for the first time is told apart from one that is away", async () => {
  const rig = begin({ clusters: 4 });
  rig.source.become("connecting");
  expect(rig.hydrator.progress()).toMatchObject({ state: "disconnected", stalledBy: "connecting" });
  rig.source.become("disconnected");
  expect(rig.hydrator.progress()).toMatchObject({ state: "disconnected", stalledBy: "source" });
  rig.source.become("connected");
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("complete");
  await rig.close();
});

test("what the source cannot give is found to the cluster and listed, the rest is fetched, and it is asked for again slowly", async () => {
  const rig = begin({ clusters: 100 });
  rig.target.bad = new Set([17, 18, 90]);
  await rig.scheduler.runFor(20_000);
  expect(rig.target.localClusters).toBe(97);
  expect(rig.hydrator.progress()).toMatchObject({ state: "incomplete", stalledBy: "source-errors" });
  expect(rig.hydrator.progress().failed).toEqual({
    bytes: 3 * CLUSTER_BYTES,
    unlisted: 0,
    ranges: [
      { offset: 17 * CLUSTER_BYTES, length: 2 * CLUSTER_BYTES, code: "io", attempts: 1 },
      { offset: 90 * CLUSTER_BYTES, length: CLUSTER_BYTES, code: "io", attempts: 1 },
    ],
  });
  await rig.scheduler.runFor(31_000);
  expect(rig.hydrator.progress().failed.ranges[0]?.attempts).toBe(2);
  rig.target.bad.clear();
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 31_000)).state).toBe("complete");
  await rig.close();
});

test("resume asks at once for what the source could not give", async () => {
  const rig = begin({ clusters: 100 });
  rig.target.bad = new Set([17]);
  await rig.scheduler.runFor(10_000);
  rig.target.bad.clear();
  rig.hydrator.resume();
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 1000)).state).toBe("complete");
  await rig.close();
});

test("a full local disk stops all fetches but one, tried again every few seconds, and resumes by itself", async () => {
  const rig = begin({ clusters: 400 });
  await rig.scheduler.runFor(25);
  rig.target.fetchError = new BlockError("no-space", "the disk is full");
  await rig.scheduler.runFor(1000);
  const before = rig.target.fetched.length;
  await rig.scheduler.runFor(20_000);
  expect(rig.target.fetched.length - before).toBe(4);
  expect(rig.hydrator.progress()).toMatchObject({ state: "no-space", stalledBy: "no-space" });
  rig.target.fetchError = undefined;
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 10_000)).state).toBe("complete");
  expect(rig.clock.timers).toBe(0);
  await rig.close();
});

test("a full disk at the very end keeps it from being complete until there is room", async () => {
  const rig = begin({ clusters: 10 });
  rig.target.completeError = new BlockError("no-space", "no room for the map");
  await rig.scheduler.runFor(12_000);
  expect(rig.hydrator.state).toBe("no-space");
  rig.target.completeError = undefined;
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 6000)).state).toBe("complete");
  await rig.close();
});

for (const error of [
  new BlockError("io", "a sync has failed"),
  new FileError("EIO", "the map"),
  new TypeError("a bug"),
]) {
  test(`${error.name} of the local side ends it as failed, and says why`, async () => {
    const rig = begin({ clusters: 400 });
    await rig.scheduler.runFor(25);
    rig.target.fetchError = error;
    expect(await rig.scheduler.complete(rig.hydrator.whenDone())).toEqual({ state: "failed", error });
    expect(rig.hydrator.progress()).toMatchObject({ state: "failed", stalledBy: "local-disk", error: error.message });
    const before = rig.target.fetched.length;
    await rig.scheduler.runFor(60_000);
    expect(rig.target.fetched).toHaveLength(before);
    await rig.close();
    expect(rig.hydrator.state).toBe("failed");
  });
}

test("an error of the final step ends it as failed, never as complete", async () => {
  const rig = begin({ clusters: 10 });
  rig.target.completeError = new BlockError("io", "a sync has failed");
  expect((await rig.scheduler.complete(rig.hydrator.whenDone())).state).toBe("failed");
  await rig.close();
});

test("a fetch that stored nothing is followed by another pass", async () => {
  const rig = begin({ clusters: 100 });
  rig.target.ignored = new Set([40, 41]);
  await rig.scheduler.runFor(500);
  expect(rig.target.localClusters).toBe(98);
  rig.target.ignored.clear();
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 2000)).state).toBe("complete");
  await rig.close();
});

test("a rate limit holds, in smaller units, and can be lifted at run time", async () => {
  const rig = begin({ clusters: 2000, rate: 400_000 });
  await rig.scheduler.runFor(10_000);
  const { fetchedBytes, bytesPerSecond, etaMs = 0, missingBytes } = rig.hydrator.progress();
  expect(fetchedBytes / 4_000_000).toBeCloseTo(1, 1);
  expect(bytesPerSecond / 400_000).toBeCloseTo(1, 1);
  expect(etaMs / ((missingBytes / 400_000) * 1000)).toBeCloseTo(1, 1);
  expect(Math.max(...rig.target.fetched.map(({ count }) => count))).toBe(16);
  rig.hydrator.setRate(undefined);
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 2000)).state).toBe("complete");
  await rig.close();
});

test("disposing while the source is away ends the fetches that wait for it, and leaves nothing behind", async () => {
  const rig = begin({ clusters: 400 });
  const release = rig.target.hold();
  await rig.scheduler.runFor(25);
  rig.source.become("disconnected");
  rig.source.onClose = () => release(new BlockError("shutting-down", "the source was closed"));
  await rig.scheduler.complete(rig.hydrator[Symbol.asyncDispose](), 0);
  expect(await rig.hydrator.whenDone()).toEqual({ state: "closed" });
  expect(rig.clock.timers).toBe(0);
  expect(rig.hydrator.progress().fetchesUnderWay).toBe(0);
});

test("a source that is closed by somebody else ends it as closed, not as complete", async () => {
  const rig = begin({ clusters: 400 });
  await rig.scheduler.runFor(25);
  rig.source.become("closed");
  expect((await rig.scheduler.complete(rig.hydrator.whenDone(), 0)).state).toBe("closed");
  await rig.close();
});

test("progress survives the way through JSON", async () => {
  const rig = begin({ clusters: 100, rate: 1_000_000 });
  rig.target.bad = new Set([3]);
  await rig.scheduler.runFor(700);
  const progress = rig.hydrator.progress();
  expect(JSON.parse(JSON.stringify(progress))).toEqual(progress);
  await rig.close();
});

test("an error of the source keeps its code in the list", async () => {
  const rig = begin({ clusters: 1 });
  rig.target.fetchError = new SourceAnsweredError(new BlockError("no-space", "odd"), 0, CLUSTER_BYTES);
  await rig.scheduler.runFor(1000);
  expect(rig.hydrator.state).toBe("incomplete");
  expect(rig.hydrator.progress().failed.ranges[0]?.code).toBe("no-space");
  await rig.close();
});
