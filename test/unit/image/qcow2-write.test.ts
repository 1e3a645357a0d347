/** Writing to qcow2 images: the order of steps, reference counts, copies, zeroes and discards, and running out of space. */
import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { type CreateQcow2Options, createQcow2 } from "../../../src/image/qcow2/create.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/image.ts";
import { type OpenQcow2Options, openQcow2 } from "../../../src/image/qcow2/open.ts";
import { type FakeDisk, FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { handMadeQcow2 } from "../../support/qcow2-bytes.ts";

const PATH = "/vm/a.qcow2";
const CLEAN = { leaks: 0, corruptions: 0, checkErrors: 0 };

async function created(options: Partial<CreateQcow2Options> = {}): Promise<FakeFiles> {
  const files = new FakeFiles();
  await createQcow2({ files }, { path: PATH, sizeBytes: 64 * 4096, clusterBytes: 4096, ...options });
  files.log.length = 0;
  return files;
}

function opened(files: FakeFiles, options: Partial<OpenQcow2Options> = {}): Promise<Qcow2Image> {
  return openQcow2({ files }, { path: PATH, readOnly: false, ...options });
}

function disk(files: FakeFiles): FakeDisk {
  const found = files.disks.get(PATH);
  if (found === undefined) throw new Error("there is no image");
  return found;
}

function bytesAt(files: FakeFiles, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  disk(files).get(offset, bytes);
  return bytes;
}

async function read(image: Qcow2Image, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await image.read(offset, into);
  return into;
}

async function checkAfterClose(files: FakeFiles, image: Qcow2Image): Promise<unknown> {
  await image.close();
  return checkQcow2({ files }, { path: PATH });
}

/** What changes the file. */
function changes(files: FakeFiles): string[] {
  return files.log.filter((line) => /^(write|truncate|dataSync|punch|zero)/.test(line));
}

test("space is counted, durably, before it is used; what was not used is given back on closing", async () => {
  const files = await created();
  const image = await opened(files);
  await read(image, 0, 512);
  files.log.length = 0;
  await image.write(2 * 4096 + 512, pattern(2 * 4096 + 512, 512));
  // Header, refcount table, refcount block, L1 table; then eight clusters, of which the first is the L2 table.
  expect(changes(files)).toEqual([
    "truncate 49152",
    "write 8200+16",
    "dataSync",
    "write 16384+4096",
    "write 12288+8",
    "write 20992+512",
    "write 16400+8",
  ]);
  expect(bytesAt(files, 12_288, 8).toString("hex")).toBe("8000000000004000");
  expect(bytesAt(files, 16_384, 32).toString("hex")).toBe(`${"0".repeat(32)}8000000000005000${"0".repeat(16)}`);
  expect(bytesAt(files, 8192, 26).toString("hex")).toBe(`${"0001".repeat(12)}0000`);
  await image.close();
  expect([disk(files).size, bytesAt(files, 8192, 26).toString("hex")]).toEqual([
    6 * 4096,
    `${"0001".repeat(6)}${"0000".repeat(7)}`,
  ]);
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ ...CLEAN, allocatedClusters: 1 });
});

test("a crash loses what was reserved and not used, and a repair gives it back", async () => {
  const files = await created();
  const image = await opened(files);
  await image.write(0, pattern(0, 4096));
  await image.flush();
  disk(files).losePower();
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 6, corruptions: 0 });
  await checkQcow2({ files }, { path: PATH, repair: "leaks" });
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject(CLEAN);
  await using again = await opened(files);
  expect((await read(again, 0, 4096)).equals(pattern(0, 4096))).toBe(true);
});

test("over a backing, data is durable before its entry", async () => {
  const content = pattern(0, 64 * 4096, 7);
  const files = await created({ backing: { name: "base", format: "raw" } });
  await using image = await opened(files, { backing: new MemoryDevice({ sizeBytes: content.length, content }) });
  await image.write(0, pattern(0, 512));
  files.log.length = 0;
  await image.write(3 * 4096 + 512, pattern(512, 512));
  expect(changes(files)).toEqual([
    "write 24576+512",
    "write 25600+3072",
    "write 25088+512",
    "dataSync",
    "write 16408+8",
  ]);
  content.set(pattern(512, 512), 3 * 4096 + 512);
  expect((await read(image, 3 * 4096, 4096)).equals(content.subarray(3 * 4096, 4 * 4096))).toBe(true);
});

test("autoclear bits are gone, durably, before anything else is written", async () => {
  const files = new FakeFiles();
  files.add(PATH, handMadeQcow2({ sizeBytes: 64 * 4096, clusters: new Map([[1, 1]]), autoclear: 0xf0n }).bytes);
  await using image = await opened(files);
  await image.write(4096, pattern(4096, 512));
  expect(changes(files)).toEqual(["write 88+8", "dataSync", "write 20480+512"]);
  expect(bytesAt(files, 88, 8)).toEqual(Buffer.alloc(8));
});

test("a compressed cluster that is written gets a place of its own, and its old one back when that is durable", async () => {
  const files = new FakeFiles();
  const clusters = new Map([
    [1, { compressed: 1 }],
    [2, { compressed: 2 }],
  ]);
  const made = handMadeQcow2({ sizeBytes: 64 * 4096, clusters });
  files.add(PATH, made.bytes);
  const image = await opened(files);
  await image.write(4096 + 100, pattern(0, 200));
  pattern(0, 200).copy(made.content, 4096 + 100);
  expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
  expect(bytesAt(files, 8192 + 2 * 5, 2).readUInt16BE()).toBe(1);
  files.log.length = 0;
  await image.flush();
  expect(changes(files)).toEqual(["dataSync", "write 8202+2", "punchHole 20480+4096"]);
  await image.writeZeroes(2 * 4096, 4096);
  made.content.fill(0, 2 * 4096, 3 * 4096);
  expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
  expect(await checkAfterClose(files, image)).toMatchObject({ ...CLEAN, allocatedClusters: 1, compressedClusters: 0 });
});

test("a cluster that something else may refer to is copied, not written in place", async () => {
  const files = new FakeFiles();
  const made = handMadeQcow2({ sizeBytes: 64 * 4096, clusters: new Map([[1, 1]]) });
  // Two entries for one cluster, which is counted twice.
  made.bytes.writeBigUInt64BE(0x5000n, made.l2Offset + 8);
  made.bytes.writeBigUInt64BE(0x5000n, made.l2Offset + 16);
  made.bytes.writeUInt16BE(2, made.refcountBlockOffset + 10);
  files.add(PATH, made.bytes);
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject(CLEAN);
  const image = await opened(files);
  await read(image, 0, 64 * 4096);
  expect(image.writeNow(4096, pattern(0, 512))).toBe(-1);
  await image.write(4096, pattern(0, 512, 9));
  const old = pattern(4096, 4096, 1);
  expect((await read(image, 2 * 4096, 4096)).equals(old)).toBe(true);
  expect((await read(image, 4096, 4096)).equals(Buffer.concat([pattern(0, 512, 9), old.subarray(512)]))).toBe(true);
  await image.close();
  // Now it has one reference, and says that it may have more.
  expect(bytesAt(files, made.refcountBlockOffset + 10, 2).readUInt16BE()).toBe(1);
  const report = await checkQcow2({ files }, { path: PATH, repair: "all" });
  expect(report).toMatchObject({ ...CLEAN, corruptionsFixed: 1 });
});

test("zeroes keep the place of what was there, discards too, and neither brings old data back", async () => {
  const files = await created();
  const image = await opened(files);
  await image.write(0, pattern(0, 6 * 4096));
  const size = disk(files).size;
  const held = await image.allocatedBytes();
  await image.writeZeroes(100, 2 * 4096 + 100);
  await image.discard(3 * 4096, 2 * 4096);
  expect(held - (await image.allocatedBytes())).toBe(3 * 4096);
  const runs = await image.runs(0, 6 * 4096);
  expect(runs.map(({ length, zero }) => [length / 4096, zero])).toEqual([
    [1, false],
    [1, true],
    [1, false],
    [2, true],
    [1, false],
  ]);
  const expected = pattern(0, 6 * 4096);
  expected.fill(0, 100, 2 * 4096 + 200).fill(0, 3 * 4096, 5 * 4096);
  expect((await read(image, 0, 6 * 4096)).equals(expected)).toBe(true);
  // Something is in that place after all.
  disk(files).put(runs[3]?.offset ?? 0, Buffer.alloc(4096, 0xee));
  await image.write(3 * 4096 + 512, pattern(0, 512));
  pattern(0, 512).copy(expected, 3 * 4096 + 512);
  expect((await read(image, 0, 6 * 4096)).equals(expected)).toBe(true);
  expect(disk(files).size).toBe(size);
  expect(await checkAfterClose(files, image)).toMatchObject({ ...CLEAN, allocatedClusters: 6 });
});

test("zeroes over a backing are entries in version 3, and data in version 2", async () => {
  const content = pattern(0, 64 * 4096, 7);
  for (const version of [2, 3] as const) {
    const files = await created({ backing: { name: "base" }, version });
    const backing = new MemoryDevice({ sizeBytes: content.length, content });
    const image = await opened(files, { backing });
    await image.writeZeroes(0, 8 * 4096);
    const data = version === 2;
    expect((await image.runs(0, 8 * 4096))[0]).toMatchObject({ length: 8 * 4096, present: true, zero: !data, data });
    const fast = image.writeZeroes(10 * 4096, 4096, { fastOnly: true });
    if (data) await expect(fast).rejects.toMatchObject({ code: "not-supported" });
    else await fast;
    expect((await read(image, 0, 8 * 4096)).equals(Buffer.alloc(8 * 4096))).toBe(true);
    expect((await read(image, 8 * 4096, 4096)).equals(content.subarray(8 * 4096, 9 * 4096))).toBe(true);
    expect(await checkAfterClose(files, image)).toMatchObject(CLEAN);
  }
});

test("a backing that is shorter or longer than the image is zeroes beyond its end, or cut off", async () => {
  for (const backingBytes of [10 * 4096 + 100, 70 * 4096]) {
    const content = pattern(0, backingBytes, 7);
    const expected = Buffer.alloc(64 * 4096);
    content.copy(expected);
    const files = await created({ backing: { name: "base" } });
    await using image = await opened(files, { backing: new MemoryDevice({ sizeBytes: backingBytes, content }) });
    expect((await read(image, 0, expected.length)).equals(expected)).toBe(true);
    for (const offset of [10 * 4096, 10 * 4096 + 1024, 9 * 4096 + 1, 63 * 4096 + 511]) {
      pattern(offset, 300, 3).copy(expected, offset);
      await image.write(offset, pattern(offset, 300, 3));
    }
    await image.writeZeroes(4096 + 5, 3 * 4096);
    expected.fill(0, 4096 + 5, 4 * 4096 + 5);
    expect((await read(image, 0, expected.length)).equals(expected)).toBe(true);
  }
});

test("an image that runs out of space loses none by trying, and goes on when there is some", async () => {
  const files = await created();
  const image = await opened(files);
  await image.write(0, pattern(0, 4096));
  const size = disk(files).size;
  files.inject({ operation: "write", code: "ENOSPC", times: 20 });
  for (let turn = 0; turn < 20; turn++) {
    await expect(image.write(4096, pattern(4096, 4096))).rejects.toMatchObject({ code: "no-space" });
  }
  await image.write(4096 + 512, pattern(4096 + 512, 512));
  const expected = Buffer.concat([pattern(0, 4096), Buffer.alloc(512), pattern(4608, 512), Buffer.alloc(3072)]);
  expect((await read(image, 0, 8192)).equals(expected)).toBe(true);
  expect(disk(files).size).toBe(size);
  expect(await checkAfterClose(files, image)).toMatchObject({ ...CLEAN, allocatedClusters: 2 });
});

test("a failed sync ends all writing", async () => {
  const files = await created();
  const image = await opened(files);
  await image.write(0, pattern(0, 512));
  files.inject({ operation: "dataSync", code: "EIO", times: 1 });
  await expect(image.flush()).rejects.toMatchObject({ code: "io" });
  for (const offset of [0, 8192]) {
    await expect(image.write(offset, pattern(offset, 512))).rejects.toMatchObject({ code: "io" });
    expect(image.writeNow(offset, pattern(offset, 512))).toBe(-1);
  }
  expect((await read(image, 0, 512)).equals(pattern(0, 512))).toBe(true);
  files.log.length = 0;
  await image.close();
  expect(changes(files)).toEqual([]);
});

test("the refcount table grows, more than once, and the old ones are given back", async () => {
  // Clusters of 512 bytes: a block counts 256 of them, and a table of one cluster has 64 blocks: 8 MiB.
  const files = await created({ clusterBytes: 512, sizeBytes: 2 ** 26 });
  const image = await opened(files);
  const end = 40 * 2 ** 20;
  const step = 2 ** 20;
  for (let offset = 0; offset < end; offset += step) await image.write(offset, pattern(offset, step));
  for (let offset = 0; offset < end; offset += 9 * step) {
    expect((await read(image, offset, step)).equals(pattern(offset, step))).toBe(true);
  }
  const clusters = bytesAt(files, 56, 4).readUInt32BE();
  expect(clusters).toBeGreaterThan(4);
  const checked = await checkAfterClose(files, image);
  expect(checked).toMatchObject({ ...CLEAN, allocatedClusters: end / 512 });
});

test("space behind the end of the file that is counted already is not taken", async () => {
  const files = await created();
  // Left by a crash: an entry that is durable, and a file that is not that long.
  disk(files).put(8192 + 2 * 5, Buffer.from([0, 1]));
  const image = await opened(files);
  await image.write(0, pattern(0, 4096));
  expect(bytesAt(files, 12_288, 8).readBigUInt64BE()).toBe((1n << 63n) | 0x4000n);
  expect(bytesAt(files, 0x4000, 8).readBigUInt64BE()).toBe((1n << 63n) | 0x6000n);
  await image.close();
  expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 1, corruptions: 0 });
});

test("a file that counts everything behind its end is not searched for ever", async () => {
  const files = await created({ clusterBytes: 512 });
  // Every block of the refcount table is the same one, and it counts all clusters.
  const table = Buffer.alloc(512);
  for (let at = 0; at < 512; at += 8) table.writeBigUInt64BE(1024n, at);
  disk(files).put(512, table);
  disk(files).put(1024, Buffer.alloc(512, 1));
  const image = await opened(files);
  // The table is left alone, and grows.
  await image.write(0, pattern(0, 512));
  expect(bytesAt(files, 48, 8).readBigUInt64BE()).toBeGreaterThan(512n);
  expect(bytesAt(files, disk(files).size - 512, 512).length).toBe(512);
  expect((await read(image, 0, 512)).equals(pattern(0, 512))).toBe(true);
  await image.close();
});

test("an L2 table that something else may refer to is read, and not changed", async () => {
  const files = new FakeFiles();
  const made = handMadeQcow2({ sizeBytes: 64 * 4096, clusters: new Map([[1, 1]]) });
  made.bytes.writeBigUInt64BE(0x4000n, made.l1Offset);
  files.add(PATH, made.bytes);
  await using image = await opened(files);
  expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
  await expect(image.write(0, pattern(0, 512))).rejects.toMatchObject({ field: "L1 table entry" });
  expect(changes(files)).toEqual([]);
});

test("cached tables stay within their limit, however many there are", async () => {
  const files = new FakeFiles();
  const sizeBytes = 2 ** 34;
  await createQcow2({ files }, { path: PATH, sizeBytes, clusterBytes: 65_536 });
  await using image = await opened(files, { cacheBytes: 64 * 1024 });
  const step = 2 ** 29 + 512 * 65_536;
  for (let offset = 0; offset + 512 <= sizeBytes; offset += step) await image.write(offset, pattern(offset, 512));
  for (let offset = 0; offset + 512 <= sizeBytes; offset += step) {
    expect((await read(image, offset, 512)).equals(pattern(offset, 512))).toBe(true);
    expect(image.cachedTableBytes).toBeLessThanOrEqual(64 * 1024);
  }
});

test("cached tables stay within their limit, also when what is looked for in each of them is wrong", async () => {
  const files = new FakeFiles();
  const sizeBytes = 2 ** 34;
  const covers = 2 ** 29;
  await createQcow2({ files }, { path: PATH, sizeBytes, clusterBytes: 65_536 });
  const image = await opened(files);
  for (let offset = 0; offset < sizeBytes; offset += covers) await image.write(offset, pattern(offset, 512));
  await image.close();
  const l1Offset = Number(bytesAt(files, 40, 8).readBigUInt64BE());
  for (let index = 0; index < sizeBytes / covers; index++) {
    const l2Offset = bytesAt(files, l1Offset + 8 * index, 8).readBigUInt64BE() & (2n ** 56n - 1n);
    disk(files).put(Number(l2Offset), Buffer.alloc(8, 0xff));
  }
  await using again = await opened(files, { cacheBytes: 64 * 1024 });
  for (let offset = 0; offset < sizeBytes; offset += covers) {
    await expect(read(again, offset, 512)).rejects.toMatchObject({ field: "L2 table entry" });
  }
  expect(again.cachedTableBytes).toBeLessThanOrEqual(64 * 1024);
});
