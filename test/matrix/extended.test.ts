/**
 * Extended headers between our server and the clients that have them: QEMU from 8.2 on, libnbd from 1.20 on. Requests
 * and extents of more than 4 GiB, each in one piece.
 */
import { statSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parseNbdinfoMap, parseQemuMap, type Run, runsOf } from "../interop/serve/layout.ts";
import { NbdHandle } from "../support/libnbd.ts";
import { fileBytes, firstDifference, makeImage, pattern, type Region } from "../support/patterns.ts";
import { run, runOk } from "../support/run.ts";
import { type ServeProcess, startServe } from "../support/serve-process.ts";
import { tempDir } from "../support/temp-dir.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const SIZE = 24 * GiB;
/** Data on both sides of everything that a 32-bit number could cut off. */
const REGIONS: readonly Region[] = [
  { offset: 0, length: MiB, salt: 1 },
  { offset: 4 * GiB - MiB, length: 2 * MiB, salt: 2 },
  { offset: 13 * GiB, length: MiB, salt: 3 },
  { offset: 24 * GiB - MiB, length: MiB, salt: 4 },
];
const [FUA, FAST_ZERO] = [1, 16];

const folder = tempDir();
let from: ServeProcess;

beforeAll(async () => {
  makeImage(folder.file("source.img"), SIZE, REGIONS);
  from = await startServe({ image: folder.file("source.img"), socket: folder.file("from.sock"), flags: ["-r"] });
});

afterAll(async () => {
  await from.kill();
  folder[Symbol.dispose]();
});

interface Target extends AsyncDisposable {
  readonly image: string;
  readonly uri: string;
}

/** A writable export of `SIZE` bytes that holds `REGIONS`. */
async function target(regions = REGIONS): Promise<Target> {
  const own = tempDir();
  const image = own.file("target.img");
  makeImage(image, SIZE, regions);
  const server = await startServe({ image, socket: own.file("s") });
  return {
    image,
    uri: server.uri,
    [Symbol.asyncDispose]: async () => {
      await server.kill();
      own[Symbol.dispose]();
    },
  };
}

/** The lengths of the requests of one command that QEMU says it sends. */
function sentLengths(trace: string, command: string): number[] {
  const sent = trace.matchAll(/nbd_send_request .*\.len = (\d+),.*\.type = \d+ \(([^)]+)\)/g);
  return [...sent].filter(([, , name]) => name === command).map(([, length]) => Number(length));
}

function sliceOf(regions: readonly Region[], from: number, to: number): Run[] {
  return runsOf(SIZE, regions)
    .map((found) => ({ ...found, end: Math.min(found.start + found.length, to), start: Math.max(found.start, from) }))
    .filter(({ start, end }) => end > start)
    .map(({ start, end, hole, zero }) => ({ start, length: end - start, hole, zero }));
}

test("these are the newer tools", async () => {
  const versionOf = async (tool: string) => Number(/(\d+\.\d+)/.exec(await runOk([tool, "--version"]))?.[1]);
  expect(await versionOf("qemu-img")).toBeGreaterThanOrEqual(10);
  expect(await versionOf("qemu-io")).toBeGreaterThanOrEqual(10);
  expect(await versionOf("nbdinfo")).toBeGreaterThanOrEqual(1.22);
});

test("libnbd agrees on extended headers, and without asking for them on structured replies", async () => {
  expect(await runOk(["nbdinfo", from.uri])).toContain("using extended packets");
  const info = JSON.parse(await runOk(["nbdinfo", "--json", from.uri])) as Record<string, unknown>;
  expect(info).toMatchObject({ extended: true, structured: true });
  const before = [["set_request_extended_headers", false]] as const;
  await using older = await NbdHandle.connect(from.uri, { before });
  expect(await older.call("get_extended_headers_negotiated")).toBe(false);
  expect(await older.call("get_structured_replies_negotiated")).toBe(true);
  expect(firstDifference(await older.read(4096, 13 * GiB), pattern(13 * GiB, 4096, 3))).toBeUndefined();
});

test("the options come in any order; extended headers outrank structured replies", async () => {
  const before = [
    ["set_opt_mode", true],
    ["set_request_structured_replies", false],
  ] as const;
  await using nbd = await NbdHandle.connect(from.uri, { before });
  expect(await nbd.call("opt_structured_reply")).toBe(true);
  expect(await nbd.call("opt_extended_headers")).toBe(true);
  // Again: refused, and what was agreed on stays.
  expect(await nbd.call("opt_extended_headers")).toBe(false);
  expect(await nbd.call("opt_structured_reply")).toBe(false);
  await nbd.call("opt_go");
  expect(await nbd.call("get_protocol")).toBe("newstyle-fixed");
  expect(firstDifference(await nbd.read(MiB, 4 * GiB), pattern(4 * GiB, MiB, 2))).toBeUndefined();
});

test("the map of 24 GiB is the file's own, its long holes in one extent each", async () => {
  const expected = runsOf(SIZE, REGIONS);
  expect(expected.some(({ length }) => length > 4 * GiB)).toBe(true);
  expect(parseNbdinfoMap(await runOk(["nbdinfo", "--map", "--json", from.uri]))).toEqual(expected);
  expect(parseQemuMap(await runOk(["qemu-img", "map", "--output=json", "-f", "raw", from.uri]))).toEqual(expected);
  await using nbd = await NbdHandle.connect(from.uri, { before: [["add_meta_context", "base:allocation"]] });
  const [status, ...rest] = await nbd.blockStatus64(SIZE - 5 * GiB, 5 * GiB);
  expect(rest).toEqual([]);
  expect(status?.[0]).toBe("base:allocation");
  expect(status?.[1]).toBe(5 * GiB);
  const runs = sliceOf(REGIONS, 5 * GiB, SIZE);
  expect(status?.[2]).toEqual(runs.map(({ length, hole }) => [length, hole ? 3 : 0]));
});

test("a trim, a zero and a cache request of 6 GiB are one request each", async () => {
  await using vm = await target();
  await using nbd = await NbdHandle.connect(vm.uri);
  expect(await nbd.errnoOf("trim", 6 * GiB, GiB, FUA)).toBe("OK");
  expect(await nbd.errnoOf("zero", 6 * GiB, 10 * GiB, FAST_ZERO)).toBe("OK");
  expect(await nbd.errnoOf("cache", 6 * GiB, 0)).toBe("OK");
  const left = [REGIONS[0], REGIONS[3]] as Region[];
  for (const { offset, length, salt } of REGIONS) {
    const kept = left.some((region) => region.offset === offset);
    const expected = kept ? pattern(offset, length, salt) : Buffer.alloc(length);
    expect(firstDifference(fileBytes(vm.image, offset, length), expected), `at ${offset}`).toBeUndefined();
  }
  expect(statSync(vm.image).blocks * 512).toBeLessThan(3 * MiB);
  // Past the end, however large.
  expect(await nbd.errnoOf("trim", SIZE, 1)).toBe("EINVAL");
  expect(await nbd.errnoOf("zero", 2 ** 60, 0)).toBe("ENOSPC");
  expect(await nbd.errnoOf("pread", 512, SIZE)).toBe("EINVAL");
  expect(await nbd.errnoOf("pread", 512, 0)).toBe("OK");
});

test("QEMU zeroes 5 GiB with one request, and reads zeroes there", async () => {
  await using vm = await target();
  const io = (...commands: string[]) =>
    run([
      "qemu-io",
      "-T",
      "nbd_send_request",
      "-f",
      "raw",
      "-d",
      "unmap",
      ...commands.flatMap((c) => ["-c", c]),
      vm.uri,
    ]);
  const zeroed = await io("write -z -u -n 3G 5G", "flush", "read -P 0 4095M 2M");
  expect(zeroed.status, zeroed.stderr).toBe(0);
  expect(sentLengths(zeroed.stderr, "write zeroes")).toEqual([5 * GiB]);
  const map = parseNbdinfoMap(await runOk(["nbdinfo", "--map", "--json", vm.uri]));
  expect(map).toEqual(
    runsOf(
      SIZE,
      REGIONS.filter(({ offset }) => offset !== 4 * GiB - MiB),
    ),
  );
  expect(firstDifference(fileBytes(vm.image, 4 * GiB - MiB, 2 * MiB), Buffer.alloc(2 * MiB))).toBeUndefined();
});

test("QEMU writes, discards and reads far beyond 4 GiB", async () => {
  await using vm = await target();
  const commands = ["write -P 0xa1 14G 1M", "write -f -P 0xa2 15032385537 70001", "discard 13G 1G", "flush"];
  const checks = ["read -P 0xa1 14G 1", "read -P 0xa2 15032385537 1000"];
  const io = ["qemu-io", "-f", "raw", "-d", "unmap", "-t", "writeback"];
  await runOk([...io, ...[...commands, ...checks].flatMap((command) => ["-c", command]), vm.uri]);
  const expected = Buffer.alloc(MiB, 0xa1).fill(0xa2, 1, 70_002);
  expect(firstDifference(fileBytes(vm.image, 14 * GiB, MiB), expected)).toBeUndefined();
  const kept = fileBytes(vm.image, 4 * GiB - MiB, 2 * MiB);
  expect(firstDifference(kept, pattern(4 * GiB - MiB, 2 * MiB, 2))).toBeUndefined();
  expect(fileBytes(vm.image, 13 * GiB, MiB).equals(Buffer.alloc(MiB))).toBe(true);
});

test("convert, compare and nbdcopy carry a sparse 24 GiB over, and nothing but the data", async () => {
  for (const copy of [
    (uri: string) => ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", from.uri, uri],
    (uri: string) => ["nbdcopy", "--flush", from.uri, uri],
  ]) {
    await using vm = await target([{ offset: 12 * GiB, length: 3 * MiB, salt: 9 }]);
    await runOk(copy(vm.uri));
    expect(await runOk(["qemu-img", "compare", "-f", "raw", "-F", "raw", from.uri, vm.uri])).toContain("identical");
    for (const { offset, length, salt } of [...REGIONS, { offset: 12 * GiB, length: 3 * MiB, salt: 0 }]) {
      const expected = salt === 0 ? Buffer.alloc(length) : pattern(offset, length, salt);
      expect(firstDifference(fileBytes(vm.image, offset, length), expected), `at ${offset}`).toBeUndefined();
    }
    expect(statSync(vm.image).blocks * 512).toBeLessThan(6 * MiB);
  }
});

test("compare finds one changed byte beyond 4 GiB", async () => {
  await using vm = await target();
  await runOk(["qemu-io", "-f", "raw", "-c", `write -P 0x5a ${9 * GiB + 77} 1`, vm.uri]);
  const compared = await run(["qemu-img", "compare", "-f", "raw", "-F", "raw", from.uri, vm.uri]);
  expect(compared.status).toBe(1);
  expect(compared.stdout).toContain("mismatch");
});

test("block status answers in 32 bits too, to those who ask so", async () => {
  const before = [["add_meta_context", "base:allocation"]] as const;
  await using nbd = await NbdHandle.connect(from.uri, { before });
  const [status] = await nbd.blockStatus(GiB, 4 * GiB);
  expect(status).toEqual(["base:allocation", 4 * GiB, [MiB, 0, GiB - MiB, 3], 0]);
});
