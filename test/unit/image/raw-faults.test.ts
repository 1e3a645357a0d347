/** A raw image when the host fails. */
import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import type { Image } from "../../../src/image/image.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { FakeFiles, type FakeOperation } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/vm/disk.raw";
const SIZE = 256 * 1024;

async function opened(readOnly = false) {
  const files = new FakeFiles();
  const disk = files.add(PATH, pattern(0, SIZE));
  const image = await openRaw({ files }, { path: PATH, readOnly });
  return { files, disk, image };
}

function blockError(code: string) {
  return expect.objectContaining({ constructor: BlockError, code });
}

async function readBack(image: Image, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await image.read(offset, into);
  return into;
}

/** Every way to write, and both ways to sync. */
const WRITERS: Readonly<Record<string, (image: Image) => Promise<unknown>>> = {
  write: (image) => image.write(0, pattern(0, 512, 2)),
  "write with FUA": (image) => image.write(0, pattern(0, 512, 2), { fua: true }),
  writeZeroes: (image) => image.writeZeroes(0, 512),
  discard: (image) => image.discard(0, 512),
  flush: (image) => image.flush(),
};

async function assertStopped({ files, image }: { files: FakeFiles; image: Image }): Promise<void> {
  const before = files.log.length;
  for (const [name, write] of Object.entries(WRITERS)) {
    await expect(write(image), name).rejects.toEqual(blockError("io"));
  }
  expect(image.writeNow(0, pattern(0, 512, 2))).toBe(-1);
  // The host was asked for nothing: above all, for no second sync.
  expect(files.log.slice(before)).toEqual([]);
  expect(await readBack(image, 4096, 512)).toEqual(pattern(4096, 512));
}

test("a read that fails fails alone", async () => {
  const { files, image } = await opened();
  files.inject({ operation: "read", code: "EIO", times: 1 });
  await expect(readBack(image, 0, 512)).rejects.toEqual(blockError("io"));
  expect(await readBack(image, 0, 512)).toEqual(pattern(0, 512));
  await image.write(0, pattern(0, 512, 2));
  await image.flush();
});

test("after a sync that failed nothing is written or synced any more, and reads go on", async () => {
  for (const code of ["EIO", "ENOSPC", "EDQUOT"]) {
    const host = await opened();
    await host.image.write(0, pattern(0, 512, 2));
    host.files.inject({ operation: "dataSync", code, times: 1 });
    await expect(host.image.flush()).rejects.toEqual(blockError("io"));
    await assertStopped(host);
    expect(host.files.count("dataSync")).toBe(1);
  }
});

test("a failed sync behind any kind of FUA stops the image just the same", async () => {
  for (const operation of [
    (image: Image) => image.write(0, pattern(0, 512, 2), { fua: true }),
    (image: Image) => image.writeZeroes(0, 512, { fua: true }),
    (image: Image) => image.discard(0, 512, { fua: true }),
  ]) {
    const host = await opened();
    host.files.inject({ operation: "dataSync", code: "EIO", times: 1 });
    await expect(operation(host.image)).rejects.toEqual(blockError("io"));
    await assertStopped(host);
  }
});

test("every flush that waits for a sync that fails, fails with it", async () => {
  const { files, image } = await opened();
  await image.write(0, pattern(0, 512, 2));
  files.inject({ operation: "dataSync", code: "EIO", times: 1 });
  const flushes = await Promise.allSettled([image.flush(), image.flush(), image.flush()]);
  expect(flushes.map((flush) => flush.status)).toEqual(["rejected", "rejected", "rejected"]);
});

test("a sync that succeeds beside a write that was lost is no success", async () => {
  const { files, image } = await opened();
  const release = files.hold("dataSync");
  const flush = image.flush();
  files.inject({ operation: "write", code: "EIO", times: 1 });
  await expect(image.write(0, pattern(0, 512, 2))).rejects.toEqual(blockError("io"));
  release();
  await expect(flush).rejects.toEqual(blockError("io"));
});

test("an I/O error while writing stops the image, whichever way it was written", async () => {
  const ways: [FakeOperation, (image: Image) => Promise<unknown>][] = [
    ["write", (image) => image.write(0, pattern(0, 512, 2))],
    ["writeNow", async (image) => image.writeNow(0, pattern(0, 512, 2))],
    ["punchHole", (image) => image.writeZeroes(0, 512)],
    ["punchHole", (image) => image.discard(0, 512)],
    ["zeroRange", (image) => image.writeZeroes(0, 512, { noHole: true })],
  ];
  for (const [operation, write] of ways) {
    const host = await opened();
    host.files.inject({ operation, code: "EIO", times: 1 });
    await expect(write(host.image), operation).rejects.toEqual(blockError("io"));
    await assertStopped(host);
  }
});

test("running out of space or memory fails the write and nothing after it", async () => {
  const codes = { ENOSPC: "no-space", EDQUOT: "no-space", EFBIG: "no-space", ENOMEM: "no-memory", EPERM: "permission" };
  for (const [code, expected] of Object.entries(codes)) {
    const { files, image } = await opened();
    files.inject({ operation: "write", code, times: 1 });
    files.inject({ operation: "writeNow", code, times: 1 });
    files.inject({ operation: "zeroRange", code, times: 1 });
    await expect(image.write(0, pattern(0, 512, 2))).rejects.toEqual(blockError(expected));
    expect(() => image.writeNow(0, pattern(0, 512, 2))).toThrow(BlockError);
    await expect(image.writeZeroes(0, 512, { noHole: true })).rejects.toEqual(blockError(expected));
    await image.write(0, pattern(0, 512, 3), { fua: true });
    expect(image.writeNow(512, pattern(512, 512, 3))).toBe(512);
    await image.flush();
    expect(await readBack(image, 0, 1024)).toEqual(pattern(0, 1024, 3));
  }
});

test("zeroes that run out of space half-way fail, and the image lives on", async () => {
  const { files, image } = await opened();
  files.features = { ...files.features, punchHole: false, zeroRange: false };
  files.inject({ operation: "write", code: "ENOSPC", times: 1 });
  await expect(image.writeZeroes(0, SIZE)).rejects.toEqual(blockError("no-space"));
  await image.writeZeroes(0, SIZE);
  expect(await readBack(image, 0, SIZE)).toEqual(Buffer.alloc(SIZE));
});

test("a device that is too busy to be zeroed is synced and asked again, and then written to", async () => {
  for (const { times, asked, written } of [
    { times: 1, asked: 2, written: 0 },
    { times: 2, asked: 2, written: 1 },
  ]) {
    const { files, image } = await opened();
    files.features = { ...files.features, zeroRange: false };
    files.inject({ operation: "punchHole", code: "EBUSY", times });
    await image.writeZeroes(100, 5000);
    expect(files.count("punchHole")).toBe(asked);
    expect(files.count("dataSync")).toBe(1);
    expect(files.count("write 100+5000")).toBe(written);
    expect(await readBack(image, 100, 5000)).toEqual(Buffer.alloc(5000));
    // It was no lost write.
    await image.write(0, pattern(0, 512), { fua: true });
  }
});

test("a file that shrank gives errors where bytes are missing, and never zeroes", async () => {
  for (const readOnly of [true, false]) {
    const { disk, image } = await opened(readOnly);
    disk.resize(100_000);
    await expect(readBack(image, 99_999, 2)).rejects.toEqual(blockError("io"));
    await expect(readBack(image, 200_000, 512)).rejects.toEqual(blockError("io"));
    expect(image.readNow(99_999, Buffer.alloc(2))).toBe(-1);
    await expect(image.extents(200_000, 512, 1)).rejects.toEqual(blockError("io"));
    expect(await readBack(image, 99_998, 2)).toEqual(pattern(99_998, 2));
    expect(image.sizeBytes).toBe(SIZE);
  }
});

test("an error that tells of a bug is not dressed up as a failure", async () => {
  const { files, image } = await opened();
  const bug = new TypeError("undefined is not a function");
  files.begin = () => Promise.reject(bug);
  await expect(readBack(image, 0, 1)).rejects.toBe(bug);
  await expect(image.write(0, pattern(0, 1))).rejects.toBe(bug);
  await expect(image.flush()).rejects.toBe(bug);
  await expect(image.extents(0, 1, 1)).rejects.toBe(bug);
});

test("closing waits for a sync that is under way", async () => {
  const { files, image } = await opened();
  const release = files.hold("dataSync");
  const seen: string[] = [];
  const flush = image.flush().then(() => seen.push("flushed"));
  const closed = image.close().then(() => seen.push("closed"));
  await expect(image.flush()).rejects.toEqual(blockError("shutting-down"));
  expect(files.count("close")).toBe(0);
  release();
  await Promise.all([flush, closed]);
  expect(seen).toEqual(["flushed", "closed"]);
});

test("what keeps an image from being opened is said in its own words, and nothing stays open", async () => {
  const cases: [FakeOperation, string, string][] = [
    ["open", "EACCES", "permission"],
    ["open", "EISDIR", "not-an-image"],
    ["open", "ELOOP", "not-an-image"],
    ["open", "EMFILE", "io"],
    ["lock", "EAGAIN", "locked"],
    ["lock", "ENOTSUP", "io"],
    ["sizeBytes", "EIO", "io"],
  ];
  for (const [operation, code, expected] of cases) {
    const files = new FakeFiles();
    files.add(PATH, SIZE);
    files.inject({ operation, code });
    const error: unknown = await openRaw({ files }, { path: PATH, readOnly: true }).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ name: "ImageOpenError", code: expected, path: PATH, cause: { code } });
    expect(error).toMatchObject({ message: expect.stringContaining(PATH), hint: expect.stringMatching(/\w/) });
    expect(files.count("close")).toBe(operation === "open" ? 0 : 1);
  }
  const files = new FakeFiles();
  await expect(openRaw({ files }, { path: PATH, readOnly: true })).rejects.toMatchObject({ code: "not-found" });
});

test("the files in memory that these tests stand on lose what was not synced", async () => {
  const { disk, image } = await opened();
  await image.write(0, pattern(0, 512, 2));
  disk.losePower();
  const into = Buffer.alloc(512);
  disk.get(0, into);
  expect(into).toEqual(pattern(0, 512));
});
