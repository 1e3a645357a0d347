/** Images that were not closed cleanly, or are corrupt; the barrier; dropping tables; opening late. */
import { expect, test } from "vitest";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import type { QedImage } from "../../../src/image/qed/image.ts";
import { type OpenQedOptions, openQed } from "../../../src/image/qed/open.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { type HandMade, handMadeQed } from "../../support/qed-bytes.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";

const PATH = "/vm/a.qed";
const CLUSTER = 4096;
const NEED_CHECK = 2n;

interface Scene {
  readonly files: FakeFiles;
  readonly made: HandMade;
  readonly clock: ManualClock;
  open(options?: Partial<OpenQedOptions>): Promise<QedImage>;
  features(): bigint;
  entry(cluster: number): bigint;
  setEntry(cluster: number, value: bigint): void;
}

/** Clusters 1 and 2 hold data. */
function scene(features: bigint): Scene {
  const files = new FakeFiles();
  const clusters = new Map([
    [1, 1],
    [2, 2],
  ]);
  const made = handMadeQed({ sizeBytes: 64 * CLUSTER, features, clusters });
  const disk = files.add(PATH, made.bytes);
  const clock = new ManualClock();
  const word = (at: number): bigint => {
    const bytes = Buffer.alloc(8);
    disk.get(at, bytes);
    return bytes.readBigUInt64LE();
  };
  return {
    files,
    made,
    clock,
    open: (options = {}) => openQed({ files, clock }, { path: PATH, readOnly: false, ...options }),
    features: () => word(16),
    entry: (cluster) => word(made.l2Offset + 8 * cluster),
    setEntry(cluster, value) {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64LE(value);
      disk.put(made.l2Offset + 8 * cluster, bytes);
    },
  };
}

async function read(image: QedImage, cluster: number): Promise<Buffer> {
  const into = Buffer.alloc(CLUSTER, 0xee);
  await image.read(cluster * CLUSTER, into);
  return into;
}

/** Entries that point nowhere they may: unaligned, header, L1 table, L2 table, behind the end, too large for a number. */
function wrongEntries({ bytes, l1Offset, l2Offset }: HandMade): bigint[] {
  return [bytes.length - 100, 2, l1Offset, l2Offset, l2Offset + CLUSTER, bytes.length, 2 ** 40]
    .map(BigInt)
    .concat(2n ** 63n, 2n ** 64n - 1n);
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
}

test("in an image that was not closed cleanly, a wrong entry reads as unallocated and is cleared by the check", async () => {
  const { files, made, open, setEntry, entry, features, clock } = scene(NEED_CHECK);
  for (const [index, value] of wrongEntries(made).entries()) setEntry(10 + index, value);
  {
    await using looking = await open({ readOnly: true });
    for (let cluster = 10; cluster < 20; cluster++) expect(await read(looking, cluster)).toEqual(Buffer.alloc(CLUSTER));
    expect(looking.checkProgress.state).toBe("none");
  }
  expect(files.count("write")).toBe(0);
  const image = await open();
  expect(await read(image, 1)).toEqual(pattern(CLUSTER, CLUSTER, 1));
  await image.checkEnded();
  expect(image.checkProgress).toMatchObject({
    state: "clean",
    entriesCleared: 9,
    clustersChecked: 64,
    clustersTotal: 64,
  });
  expect(image.checkProgress.report?.badEntries[1]).toEqual({
    field: "L2 table entry",
    at: made.l2Offset + 88,
    value: 2,
  });
  for (let cluster = 10; cluster < 20; cluster++) expect(entry(cluster)).toBe(0n);
  expect(features()).toBe(NEED_CHECK);
  clock.advance(5000);
  await turns();
  expect(features()).toBe(0n);
  await image.close();
  expect(await checkQed({ files }, { path: PATH })).toMatchObject({ corruptions: 0, leaks: 0, dirty: false });
});

test("in an image that was closed cleanly, a wrong entry is corruption where it is, and nowhere else", async () => {
  const { made } = scene(0n);
  for (const value of wrongEntries(made)) {
    const { files, open, setEntry } = scene(0n);
    setEntry(10, value);
    await using image = await open();
    const expected = { name: "BlockError", code: "io", field: "L2 table entry", at: made.l2Offset + 80 };
    await expect(read(image, 10), `${value}`).rejects.toMatchObject(expected);
    await expect(image.write(10 * CLUSTER, pattern(0, 512))).rejects.toMatchObject(expected);
    expect(image.readNow(10 * CLUSTER, Buffer.alloc(512))).toBe(-1);
    expect(await read(image, 1)).toEqual(pattern(CLUSTER, CLUSTER, 1));
    expect(files.count("write ")).toBe(0);
  }
});

test("a wrong entry of the L1 table is treated alike", async () => {
  for (const features of [0n, NEED_CHECK]) {
    const { files, made, open } = scene(features);
    const wrong = Buffer.alloc(8);
    wrong.writeBigUInt64LE(BigInt(made.bytes.length - CLUSTER));
    // An L2 table of two clusters of which only one is within the file.
    files.disks.get(PATH)?.put(made.l1Offset, wrong);
    await using image = await open();
    if (features === 0n) {
      await expect(read(image, 1)).rejects.toMatchObject({ field: "L1 table entry", at: made.l1Offset });
      continue;
    }
    expect(await read(image, 1)).toEqual(Buffer.alloc(CLUSTER));
    await image.write(CLUSTER, pattern(CLUSTER, CLUSTER, 5));
    expect(image.checkProgress).toMatchObject({ state: "clean", entriesCleared: 1, report: { leaks: 4 } });
  }
});

test("while the check runs, reads and writes in place go on and allocating writes wait", async () => {
  const { files, made, open, setEntry, entry, clock } = scene(NEED_CHECK);
  // Behind the end of the file: the next cluster to be allocated would be just there.
  setEntry(9, BigInt(made.bytes.length));
  await using image = await open();
  const release = files.hold("extentAt");
  await image.write(CLUSTER + 5, pattern(CLUSTER + 5, 100, 9));
  expect(image.checkProgress).toMatchObject({ state: "running", clustersChecked: 0, waiting: 0 });
  let settled = 0;
  const allocating = [image.write(20 * CLUSTER, pattern(0, 512)), image.write(21 * CLUSTER, pattern(0, 512))];
  for (const write of allocating) void write.finally(() => settled++);
  await turns();
  clock.advance(1500);
  expect(await read(image, 2)).toEqual(pattern(2 * CLUSTER, CLUSTER, 2));
  expect(await read(image, 20)).toEqual(Buffer.alloc(CLUSTER));
  expect(settled).toBe(0);
  expect(image.checkProgress).toMatchObject({ waiting: 2, longestWaitMs: 1500 });
  release();
  await Promise.all(allocating);
  expect(image.checkProgress).toMatchObject({ state: "clean", waiting: 0, longestWaitMs: 1500, entriesCleared: 1 });
  expect([entry(9), entry(20), entry(21)].map(Number)).toEqual([0, made.bytes.length, made.bytes.length + CLUSTER]);
  expect(await read(image, 9)).toEqual(Buffer.alloc(CLUSTER));
});

test("what the check clears is durable before anything is allocated", async () => {
  const { files, made, open, setEntry } = scene(NEED_CHECK);
  setEntry(9, BigInt(made.bytes.length));
  await using image = await open();
  await image.write(20 * CLUSTER, pattern(0, 512));
  const order = files.log.filter((line) => /^(write|truncate|dataSync)/.test(line));
  expect(order.slice(0, 3)).toEqual([
    `write ${made.l2Offset + 72}+8`,
    "dataSync",
    `truncate ${made.bytes.length + CLUSTER}`,
  ]);
});

test("clusters with two references end all writing when the check ends, and can be read", async () => {
  const { files, open, setEntry, entry } = scene(NEED_CHECK);
  setEntry(30, entry(1));
  await using image = await open();
  expect(await read(image, 30)).toEqual(pattern(CLUSTER, CLUSTER, 1));
  await image.checkEnded();
  expect(image.checkProgress).toMatchObject({ state: "failed", report: { corruptions: 1 } });
  for (const cluster of [1, 2, 40]) {
    await expect(image.write(cluster * CLUSTER, pattern(0, 512))).rejects.toMatchObject({ code: "io" });
    expect(image.writeNow(cluster * CLUSTER, pattern(0, 512))).toBe(-1);
  }
  expect(await read(image, 2)).toEqual(pattern(2 * CLUSTER, CLUSTER, 2));
  await image.close();
  const report = { corruptions: 1, corruptionsFixed: 0, leaks: 0, allocatedClusters: 3, dirty: true };
  expect(await checkQed({ files }, { path: PATH })).toMatchObject(report);
  expect(await checkQed({ files }, { path: PATH, repair: true })).toMatchObject(report);
  expect(await checkQed({ files }, { path: PATH })).toMatchObject(report);
});

test("when the check cannot read a table, nothing is allocated, and the rest goes on", async () => {
  const { files, open, features } = scene(NEED_CHECK);
  const image = await open();
  const release = files.hold("extentAt");
  await read(image, 1);
  files.inject({ operation: "read", code: "EIO" });
  release();
  await image.checkEnded();
  files.clearFaults();
  expect(image.checkProgress).toMatchObject({ state: "failed", failure: expect.stringContaining("ordered to fail") });
  await expect(image.write(20 * CLUSTER, pattern(0, 512))).rejects.toMatchObject({ code: "io" });
  await image.write(CLUSTER, pattern(CLUSTER, CLUSTER, 8));
  expect(await read(image, 1)).toEqual(pattern(CLUSTER, CLUSTER, 8));
  await image.close();
  expect(features()).toBe(NEED_CHECK);
});

test("checking counts lost space and wrong entries, and repairs what can be repaired", async () => {
  const { files, made, setEntry, features } = scene(NEED_CHECK);
  setEntry(1, 0n);
  setEntry(30, BigInt(made.bytes.length + CLUSTER));
  expect(await checkQed({ files }, { path: PATH })).toMatchObject({
    leaks: 1,
    corruptions: 1,
    corruptionsFixed: 0,
    dirty: true,
  });
  expect(files.count("write")).toBe(0);
  expect(await checkQed({ files }, { path: PATH, repair: true })).toMatchObject({
    leaks: 1,
    corruptions: 0,
    corruptionsFixed: 1,
  });
  expect(features()).toBe(0n);
  expect(await checkQed({ files }, { path: PATH })).toMatchObject({ leaks: 1, corruptions: 0, dirty: false });
});

test("NEED_CHECK goes when nothing was allocated for five seconds, behind a sync, and comes back", async () => {
  const { files, open, features, clock } = scene(0n);
  await using image = await open();
  await image.write(20 * CLUSTER, pattern(0, 512));
  clock.advance(4000);
  await image.write(21 * CLUSTER, pattern(0, 512));
  clock.advance(4000);
  await turns();
  expect(features()).toBe(NEED_CHECK);
  files.log.length = 0;
  clock.advance(1000);
  await turns();
  expect(features()).toBe(0n);
  expect(files.log).toEqual(["dataSync", "write 16+24"]);
  expect(clock.timers).toBe(0);
  // In place: no table changes.
  await image.write(20 * CLUSTER, pattern(0, 512, 2));
  expect(features()).toBe(0n);
  files.log.length = 0;
  await image.write(22 * CLUSTER, pattern(0, 512));
  expect(files.log.slice(0, 2)).toEqual(["write 16+24", "dataSync"]);
  expect(features()).toBe(NEED_CHECK);
});

test("dropping the tables writes nothing, and what somebody else has changed is seen", async () => {
  const { files, made, open, setEntry, entry } = scene(0n);
  await using image = await open();
  expect(await read(image, 7)).toEqual(Buffer.alloc(CLUSTER));
  files.log.length = 0;
  setEntry(7, entry(1));
  setEntry(1, 0n);
  expect(await read(image, 7)).toEqual(Buffer.alloc(CLUSTER));
  await image.invalidate();
  expect(files.log.filter((line) => /^(write|truncate|dataSync)/.test(line))).toEqual([]);
  expect(await read(image, 7)).toEqual(pattern(CLUSTER, CLUSTER, 1));
  // Another size is another image.
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(32 * CLUSTER));
  files.disks.get(PATH)?.put(48, size);
  await image.invalidate();
  await expect(read(image, 7)).rejects.toMatchObject({ code: "io" });
  expect(made.content.length).toBe(image.sizeBytes);
});

test("writes that wait for the check when the tables are dropped begin again with the new ones", async () => {
  const { files, open, features } = scene(NEED_CHECK);
  await using image = await open();
  await image.checkEnded();
  await image.invalidate();
  const release = files.hold("extentAt");
  const write = image.write(20 * CLUSTER, pattern(0, 512));
  await turns();
  expect(image.checkProgress.waiting).toBe(1);
  const dropped = image.invalidate();
  release();
  await Promise.all([dropped, write]);
  expect((await read(image, 20)).subarray(0, 512)).toEqual(pattern(0, 512));
  expect(features()).toBe(NEED_CHECK);
});

test("an image that is opened late knows its size, takes no lock, and serves nothing before it is opened", async () => {
  const { files, open } = scene(0n);
  const owner = await open();
  await using late = await open({ late: true });
  expect(late.sizeBytes).toBe(64 * CLUSTER);
  expect(late.readNow(0, Buffer.alloc(512))).toBe(-1);
  await expect(read(late, 1)).rejects.toMatchObject({ code: "io" });
  await expect(late.open()).rejects.toMatchObject({ code: "locked" });
  await owner.write(20 * CLUSTER, pattern(0, CLUSTER, 3));
  await owner.deactivate();
  await expect(read(owner, 1)).rejects.toMatchObject({ code: "io" });
  await late.open();
  expect(await read(late, 20)).toEqual(pattern(0, CLUSTER, 3));
  await late.write(0, pattern(0, 512));
  await expect(owner.open()).rejects.toMatchObject({ code: "locked" });
  await late.deactivate();
  // And back again.
  await owner.open();
  expect((await read(owner, 0)).subarray(0, 512)).toEqual(pattern(0, 512));
  await owner.close();
  expect(await checkQed({ files }, { path: PATH })).toMatchObject({ leaks: 0, corruptions: 0, dirty: false });
});

test("closing ends a check that nobody waits for, and leaves NEED_CHECK", async () => {
  const { files, open, features, setEntry, made } = scene(NEED_CHECK);
  setEntry(9, BigInt(made.bytes.length));
  const image = await open();
  const release = files.hold("extentAt");
  await read(image, 1);
  const closing = image.close();
  release();
  await closing;
  expect(features()).toBe(NEED_CHECK);
  expect(files.count("write")).toBe(0);
});
