/** QED images: bytes as the specification has them, what opening touches, backing, discards, and running out of space. */
import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { imageInfo, renderInfo, renderInfoJson } from "../../../src/image/info.ts";
import { imageMap, type MapEntry } from "../../../src/image/map.ts";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import { type CreateQedOptions, createQed } from "../../../src/image/qed/create.ts";
import type { QedImage } from "../../../src/image/qed/image.ts";
import { type OpenQedOptions, openQed } from "../../../src/image/qed/open.ts";
import { type FakeDisk, FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { type HandMadeQed, handMadeQed } from "../../support/qed-bytes.ts";

const PATH = "/vm/a.qed";
const NEED_CHECK = 2n;

async function created(options: Partial<CreateQedOptions> = {}): Promise<FakeFiles> {
  const files = new FakeFiles();
  await createQed({ files }, { path: PATH, sizeBytes: 64 * 4096, clusterBytes: 4096, tableClusters: 2, ...options });
  files.log.length = 0;
  return files;
}

function handMade(options: Partial<HandMadeQed> = {}): { files: FakeFiles; made: ReturnType<typeof handMadeQed> } {
  const files = new FakeFiles();
  const made = handMadeQed({ sizeBytes: 64 * 4096, ...options });
  files.add(PATH, made.bytes);
  return { files, made };
}

function opened(files: FakeFiles, options: Partial<OpenQedOptions> = {}): Promise<QedImage> {
  return openQed({ files }, { path: PATH, readOnly: false, ...options });
}

function bytesAt(files: FakeFiles, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  disk(files).get(offset, bytes);
  return bytes;
}

function disk(files: FakeFiles): FakeDisk {
  const found = files.disks.get(PATH);
  if (found === undefined) throw new Error("there is no image");
  return found;
}

function features(files: FakeFiles): bigint {
  return bytesAt(files, 16, 8).readBigUInt64LE();
}

async function read(image: QedImage, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await image.read(offset, into);
  return into;
}

test("a new image is a header and an empty L1 table, byte by byte", async () => {
  const files = await created({ backing: { name: "base.raw", format: "raw" } });
  const expected = Buffer.alloc(3 * 4096);
  handMadeQed({ sizeBytes: 64 * 4096, features: 5n, backingName: "base.raw" }).bytes.copy(expected, 0, 0, 4096);
  expect(bytesAt(files, 0, disk(files).size).equals(expected)).toBe(true);
  const plain = await created();
  expect(bytesAt(plain, 0, 64).toString("hex")).toBe(
    "51454400001000000200000001000000000000000000000000000000000000000000000000000000001000000000000000000400000000000000000000000000",
  );
});

test("a new image is durable with its name, and refused where there is something, or no such image can be", async () => {
  const files = new FakeFiles();
  const options = { path: PATH, sizeBytes: 512, clusterBytes: 4096 };
  await createQed({ files }, options);
  expect(files.log).toEqual([`open ${PATH}`, "truncate 20480", "write 0+64", "dataSync", "close", "syncDirectory /vm"]);
  await expect(createQed({ files }, options)).rejects.toMatchObject({ code: "exists" });
  const wrong: Partial<CreateQedOptions>[] = [
    { clusterBytes: 2048 },
    { clusterBytes: 2 ** 27 },
    { clusterBytes: 5000 },
    { tableClusters: 1 },
    { tableClusters: 3 },
    { tableClusters: 32 },
    { sizeBytes: 513 },
    { sizeBytes: -512 },
    { clusterBytes: 4096, tableClusters: 2, sizeBytes: 1024 * 1024 * 4096 + 512 },
    { clusterBytes: 4096, backing: { name: "x".repeat(4096 - 63) } },
  ];
  for (const change of wrong) {
    const attempt = createQed({ files }, { ...options, path: "/vm/b.qed", ...change });
    await expect(attempt, JSON.stringify(change)).rejects.toMatchObject({ code: "bad-geometry" });
  }
  expect(await files.exists("/vm/b.qed")).toBe(false);
  await createQed({ files }, { ...options, path: "/vm/b.qed", sizeBytes: 1024 * 1024 * 4096, tableClusters: 2 });
});

test("an image made by hand reads as the specification says", async () => {
  const clusters = new Map<number, number | "zero">([
    [5, 1],
    [0, 2],
    [6, 3],
    [7, "zero"],
    [63, 4],
  ]);
  for (const tableClusters of [1, 2, 16]) {
    const { files, made } = handMade({ clusters, tableClusters });
    await using image = await opened(files, { readOnly: true });
    expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
    const into = Buffer.alloc(64 * 4096, 0xee);
    expect(image.readNow(0, into)).toBe(into.length);
    expect(into.equals(made.content)).toBe(true);
    expect(await image.extents(0, 64 * 4096, 100)).toEqual([
      { length: 4096, hole: false, zero: false },
      { length: 4 * 4096, hole: true, zero: true },
      { length: 2 * 4096, hole: false, zero: false },
      { length: 56 * 4096, hole: true, zero: true },
      { length: 4096, hole: false, zero: false },
    ]);
    expect(files.count("write")).toBe(0);
  }
});

test("what a first write leaves is laid out as the specification says, and NEED_CHECK is set meanwhile", async () => {
  const files = await created();
  const image = await opened(files);
  const bytes = pattern(2 * 4096 + 512, 512);
  await image.write(2 * 4096 + 512, bytes);
  expect(features(files)).toBe(NEED_CHECK);
  // Header, L1 (2 clusters), then in order of allocation the L2 table and the data.
  expect(bytesAt(files, 4096, 16).toString("hex")).toBe("00300000000000000000000000000000");
  expect(bytesAt(files, 0x3000, 32).toString("hex")).toBe(`${"0".repeat(32)}0050000000000000${"0".repeat(16)}`);
  expect(bytesAt(files, 0x5000, 4096).equals(Buffer.concat([Buffer.alloc(512), bytes, Buffer.alloc(3072)]))).toBe(true);
  expect(disk(files).size).toBe(0x6000);
  await image.close();
  expect(features(files)).toBe(0n);
  expect(await checkQed({ files }, { path: PATH })).toMatchObject({ allocatedClusters: 1, leaks: 0, corruptions: 0 });
});

test("opening reads the header alone and writes nothing; reading never writes", async () => {
  const { files } = handMade({ clusters: new Map([[1, 1]]), features: NEED_CHECK, autoclearFeatures: 0xf0n });
  const readOnly = await opened(files, { readOnly: true });
  expect(files.log).toEqual([`open ${PATH}`, "lock shared", "sizeBytes", "read 0+64"].map((line) => line.trim()));
  await read(readOnly, 0, 64 * 4096);
  await readOnly.close();
  const writable = await opened(files);
  await writable.close();
  expect(files.log.filter((line) => /^(write|truncate|dataSync|punch|zero)/.test(line))).toEqual([]);
});

test("NEED_CHECK is durable before the first allocation, and unknown autoclear bits are gone before anything", async () => {
  const { files } = handMade({ clusters: new Map([[1, 1]]), autoclearFeatures: 0xf0n });
  await using image = await opened(files);
  await read(image, 0, 512);
  files.log.length = 0;
  await image.write(4096, pattern(4096, 512));
  expect(files.log.slice(0, 3)).toEqual(["write 16+24", "dataSync", expect.stringMatching(/^write /)]);
  expect(bytesAt(files, 16, 24)).toEqual(Buffer.alloc(24));
  files.log.length = 0;
  await image.write(0, pattern(0, 512));
  expect(files.log.slice(0, 3)).toEqual(["write 16+24", "dataSync", expect.stringMatching(/^truncate /)]);
});

test("over a backing, data is durable before its entry, a new table before the entry that points to it", async () => {
  const content = pattern(0, 64 * 4096, 7);
  const files = await created({ backing: { name: "base", format: "raw" } });
  await using image = await opened(files, { backing: new MemoryDevice({ sizeBytes: content.length, content }) });
  await read(image, 0, 512);
  files.log.length = 0;
  await image.write(512, pattern(512, 512));
  expect(files.log).toEqual([
    // The L2 table: two clusters behind the header and the L1 table.
    "truncate 20480",
    "write 12288+8192",
    "dataSync",
    "write 4096+8",
    // The cluster, filled up from the backing.
    "truncate 24576",
    "write 20480+512",
    "write 21504+3072",
    "write 20992+512",
    "dataSync",
    "read 12288+8192",
    "write 12288+8",
  ]);
  expect(features(files)).toBe(5n);
});

test("a backing is used only when it is given, and never looked for", async () => {
  const { files } = handMade({ features: 1n, backingName: "/etc/passwd" });
  await expect(opened(files)).rejects.toMatchObject({ code: "backing", why: expect.stringContaining("/etc/passwd") });
  const alone = handMade();
  const backing = new MemoryDevice({ sizeBytes: 4096 });
  await expect(opened(alone.files, { backing })).rejects.toMatchObject({ code: "backing" });
  await using image = await opened(files, { backing: "absent", readOnly: true });
  expect(image.backingReference).toEqual({ name: "/etc/passwd" });
  expect((await read(image, 0, 64 * 4096)).equals(Buffer.alloc(64 * 4096))).toBe(true);
  expect(files.log.filter((line) => line.startsWith("open"))).toEqual([`open ${PATH}`, `open ${PATH}`]);
});

test("info tells what the header says of dirt and backing, and map what is in the image", async () => {
  const { files } = handMade({ features: 7n, backingName: "base.raw", clusters: new Map([[1, 1]]) });
  expect(renderInfo(await imageInfo({ files }, { path: PATH }))).toBe(
    [
      `image: ${PATH}`,
      "file format: qed",
      "virtual size: 256 KiB (262144 bytes)",
      "disk size: 24 KiB",
      "cluster_size: 4096",
      "cleanly shut down: no",
      "backing file: base.raw (actual path: /vm/base.raw)",
      "backing file format: raw",
      "",
    ].join("\n"),
  );
  const entries: MapEntry[] = [];
  for await (const entry of imageMap({ files }, { path: PATH })) entries.push(entry);
  expect(entries.map(({ start, present, zero, data, offset }) => [start, present, zero, data, offset])).toEqual([
    [0, false, false, false, undefined],
    [4096, true, false, true, 5 * 4096],
    [8192, false, false, false, undefined],
  ]);
  expect(files.count("open")).toBe(2);
});

test("what a name in a header would have a terminal do is not done", async () => {
  const { files } = handMade({ features: 1n, backingName: "a\u001b[2J\nb\u009b\u202ec" });
  const info = await imageInfo({ files }, { path: PATH });
  expect(renderInfo(info)).toContain("backing file: a\\u001b[2J\\u000ab\\u009b\\u202ec (actual path: /vm/a\\u001b[2J");
  const json = renderInfoJson(info);
  expect(json).toContain('"a\\u001b[2J\\nb\\u009b\\u202ec"');
  expect(JSON.parse(json)["backing-filename"]).toBe(info.backing?.name);
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

test("a backing may lie over another one, and none of them is changed", async () => {
  const content = pattern(0, 64 * 4096, 7);
  const expected = Buffer.from(content);
  const base = new MemoryDevice({ sizeBytes: content.length, content, readOnly: true });
  const middleFiles = await created({ backing: { name: "base" } });
  {
    await using middle = await opened(middleFiles, { backing: base });
    await middle.write(3 * 4096 + 100, pattern(3 * 4096 + 100, 5000, 8));
    await middle.writeZeroes(8 * 4096, 3 * 4096);
  }
  pattern(3 * 4096 + 100, 5000, 8).copy(expected, 3 * 4096 + 100);
  expected.fill(0, 8 * 4096, 11 * 4096);
  await using middle = await opened(middleFiles, { backing: base, readOnly: true });
  middleFiles.log.length = 0;
  await using top = await opened(await created({ backing: { name: "middle" } }), { backing: middle });
  for (const offset of [0, 3 * 4096, 9 * 4096 + 7, 63 * 4096]) {
    await top.write(offset, pattern(offset, 600, 9));
    pattern(offset, 600, 9).copy(expected, offset);
  }
  expect((await read(top, 0, expected.length)).equals(expected)).toBe(true);
  const now = Buffer.alloc(4096);
  expect(top.readNow(4 * 4096, now)).toBe(4096);
  expect(now.equals(expected.subarray(4 * 4096, 5 * 4096))).toBe(true);
  // Data above, data of the base, zeroes of the middle.
  expect(await top.extents(7 * 4096, 5 * 4096, 10)).toEqual([
    { length: 4096, hole: false, zero: false },
    { length: 4096, hole: true, zero: true },
    { length: 4096, hole: false, zero: false },
    { length: 4096, hole: true, zero: true },
    { length: 4096, hole: false, zero: false },
  ]);
  expect(middleFiles.log.filter((line) => /^(write|truncate|dataSync|punch)/.test(line))).toEqual([]);
});

test("zeroes over a backing are entries, not data; a discard gives back blocks and keeps the cluster", async () => {
  const content = pattern(0, 64 * 4096, 7);
  const files = await created({ backing: { name: "base" } });
  await using image = await opened(files, { backing: new MemoryDevice({ sizeBytes: content.length, content }) });
  await image.writeZeroes(0, 8 * 4096);
  expect((await image.runs(0, 8 * 4096))[0]).toEqual({ length: 8 * 4096, present: true, zero: true, data: false });
  await image.write(20 * 4096, content.subarray(0, 2 * 4096));
  const size = disk(files).size;
  const held = await image.allocatedBytes();
  await image.discard(20 * 4096, 2 * 4096);
  expect(held - (await image.allocatedBytes())).toBe(2 * 4096);
  // Not the backing's contents: those were overwritten.
  expect((await read(image, 20 * 4096, 2 * 4096)).equals(Buffer.alloc(2 * 4096))).toBe(true);
  expect(disk(files).size).toBe(size);
  expect(await checkAfterClose(files, image)).toMatchObject({ allocatedClusters: 2, leaks: 0, corruptions: 0 });
});

async function checkAfterClose(files: FakeFiles, image: QedImage): Promise<unknown> {
  await image.close();
  return checkQed({ files }, { path: PATH });
}

test("zeroes on an image that stands alone allocate nothing, unless the space is to be provisioned", async () => {
  const files = await created();
  await using image = await opened(files);
  const size = disk(files).size;
  await image.writeZeroes(0, 64 * 4096);
  expect([disk(files).size, features(files)]).toEqual([size, 0n]);
  await image.writeZeroes(4096, 8192, { noHole: true });
  expect(await image.extents(0, 4 * 4096, 10)).toEqual([
    { length: 4096, hole: true, zero: true },
    { length: 8192, hole: false, zero: false },
    { length: 4096, hole: true, zero: true },
  ]);
  expect((await image.allocatedBytes()) >= 8192).toBe(true);
});

test("an image that runs out of space loses no space by trying, and goes on when there is some", async () => {
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
  expect(disk(files).size).toBe(size + 4096);
  expect(await checkAfterClose(files, image)).toMatchObject({ allocatedClusters: 2, leaks: 0, corruptions: 0 });
});

test("a failed sync ends all writing, and NEED_CHECK stays", async () => {
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
  await image.close();
  expect(features(files)).toBe(NEED_CHECK);
});

test("cached tables stay within their limit, however many there are", async () => {
  const files = new FakeFiles();
  const sizeBytes = 2 ** 36;
  await createQed({ files }, { path: PATH, sizeBytes, clusterBytes: 65_536, tableClusters: 4 });
  await using image = await opened(files, { cacheBytes: 64 * 1024 });
  const step = 2 ** 31 + 512 * 65_536;
  for (let offset = 0; offset + 512 <= sizeBytes; offset += step) await image.write(offset, pattern(offset, 512));
  for (let offset = 0; offset + 512 <= sizeBytes; offset += step) {
    expect((await read(image, offset, 512)).equals(pattern(offset, 512))).toBe(true);
    expect(image.cachedTableBytes).toBeLessThanOrEqual(64 * 1024);
  }
});

test("cached tables stay within their limit, also when what is looked for in each of them is wrong", async () => {
  const files = new FakeFiles();
  const sizeBytes = 2 ** 36;
  const covers = 2 ** 31;
  await createQed({ files }, { path: PATH, sizeBytes, clusterBytes: 65_536, tableClusters: 4 });
  const image = await opened(files);
  for (let offset = 0; offset < sizeBytes; offset += covers) await image.write(offset, pattern(offset, 512));
  await image.close();
  const l1Offset = Number(bytesAt(files, 40, 8).readBigUInt64LE());
  for (let index = 0; index < sizeBytes / covers; index++) {
    const l2Offset = bytesAt(files, l1Offset + 8 * index, 8).readBigUInt64LE();
    disk(files).put(Number(l2Offset), Buffer.alloc(8, 0xff));
  }
  await using again = await opened(files, { cacheBytes: 64 * 1024 });
  for (let offset = 0; offset < sizeBytes; offset += covers) {
    await expect(read(again, offset, 512)).rejects.toMatchObject({ field: "L2 table entry" });
  }
  expect(again.cachedTableBytes).toBeLessThanOrEqual(64 * 1024);
});
