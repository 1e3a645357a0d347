/** qcow2 images with the dirty bit, or corrupt; the barrier; dropping tables; opening late. */
import { expect, test } from "vitest";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/image.ts";
import { type OpenQcow2Options, openQcow2 } from "../../../src/image/qcow2/open.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { type HandMade, type HandMadeQcow2, handMadeQcow2 } from "../../support/qcow2-bytes.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";

const PATH = "/vm/a.qcow2";
const CLUSTER = 4096;
const DIRTY = 1n;
const CORRUPT = 2n;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

interface Scene {
  readonly files: FakeFiles;
  readonly made: HandMade;
  readonly clock: ManualClock;
  open(options?: Partial<OpenQcow2Options>): Promise<Qcow2Image>;
  features(): bigint;
  entry(cluster: number): bigint;
  setEntry(cluster: number, value: bigint): void;
  /** Of a cluster of the file. */
  refcount(cluster: number): number;
  setRefcount(cluster: number, count: number): void;
}

/** Clusters 1 and 2 hold data, in clusters 5 and 6 of the file. */
function scene(incompatible: bigint, more: Partial<HandMadeQcow2> = {}): Scene {
  const files = new FakeFiles();
  const clusters = new Map([
    [1, 1],
    [2, 2],
  ]);
  const made = handMadeQcow2({ sizeBytes: 64 * CLUSTER, incompatible, clusters, ...more });
  const disk = files.add(PATH, made.bytes);
  const clock = new ManualClock();
  const read = (at: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    disk.get(at, bytes);
    return bytes;
  };
  return {
    files,
    made,
    clock,
    open: (options = {}) => openQcow2({ files, clock }, { path: PATH, readOnly: false, ...options }),
    features: () => read(72, 8).readBigUInt64BE(),
    entry: (cluster) => read(made.l2Offset + 8 * cluster, 8).readBigUInt64BE(),
    setEntry(cluster, value) {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(value);
      disk.put(made.l2Offset + 8 * cluster, bytes);
    },
    refcount: (cluster) => read(made.refcountBlockOffset + 2 * cluster, 2).readUInt16BE(),
    setRefcount(cluster, count) {
      disk.put(made.refcountBlockOffset + 2 * cluster, Buffer.from([count >>> 8, count & 255]));
    },
  };
}

async function read(image: Qcow2Image, cluster: number): Promise<Buffer> {
  const into = Buffer.alloc(CLUSTER, 0xee);
  await image.read(cluster * CLUSTER, into);
  return into;
}

/** Entries that point nowhere they may. */
function wrongEntries({ bytes, l1Offset, l2Offset, refcountTableOffset }: HandMade): bigint[] {
  const places = [bytes.length - 512, 0, refcountTableOffset, l1Offset, l2Offset, bytes.length, 2 ** 40];
  const wrong = places.map((place) => BigInt(place) | COPIED);
  return [...wrong, 2n, COPIED | 1n, COPIED | COMPRESSED | 0x5000n, COMPRESSED | 0xff000n, 2n ** 64n - 1n];
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
}

test("in an image with the dirty bit, a wrong entry reads as unallocated and is cleared by the check", async () => {
  const { files, made, open, setEntry, entry, features } = scene(DIRTY);
  const wrong = wrongEntries(made);
  for (const [index, value] of wrong.entries()) setEntry(10 + index, value);
  {
    await using looking = await open({ readOnly: true });
    expect(looking.dirty).toBe(true);
    for (let cluster = 10; cluster < 22; cluster++) expect(await read(looking, cluster)).toEqual(Buffer.alloc(CLUSTER));
    expect(looking.checkProgress.state).toBe("none");
  }
  expect(files.count("write")).toBe(0);
  const image = await open();
  expect(await read(image, 1)).toEqual(pattern(CLUSTER, CLUSTER, 1));
  await image.checkEnded();
  const counted = { entriesCleared: wrong.length, clustersChecked: 64, clustersTotal: 64 };
  expect(image.checkProgress).toMatchObject({ state: "clean", ...counted });
  for (let cluster = 10; cluster < 22; cluster++) expect(entry(cluster)).toBe(0n);
  expect(features()).toBe(0n);
  await image.close();
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ corruptions: 0, leaks: 0, dirty: false });
});

test("in an image without it, a wrong entry is corruption where it is, and nowhere else", async () => {
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
  for (const [incompatible, value] of [
    [0n, COPIED | 0x100_0000n],
    [DIRTY, COPIED | 0x100_0000n],
    [0n, COPIED | 0x4001n],
    [0n, COPIED | 0x1000n],
  ] as const) {
    const { files, made, open } = scene(incompatible);
    const wrong = Buffer.alloc(8);
    wrong.writeBigUInt64BE(value);
    files.disks.get(PATH)?.put(made.l1Offset, wrong);
    await using image = await open();
    if (incompatible === 0n) {
      await expect(read(image, 1)).rejects.toMatchObject({ field: "L1 table entry", at: made.l1Offset });
      continue;
    }
    expect(await read(image, 1)).toEqual(Buffer.alloc(CLUSTER));
    await image.write(CLUSTER, pattern(CLUSTER, CLUSTER, 5));
    expect(image.checkProgress).toMatchObject({
      state: "clean",
      entriesCleared: 1,
      report: { leaksFixed: 3, leaks: 0 },
    });
  }
});

test("while the check runs, reads and writes in place go on; what changes tables waits, and finds the counts right", async () => {
  const { files, made, open, setEntry, entry, clock, setRefcount, refcount } = scene(DIRTY);
  // Behind the end of the file: the next cluster to be allocated would be just there.
  setEntry(9, COPIED | BigInt(made.bytes.length));
  // Counts that were never written, as lazy refcounts leave them.
  setRefcount(5, 0);
  setRefcount(6, 0);
  await using image = await open();
  const release = files.hold("extentAt");
  await image.write(CLUSTER + 5, pattern(CLUSTER + 5, 100, 9));
  expect(image.checkProgress).toMatchObject({ state: "running", clustersChecked: 0, waiting: 0 });
  let settled = 0;
  const allocating = [image.write(20 * CLUSTER, pattern(0, 512)), image.writeZeroes(2 * CLUSTER, CLUSTER)];
  for (const write of allocating) void write.finally(() => settled++);
  await turns();
  clock.advance(1500);
  expect(await read(image, 2)).toEqual(pattern(2 * CLUSTER, CLUSTER, 2));
  expect(await read(image, 20)).toEqual(Buffer.alloc(CLUSTER));
  expect(settled).toBe(0);
  expect(image.checkProgress).toMatchObject({ waiting: 2, longestWaitMs: 1500 });
  release();
  await Promise.all(allocating);
  expect(image.checkProgress).toMatchObject({ state: "clean", waiting: 0, entriesCleared: 3 });
  expect([entry(2), entry(9), entry(20)]).toEqual([COPIED | 0x6001n, 0n, COPIED | BigInt(made.bytes.length)]);
  expect([5, 6, 7].map(refcount)).toEqual([1, 1, 1]);
  expect(await read(image, 2)).toEqual(Buffer.alloc(CLUSTER));
});

test("what the check repairs is durable before the dirty bit goes, and that before anything is allocated", async () => {
  const { files, made, open, setRefcount } = scene(DIRTY);
  setRefcount(6, 0);
  await using image = await open();
  await image.write(20 * CLUSTER, pattern(0, 512));
  const order = files.log.filter((line) => /^(write|truncate|dataSync)/.test(line));
  expect(order.slice(0, 6)).toEqual([
    `write ${made.refcountBlockOffset}+14`,
    "dataSync",
    "write 72+8",
    "dataSync",
    "dataSync",
    `truncate ${made.bytes.length + 8 * CLUSTER}`,
  ]);
});

test("clusters with two references end all writing when the check ends, and can be read", async () => {
  const { files, open, setEntry, entry, features } = scene(DIRTY);
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
  expect(features()).toBe(DIRTY);
  // A repair makes them share it: whoever is written to gets a place of its own.
  expect(await checkQcow2({ files }, { path: PATH, repair: "all" })).toMatchObject({ corruptions: 0 });
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ corruptions: 0, leaks: 0, dirty: false });
  await using again = await open();
  await again.write(30 * CLUSTER + 512, pattern(0, 512));
  expect(await read(again, 1)).toEqual(pattern(CLUSTER, CLUSTER, 1));
  const expected = pattern(CLUSTER, CLUSTER, 1);
  pattern(0, 512).copy(expected, 512);
  expect(await read(again, 30)).toEqual(expected);
  await again.write(CLUSTER, pattern(0, 512));
  await again.close();
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ corruptions: 0, leaks: 0, dirty: false });
});

test("when the check cannot read a table, nothing is allocated, and the rest goes on", async () => {
  const { files, open, features } = scene(DIRTY);
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
  expect(features()).toBe(DIRTY);
});

test("an image that is marked as corrupt is read, never written, until a repair finds nothing wrong", async () => {
  const { files, open, features } = scene(CORRUPT);
  await expect(open()).rejects.toMatchObject({ code: "corrupt", hint: expect.stringContaining("qemu-img check") });
  {
    await using image = await open({ readOnly: true });
    expect(await read(image, 1)).toEqual(pattern(CLUSTER, CLUSTER, 1));
    await expect(image.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "read-only" });
  }
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ corrupt: true, corruptions: 0 });
  await checkQcow2({ files }, { path: PATH, repair: "all" });
  expect(features()).toBe(0n);
  await (await open()).close();
});

test("checking counts lost space and wrong counts, and repairs what it is told to", async () => {
  const { files, setEntry, setRefcount, refcount } = scene(0n);
  setEntry(1, 0n);
  setRefcount(6, 0);
  setRefcount(3, 2);
  const before = { leaks: 2, corruptions: 1, corruptionsFixed: 0, dirty: false };
  // Cluster 6 of the file is marked as its entry's own, and counted by nothing.
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ ...before, corruptions: 2 });
  expect(files.count("write")).toBe(0);
  const leaks = await checkQcow2({ files }, { path: PATH, repair: "leaks" });
  expect(leaks).toMatchObject({ leaks: 0, leaksFixed: 2, corruptions: 2 });
  expect([3, 5, 6].map(refcount)).toEqual([1, 0, 0]);
  expect(await checkQcow2({ files }, { path: PATH, repair: "all" })).toMatchObject({
    corruptions: 0,
    corruptionsFixed: 1,
  });
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 0, corruptions: 0 });
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
  size.writeBigUInt64BE(BigInt(32 * CLUSTER));
  files.disks.get(PATH)?.put(24, size);
  await image.invalidate();
  await expect(read(image, 7)).rejects.toMatchObject({ code: "io" });
  expect(made.content.length).toBe(image.sizeBytes);
});

test("writes that wait for the check when the tables are dropped begin again with the new ones", async () => {
  const { files, open, setRefcount } = scene(DIRTY);
  setRefcount(5, 0);
  await using image = await open();
  const release = files.hold("extentAt");
  const write = image.write(20 * CLUSTER, pattern(0, 512));
  await turns();
  expect(image.checkProgress.waiting).toBe(1);
  const dropped = image.invalidate();
  release();
  await Promise.all([dropped, write]);
  expect((await read(image, 20)).subarray(0, 512)).toEqual(pattern(0, 512));
  await image.close();
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 0, corruptions: 0, dirty: false });
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
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 0, corruptions: 0, dirty: false });
});

test("closing ends a check that nobody waits for, and leaves the dirty bit", async () => {
  const { files, open, features, setRefcount } = scene(DIRTY);
  setRefcount(5, 0);
  const image = await open();
  const release = files.hold("extentAt");
  await read(image, 1);
  const closing = image.close();
  release();
  await closing;
  expect(features()).toBe(DIRTY);
  expect(files.count("write")).toBe(0);
});
