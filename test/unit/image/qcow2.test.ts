/** qcow2 images: bytes as the specification has them, what opening touches, what is refused, backing, info and map. */
import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { imageInfo, renderInfo } from "../../../src/image/info.ts";
import { imageMap, type MapEntry, renderMap } from "../../../src/image/map.ts";
import { decompress } from "../../../src/image/qcow2/compressed.ts";
import { type CreateQcow2Options, createQcow2 } from "../../../src/image/qcow2/create.ts";
import { decodeEntry, standardEntry } from "../../../src/image/qcow2/entries.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/image.ts";
import { type OpenQcow2Options, openQcow2 } from "../../../src/image/qcow2/open.ts";
import { countCodec } from "../../../src/image/qcow2/refcount-codec.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { type HandMadeCluster, type HandMadeQcow2, handMadeQcow2 } from "../../support/qcow2-bytes.ts";
import { itSeeded } from "../../support/seed.ts";

const PATH = "/vm/a.qcow2";
const BITMAPS = 0x2385_2875;
const BACKING_FORMAT = 0xe279_2aca;

const CLUSTERS = new Map<number, HandMadeCluster>([
  [5, 1],
  [0, 2],
  [6, 3],
  [7, "zero"],
  [8, "zero, placed"],
  [9, { compressed: 5 }],
  [10, { compressed: 6 }],
  [63, 4],
]);

function handMade(options: Partial<HandMadeQcow2> = {}): { files: FakeFiles; made: ReturnType<typeof handMadeQcow2> } {
  const files = new FakeFiles();
  const made = handMadeQcow2({ sizeBytes: 64 * 4096, ...options });
  files.add(PATH, made.bytes);
  return { files, made };
}

function opened(files: FakeFiles, options: Partial<OpenQcow2Options> = {}): Promise<Qcow2Image> {
  return openQcow2({ files }, { path: PATH, readOnly: false, ...options });
}

function bytesAt(files: FakeFiles, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  files.disks.get(PATH)?.get(offset, bytes);
  return bytes;
}

async function read(image: Qcow2Image, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await image.read(offset, into);
  return into;
}

function withoutZeroClusters(): Map<number, HandMadeCluster> {
  return new Map([...CLUSTERS].filter(([, what]) => typeof what !== "string"));
}

test("a new image has the bytes of the specification", async () => {
  const files = new FakeFiles();
  await createQcow2({ files }, { path: PATH, sizeBytes: 64 * 4096, clusterBytes: 4096 });
  expect(bytesAt(files, 0, 120).toString("hex")).toBe(
    [
      "514649fb00000003" + "0000000000000000" + "000000000000000c" + "0000000000040000",
      "0000000000000001" + "0000000000003000" + "0000000000001000" + "0000000100000000",
      "0000000000000000" + "0000000000000000" + "0000000000000000" + "0000000000000000",
      "0000000400000070" + "0000000000000000" + "0000000000000000",
    ].join(""),
  );
  expect(bytesAt(files, 0x1000, 16).toString("hex")).toBe("00000000000020000000000000000000");
  expect(bytesAt(files, 0x2000, 16).toString("hex")).toBe("00010001000100010000000000000000");
  expect(files.disks.get(PATH)?.size).toBe(0x3008);
  files.log.length = 0;
  await createQcow2({ files }, { path: "/vm/v2", sizeBytes: 64 * 4096, clusterBytes: 512, version: 2 });
  expect(files.log.slice(-3)).toEqual(["dataSync", "close", "syncDirectory /vm"]);
  const header = Buffer.alloc(80);
  files.disks.get("/vm/v2")?.get(0, header);
  expect([header.readUInt32BE(4), header.readUInt32BE(36), header.readUInt32BE(72)]).toEqual([2, 8, 0]);
});

test("a new image is refused where there is something, or no such image can be", async () => {
  const files = new FakeFiles();
  const options = { path: PATH, sizeBytes: 512, clusterBytes: 4096 };
  await createQcow2({ files }, options);
  await expect(createQcow2({ files }, options)).rejects.toMatchObject({ code: "exists" });
  const wrong: Partial<CreateQcow2Options>[] = [
    { clusterBytes: 256 },
    { clusterBytes: 2 ** 22 },
    { clusterBytes: 5000 },
    { sizeBytes: 513 },
    { sizeBytes: -512 },
    { clusterBytes: 512, sizeBytes: 2 ** 37 + 512 },
    { clusterBytes: 512, backing: { name: "x".repeat(500) } },
    { backing: { name: "x".repeat(1024) } },
    { backing: { name: "x", format: "x".repeat(16) } },
  ];
  for (const change of wrong) {
    const attempt = createQcow2({ files }, { ...options, path: "/vm/b.qcow2", ...change });
    await expect(attempt, JSON.stringify(change)).rejects.toMatchObject({ code: "bad-geometry" });
  }
  expect(await files.exists("/vm/b.qcow2")).toBe(false);
  await createQcow2({ files }, { ...options, path: "/vm/b.qcow2", clusterBytes: 512, sizeBytes: 2 ** 37 });
});

test("an image of no size has no L1 table, and can be opened", async () => {
  const files = new FakeFiles();
  await createQcow2({ files }, { path: PATH, sizeBytes: 0 });
  await using image = await opened(files);
  await image.read(0, Buffer.alloc(0));
  await image.flush();
  expect([image.sizeBytes, bytesAt(files, 36, 12).toString("hex")]).toEqual([0, "0".repeat(24)]);
});

test("an image made by hand reads as the specification says", async () => {
  for (const more of [{}, { zstd: true }, { version: 2 as const, clusters: withoutZeroClusters() }]) {
    const { files, made } = handMade({ clusters: CLUSTERS, ...more });
    await using image = await opened(files, { readOnly: true });
    expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
    expect(
      (await read(image, 9 * 4096 + 100, 5000)).equals(made.content.subarray(9 * 4096 + 100).subarray(0, 5000)),
    ).toBe(true);
    const into = Buffer.alloc(64 * 4096, 0xee);
    expect(image.readNow(0, into)).toBe(into.length);
    expect(into.equals(made.content)).toBe(true);
    expect(await image.extents(0, 64 * 4096, 100)).toEqual([
      { length: 4096, hole: false, zero: false },
      { length: 4 * 4096, hole: true, zero: true },
      { length: 2 * 4096, hole: false, zero: false },
      { length: 2 * 4096, hole: true, zero: true },
      { length: 2 * 4096, hole: false, zero: false },
      { length: 52 * 4096, hole: true, zero: true },
      { length: 4096, hole: false, zero: false },
    ]);
    expect(files.count("write")).toBe(0);
  }
});

test("a zero cluster in an image of version 2 is corruption", async () => {
  const { files } = handMade({ version: 2, clusters: CLUSTERS });
  await using image = await opened(files, { readOnly: true });
  await expect(read(image, 7 * 4096, 512)).rejects.toMatchObject({ field: "L2 table entry" });
});

test("the last cluster of the file need not be whole: what is missing reads as zeroes", async () => {
  const { made } = handMade({ clusters: CLUSTERS });
  const files = new FakeFiles();
  files.add(PATH, made.bytes.subarray(0, made.bytes.length - 1000));
  made.content.fill(0, 64 * 4096 - 1000);
  await using image = await opened(files);
  expect((await read(image, 60 * 4096, 4 * 4096)).equals(made.content.subarray(60 * 4096))).toBe(true);
  await image.write(63 * 4096, pattern(0, 512, 9));
  pattern(0, 512, 9).copy(made.content, 63 * 4096);
  await image.write(40 * 4096, pattern(0, 512, 9));
  expect((await read(image, 63 * 4096, 4096)).equals(made.content.subarray(63 * 4096))).toBe(true);
});

test("opening reads the first cluster alone and writes nothing; reading never writes", async () => {
  const { files } = handMade({ clusters: CLUSTERS, autoclear: 0xf0n });
  const readOnly = await opened(files, { readOnly: true });
  expect(files.log).toEqual([`open ${PATH}`, "lock shared", "sizeBytes", "read 0+112", "read 0+4096"]);
  await read(readOnly, 0, 64 * 4096);
  await readOnly.close();
  const writable = await opened(files);
  await read(writable, 0, 64 * 4096);
  await writable.close();
  expect(files.log.filter((line) => /^(write|truncate|dataSync|punch|zero)/.test(line))).toEqual([]);
});

test("an image with snapshots or persistent bitmaps is read, and not written", async () => {
  const bitmaps = handMade({ clusters: CLUSTERS, extensions: [[BITMAPS, Buffer.alloc(24)]], autoclear: 1n });
  for (const { files, made } of [handMade({ clusters: CLUSTERS, snapshots: 2 }), bitmaps]) {
    await expect(opened(files)).rejects.toMatchObject({
      code: "unsupported-format",
      hint: expect.stringContaining("read-only"),
    });
    // The snapshot table is told to be where the L2 table is: only what must be read of either is looked at.
    if (files === bitmaps.files) {
      await using image = await opened(files, { readOnly: true });
      expect((await read(image, 0, 64 * 4096)).equals(made.content)).toBe(true);
    }
    expect(files.count("write")).toBe(0);
  }
});

test("a backing is used only when it is given, and never looked for", async () => {
  const { files } = handMade({ backingName: "/etc/passwd", extensions: [[BACKING_FORMAT, Buffer.from("raw")]] });
  await expect(opened(files)).rejects.toMatchObject({ code: "backing", why: expect.stringContaining("/etc/passwd") });
  const alone = handMade();
  const backing = new MemoryDevice({ sizeBytes: 4096 });
  await expect(opened(alone.files, { backing })).rejects.toMatchObject({ code: "backing" });
  await using image = await opened(files, { backing: "absent", readOnly: true });
  expect(image.backingReference).toEqual({ name: "/etc/passwd", format: "raw" });
  expect((await read(image, 0, 64 * 4096)).equals(Buffer.alloc(64 * 4096))).toBe(true);
  expect(files.log.filter((line) => line.startsWith("open"))).toEqual([`open ${PATH}`, `open ${PATH}`]);
});

test("info tells what the header says, and map what is in the image", async () => {
  const extensions = [[BACKING_FORMAT, Buffer.from("raw")]] as const;
  const { files, made } = handMade({
    clusters: CLUSTERS,
    backingName: "base.raw",
    extensions,
    incompatible: 1n,
    zstd: true,
  });
  expect(renderInfo(await imageInfo({ files }, { path: PATH }))).toBe(
    [
      `image: ${PATH}`,
      "file format: qcow2",
      "virtual size: 256 KiB (262144 bytes)",
      "disk size: 48 KiB",
      "cluster_size: 4096",
      "cleanly shut down: no",
      "backing file: base.raw (actual path: /vm/base.raw)",
      "backing file format: raw",
      "Format specific information:",
      "    compat: 1.1",
      "    compression type: zstd",
      "    lazy refcounts: false",
      "    refcount bits: 16",
      "    corrupt: false",
      "    extended l2: false",
      "",
    ].join("\n"),
  );
  const entries: MapEntry[] = [];
  for await (const entry of imageMap({ files }, { path: PATH })) entries.push(entry);
  const at = (cluster: number): number | undefined => made.dataOffsets.get(cluster);
  expect(entries.map(({ start, present, zero, data, offset }) => [start / 4096, present, zero, data, offset])).toEqual([
    [0, true, false, true, at(0)],
    [1, false, false, false, undefined],
    [5, true, false, true, at(5)],
    [6, true, false, true, at(6)],
    [7, true, true, false, undefined],
    [8, true, true, false, at(8)],
    [9, true, false, true, undefined],
    [11, false, false, false, undefined],
    [63, true, false, true, at(63)],
  ]);
  let text = "";
  for await (const line of renderMap(imageMap({ files }, { path: PATH }))) text += line;
  expect(text).toContain(`0x9000          0x2000          -               ${PATH}\n`);
  expect(files.count("open")).toBe(3);
});

test("compressed data that is damaged, too short or too long is an error of that cluster alone", async () => {
  for (const zstd of [false, true]) {
    const { files, made } = handMade({ clusters: CLUSTERS, zstd });
    files.disks.get(PATH)?.put((made.dataOffsets.get(9) ?? 0) + 2, Buffer.alloc(64, 0xff));
    await using image = await opened(files);
    await expect(read(image, 9 * 4096, 512)).rejects.toMatchObject({ code: "io", field: "compressed cluster" });
    expect((await read(image, 10 * 4096, 512)).equals(made.content.subarray(10 * 4096, 10 * 4096 + 512))).toBe(true);
    // It cannot be filled up from there; as a whole it can be replaced.
    await expect(image.write(9 * 4096, Buffer.alloc(512))).rejects.toMatchObject({ code: "io" });
    await image.write(9 * 4096, pattern(0, 4096, 7));
    expect((await read(image, 9 * 4096, 4096)).equals(pattern(0, 4096, 7))).toBe(true);
  }
  const { deflateRawSync, zstdCompressSync } = await import("node:zlib");
  for (const length of [4095, 4097]) {
    await expect(decompress(deflateRawSync(Buffer.alloc(length)), "zlib", 4096)).rejects.toThrow();
    await expect(decompress(zstdCompressSync(Buffer.alloc(length)), "zstd", 4096)).rejects.toThrow();
  }
  for (const bytes of [
    Buffer.alloc(0),
    Buffer.alloc(100),
    Buffer.from("28b52ffd", "hex"),
    Buffer.from("28b52ffd24ff", "hex"),
  ]) {
    await expect(decompress(bytes, "zstd", 4096)).rejects.toThrow();
  }
});

itSeeded("an L2 entry means what the specification says, whatever its bits are", async (rng) => {
  for (let round = 0; round < 20_000; round++) {
    const [high, low, bits] = [rng.u32(), rng.u32(), rng.integer(9, 21)];
    const entry = decodeEntry(high, low, bits);
    const word = (BigInt(high) << 32n) | BigInt(low);
    if (entry.kind === "compressed") {
      const x = BigInt(62 - (bits - 8));
      expect([word >> 62n, BigInt(entry.offset)]).toEqual([1n, word & ((1n << x) - 1n)]);
      const sectors = (entry.offset + entry.length) / 512 - Math.floor(entry.offset / 512) - 1;
      expect(BigInt(sectors)).toBe((word >> x) & ((1n << (62n - x)) - 1n));
    }
    const place = rng.integer(1, 2 ** 30) * 512;
    const zero = rng.chance(0.5);
    const made = standardEntry(place, zero);
    expect(decodeEntry(made.high, made.low, bits)).toEqual({
      kind: zero ? "zero" : "data",
      offset: place,
      copied: true,
    });
  }
  expect(standardEntry(0, true)).toEqual({ high: 0, low: 1 });
  expect(decodeEntry(0, 1, 16)).toEqual({ kind: "zero", offset: 0, copied: false });
});

itSeeded("reference counts of every width are kept side by side", async (rng) => {
  for (let order = 0; order <= 6; order++) {
    const codec = countCodec(order);
    const view = new DataView(new ArrayBuffer(512));
    const expected = new Map<number, number>();
    for (let round = 0; round < 500; round++) {
      const index = rng.integer(0, (512 * 8) / codec.bits - 1);
      const value = rng.integer(0, Math.min(codec.max, 2 ** 31));
      codec.set(view, index, value);
      expected.set(index, value);
    }
    for (const [index, value] of expected) expect(codec.get(view, index)).toBe(value);
  }
  const view = new DataView(new ArrayBuffer(8));
  countCodec(1).set(view, 1, 2);
  countCodec(4).set(view, 1, 0x1234);
  expect(Buffer.from(view.buffer).toString("hex")).toBe("0800123400000000");
});
