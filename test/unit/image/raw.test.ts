/** A raw image when all goes well: what it asks of the host, and how it is opened, locked and made. */
import { expect, test } from "vitest";
import { EXTENT_SEEKS_MAX, openRaw } from "../../../src/image/raw.ts";
import { createRaw } from "../../../src/image/raw-create.ts";
import { ZEROES_BYTES } from "../../../src/util/zeroes.ts";
import { FAKE_BLOCK_BYTES, FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/vm/disk.raw";
const MIB = 1024 * 1024;

async function opened(sizeBytes = 8 * MIB) {
  const files = new FakeFiles();
  const disk = files.add(PATH, pattern(0, sizeBytes));
  const image = await openRaw({ files }, { path: PATH, readOnly: false });
  files.log.length = 0;
  return { files, disk, image };
}

test("zeroes are punched where holes are welcome, and then nothing is written", async () => {
  const { files, disk, image } = await opened();
  await image.writeZeroes(4096, MIB);
  expect(files.log).toEqual([`punchHole 4096+${MIB}`]);
  expect(disk.blocks.has(1)).toBe(false);
});

test("zeroes that must stay provisioned are never punched", async () => {
  const { files, disk, image } = await opened();
  await image.writeZeroes(4096, MIB, { noHole: true });
  expect(files.log).toEqual([`zeroRange 4096+${MIB}`]);
  files.features = { ...files.features, zeroRange: false };
  await image.writeZeroes(0, 4096, { noHole: true });
  expect(files.log.slice(1)).toEqual(["zeroRange 0+4096", "write 0+4096"]);
  for (let block = 0; block < 257; block++) expect(disk.blocks.has(block)).toBe(true);
});

test("zeroes that the host cannot make are written in bounded pieces that cover the range exactly", async () => {
  const { files, image } = await opened();
  files.features = { ...files.features, punchHole: false, zeroRange: false };
  await image.writeZeroes(100, 2 * ZEROES_BYTES + 7);
  expect(files.log.filter((line) => line.startsWith("write"))).toEqual([
    `write 100+${ZEROES_BYTES}`,
    `write ${100 + ZEROES_BYTES}+${ZEROES_BYTES}`,
    `write ${100 + 2 * ZEROES_BYTES}+7`,
  ]);
});

test("zeroes that would be slow are refused before anything is touched, when only fast ones will do", async () => {
  const { files, image } = await opened();
  files.features = { ...files.features, punchHole: false, zeroRange: false };
  for (const noHole of [true, false]) {
    await expect(image.writeZeroes(0, MIB, { fastOnly: true, noHole })).rejects.toMatchObject({
      code: "not-supported",
    });
  }
  expect(files.count("write")).toBe(0);
  // Not a lost write: the next one is as welcome as ever.
  await image.write(0, pattern(0, 512, 2));
});

test("what must be durable is synced after it was done", async () => {
  const { files, image } = await opened();
  await image.write(0, pattern(0, 512), { fua: true });
  await image.writeZeroes(0, 512, { fua: true });
  await image.discard(0, 512, { fua: true });
  expect(files.log).toEqual(["write 0+512", "dataSync", "punchHole 0+512", "dataSync", "punchHole 0+512", "dataSync"]);
});

test("a discard on a host that cannot punch holes does nothing and succeeds", async () => {
  const { files, disk, image } = await opened();
  files.features = { ...files.features, punchHole: false };
  await image.discard(0, MIB);
  expect(disk.blocks.size).toBe((8 * MIB) / FAKE_BLOCK_BYTES);
});

test("a hint to cache becomes a hint to the kernel, and empty requests never reach the host", async () => {
  const { files, image } = await opened();
  await image.cache(4096, 8192);
  expect(files.log).toEqual(["willNeed 4096+8192"]);
  await Promise.all([
    image.cache(0, 0),
    image.read(0, new Uint8Array(0)),
    image.write(0, new Uint8Array(0)),
    image.writeZeroes(0, 0),
    image.discard(0, 0),
  ]);
  expect(files.log).toHaveLength(1);
});

test("one call asks the host about a bounded number of extents, and no more than are wanted", async () => {
  const files = new FakeFiles();
  const disk = files.add(PATH, 4 * EXTENT_SEEKS_MAX * FAKE_BLOCK_BYTES);
  for (let block = 0; block < 4 * EXTENT_SEEKS_MAX; block += 2) disk.put(block * FAKE_BLOCK_BYTES, pattern(0, 1));
  await using image = await openRaw({ files }, { path: PATH, readOnly: true });
  const first = await image.extents(0, image.sizeBytes, 1_000_000);
  expect(first).toHaveLength(EXTENT_SEEKS_MAX);
  expect(files.count("extentAt")).toBe(EXTENT_SEEKS_MAX);
  expect(await image.extents(0, image.sizeBytes, 3)).toHaveLength(3);
  expect(await image.extents(0, 2 * FAKE_BLOCK_BYTES, 3)).toHaveLength(2);
  expect(files.count("extentAt")).toBe(EXTENT_SEEKS_MAX + 5);
});

test("a hole is a hole that reads as zeroes, and data is neither", async () => {
  const files = new FakeFiles();
  files.add(PATH, 64 * FAKE_BLOCK_BYTES).put(10 * FAKE_BLOCK_BYTES, pattern(0, FAKE_BLOCK_BYTES));
  await using image = await openRaw({ files }, { path: PATH, readOnly: true });
  expect(await image.extents(0, image.sizeBytes, 10)).toEqual([
    { length: 10 * FAKE_BLOCK_BYTES, hole: true, zero: true },
    { length: FAKE_BLOCK_BYTES, hole: false, zero: false },
    { length: 53 * FAKE_BLOCK_BYTES, hole: true, zero: true },
  ]);
});

test("a block device is all data, and takes no storage of its own", async () => {
  const files = new FakeFiles();
  files.features = { ...files.features, extents: false };
  files.add("/dev/vda", MIB, "block-device");
  await using image = await openRaw({ files }, { path: "/dev/vda", readOnly: true });
  expect(image.capabilities.extents).toBe(false);
  expect(await image.extents(0, MIB, 10)).toEqual([{ length: MIB, hole: false, zero: false }]);
  expect([image.storage, await image.allocatedBytes()]).toEqual(["block-device", 0]);
});

test("an image of no bytes opens, and answers what can be answered", async () => {
  const files = new FakeFiles();
  files.add(PATH, 0);
  await using image = await openRaw({ files }, { path: PATH, readOnly: false });
  expect(image.sizeBytes).toBe(0);
  await image.write(0, new Uint8Array(0));
  await image.flush();
  await expect(image.read(0, new Uint8Array(1))).rejects.toMatchObject({ code: "out-of-range" });
});

test("an image is locked against everybody when writable and against writers when read-only", async () => {
  const { files, image } = await opened();
  for (const readOnly of [true, false]) {
    await expect(openRaw({ files }, { path: PATH, readOnly })).rejects.toMatchObject({
      name: "ImageOpenError",
      code: "locked",
      path: PATH,
    });
  }
  await using looking = await openRaw({ files }, { path: PATH, readOnly: true, lock: false });
  expect(looking.sizeBytes).toBe(image.sizeBytes);
  await image.close();
  await using one = await openRaw({ files }, { path: PATH, readOnly: true });
  await using other = await openRaw({ files }, { path: PATH, readOnly: true });
  expect(one.sizeBytes).toBe(other.sizeBytes);
  await expect(openRaw({ files }, { path: PATH, readOnly: false })).rejects.toMatchObject({ code: "locked" });
  // Of the refused ones, nothing is left open.
  expect(files.disks.get(PATH)?.holders.size).toBe(2);
  expect(files.count("close")).toBe(4);
});

test("a new image is sparse and durable, with its name, and leaves what is there alone", async () => {
  const files = new FakeFiles();
  await createRaw({ files }, { path: "/vm/new.raw", sizeBytes: 10 * MIB });
  expect(files.log).toEqual(["open /vm/new.raw", `truncate ${10 * MIB}`, "dataSync", "close", "syncDirectory /vm"]);
  const disk = files.disks.get("/vm/new.raw");
  expect([disk?.durableSize, disk?.blocks.size]).toEqual([10 * MIB, 0]);
  await expect(createRaw({ files }, { path: "/vm/new.raw", sizeBytes: 1 })).rejects.toMatchObject({
    code: "exists",
    message: "cannot create /vm/new.raw: there is such a file already",
  });
  expect(disk?.size).toBe(10 * MIB);
});

test("an image that could not be made whole is not there", async () => {
  for (const operation of ["truncate", "dataSync"] as const) {
    const files = new FakeFiles();
    files.inject({ operation, code: "ENOSPC" });
    await expect(createRaw({ files }, { path: "/vm/new.raw", sizeBytes: MIB })).rejects.toMatchObject({ code: "io" });
    expect(await files.exists("/vm/new.raw")).toBe(false);
  }
});
