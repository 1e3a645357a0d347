/** Requests that libnbd would normally refuse to send: each gets the error it deserves, and the connection lives on. */
import { afterAll, beforeAll, expect } from "vitest";
import { NbdHandle } from "../../support/libnbd.ts";
import { fileBytes, firstDifference, makeImage, pattern } from "../../support/patterns.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "./layout.ts";

const SIZE = 8 * MiB + 513;
const [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, UNKNOWN] = [1, 2, 4, 8, 16, 64];
const NEEDS = ["python3-libnbd"];
const BEYOND_NUMBERS = 2 ** 62;

const folder = tempDir();
const image = folder.file("disk.img");
let writable: ServeProcess;
let readOnly: ServeProcess;

beforeAll(async () => {
  makeImage(image, SIZE);
  makeImage(folder.file("frozen.img"), SIZE);
  const frozen = { image: folder.file("frozen.img"), socket: folder.file("r.sock"), flags: ["-r"] };
  [writable, readOnly] = await Promise.all([startServe({ image, socket: folder.file("w.sock") }), startServe(frozen)]);
});

afterAll(async () => {
  await Promise.all([writable.kill(), readOnly.kill()]);
  folder[Symbol.dispose]();
});

type Call = readonly [method: string, ...args: unknown[]];
type Case = readonly [expected: string, ...call: Call];

/** Makes every call, and after each one a read, which shows that the connection lives and is in step. */
async function expectOutcomes(nbd: NbdHandle, cases: readonly Case[]): Promise<void> {
  for (const [expected, method, ...args] of cases) {
    const what = `${method}(${args.map((arg) => (Buffer.isBuffer(arg) ? `${arg.length} bytes` : arg)).join(", ")})`;
    expect(`${what}: ${await nbd.errnoOf(method, ...args)}`).toBe(`${what}: ${expected}`);
    expect((await nbd.read(64, 4096)).equals(pattern(4096, 64)), `the read after ${what}`).toBe(true);
  }
}

const OUT_OF_RANGE: readonly Case[] = [
  ["EINVAL", "pread", 1, SIZE],
  ["EINVAL", "pread", 514, SIZE - 513],
  ["EINVAL", "pread", 4096, BEYOND_NUMBERS],
  ["ENOSPC", "pwrite", Buffer.alloc(1, 1), SIZE],
  ["ENOSPC", "pwrite", Buffer.alloc(70_000, 1), SIZE - 513],
  ["ENOSPC", "pwrite", Buffer.alloc(512, 1), BEYOND_NUMBERS],
  ["ENOSPC", "zero", 514, SIZE - 513],
  ["ENOSPC", "zero", 0xffff_ffff, 0],
  ["EINVAL", "trim", 514, SIZE - 513],
  ["EINVAL", "trim", 0xffff_ffff, 0],
  ["EINVAL", "cache", 514, SIZE - 513],
  ["EINVAL", "block_status", 514, SIZE - 513],
  ["EINVAL", "block_status", 0xffff_ffff, 512],
  ["OK", "pread", 513, SIZE - 513],
];

itWith(NEEDS, "requests past the end: ENOSPC for what would grow the image, EINVAL for the rest", async () => {
  await using nbd = await NbdHandle.connect(writable.uri, { before: [["add_meta_context", "base:allocation"]] });
  await expectOutcomes(nbd, OUT_OF_RANGE);
  expect(firstDifference(fileBytes(image, SIZE - 513, 513), pattern(SIZE - 513, 513))).toBeUndefined();
});

itWith(NEEDS, "the same with simple replies", async () => {
  const before = [["set_request_structured_replies", false]] as const;
  await using nbd = await NbdHandle.connect(writable.uri, { before });
  expect(await nbd.call("get_structured_replies_negotiated")).toBe(false);
  await expectOutcomes(
    nbd,
    OUT_OF_RANGE.filter(([, method]) => method !== "block_status"),
  );
});

itWith(NEEDS, "flags that a command does not have are EINVAL; FUA is welcome everywhere", async () => {
  await using nbd = await NbdHandle.connect(writable.uri, { before: [["add_meta_context", "base:allocation"]] });
  const block = pattern(MiB, 512);
  await expectOutcomes(nbd, [
    ["EINVAL", "pread", 512, 0, UNKNOWN],
    ["EINVAL", "pread", 512, 0, 0x8000],
    ["EINVAL", "pread", 512, 0, NO_HOLE],
    ["OK", "pread", 512, 0, FUA],
    ["EINVAL", "pwrite", block, MiB, UNKNOWN],
    ["EINVAL", "pwrite", block, MiB, DF],
    ["EINVAL", "pwrite", block, MiB, FUA | FAST_ZERO],
    ["OK", "pwrite", block, MiB, FUA],
    ["EINVAL", "trim", 512, 0, NO_HOLE],
    ["EINVAL", "zero", 512, 0, REQ_ONE],
    ["EINVAL", "cache", 512, 0, DF],
    ["OK", "cache", 512, 0, FUA],
    ["EINVAL", "flush", UNKNOWN],
    ["OK", "flush", FUA],
    ["EINVAL", "block_status", 512, 0, DF],
    ["OK", "block_status", 512, 0, REQ_ONE | FUA],
  ]);
});

itWith(NEEDS, "requests of no bytes do nothing and break nothing", async () => {
  await using nbd = await NbdHandle.connect(writable.uri, { before: [["add_meta_context", "base:allocation"]] });
  await expectOutcomes(nbd, [
    ["OK", "pread", 0, 0],
    ["OK", "pread", 0, SIZE],
    ["OK", "pwrite", Buffer.alloc(0), 512],
    ["OK", "pwrite", Buffer.alloc(0), 512, FUA],
    ["OK", "zero", 0, 512],
    ["OK", "trim", 0, 512],
    ["OK", "cache", 0, 512],
    ["EINVAL", "block_status", 0, 512],
    ["EINVAL", "pread", 0, SIZE + 1],
  ]);
});

itWith(NEEDS, "a read-only export refuses every change with EPERM and answers the rest", async () => {
  await using nbd = await NbdHandle.connect(readOnly.uri);
  expect(await nbd.call("is_read_only")).toBe(true);
  await expectOutcomes(nbd, [
    ["EPERM", "pwrite", Buffer.alloc(512, 7), 0],
    ["EPERM", "pwrite", Buffer.alloc(3 * MiB, 7), 0, FUA],
    ["EPERM", "pwrite", Buffer.alloc(0), 0],
    ["EPERM", "zero", 512, 0],
    ["EPERM", "zero", 512, 0, FAST_ZERO],
    ["EPERM", "trim", 512, 0],
    ["OK", "flush"],
    ["OK", "cache", 512, 0],
  ]);
  expect(firstDifference(fileBytes(folder.file("frozen.img"), 0, SIZE), pattern(0, SIZE))).toBeUndefined();
});

itWith(NEEDS, "reads at any offset and of any length are exact, in both dialects", async () => {
  for (const structured of [true, false]) {
    const before = [["set_request_structured_replies", structured]] as const;
    await using nbd = await NbdHandle.connect(readOnly.uri, { before });
    for (const [offset, length] of [
      [0, 1],
      [1, 1],
      [511, 2],
      [4095, 4098],
      [65_535, 262_145],
      [MiB - 3, 3 * MiB + 5],
      [SIZE - 1, 1],
    ] as const) {
      const bytes = await nbd.read(length, offset);
      expect(firstDifference(bytes, pattern(offset, length)), `${offset}+${length}`).toBeUndefined();
    }
  }
});

itWith(NEEDS, "a structured read covers its range once; DF makes it one chunk, up to what is promised", async () => {
  await using nbd = await NbdHandle.connect(readOnly.uri);
  const { bytes, chunks } = await nbd.readStructured(5 * MiB + 1, 12_345);
  expect(firstDifference(bytes, pattern(12_345, 5 * MiB + 1))).toBeUndefined();
  let at = 12_345;
  for (const [offset, length] of chunks.toSorted(([a], [b]) => a - b)) {
    expect(offset).toBe(at);
    at += length;
  }
  expect(at).toBe(12_345 + 5 * MiB + 1);
  expect(chunks.length).toBeGreaterThan(1);

  const whole = await nbd.readStructured(64 * KiB, 1001, DF);
  expect(whole.chunks).toEqual([[1001, 64 * KiB, "data", 0]]);
  expect(firstDifference(whole.bytes, pattern(1001, 64 * KiB))).toBeUndefined();
  // Longer than a server must honour: refused with the one error that DF allows, or done in one piece.
  expect(await nbd.errnoOf("pread_structured", 5 * MiB, 0, DF)).toBe("EOVERFLOW");
  expect(await nbd.errnoOf("pread", 512, 0)).toBe("OK");
});

itWith(NEEDS, "zeroes and trims of a whole large range cost one short request", async () => {
  makeImage(folder.file("huge.img"), 5 * 1024 * MiB, [{ offset: 3 * 1024 * MiB, length: MiB, salt: 1 }]);
  await using server = await startServe({ image: folder.file("huge.img"), socket: folder.file("huge.sock") });
  await using nbd = await NbdHandle.connect(server.uri);
  expect(await nbd.errnoOf("zero", 0xffff_f000, 0)).toBe("OK");
  expect(await nbd.errnoOf("trim", 0xffff_ffff, 512)).toBe("OK");
  expect(await nbd.errnoOf("zero", 0xffff_f000, 0, FAST_ZERO)).toBe("OK");
  expect((await nbd.read(4096, 3 * 1024 * MiB)).equals(Buffer.alloc(4096))).toBe(true);
});
