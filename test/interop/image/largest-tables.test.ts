/**
 * The largest tables that a header may name, full of what somebody chose, in `blockferry serve`: what they take of memory,
 * also while they are checked. And clusters that take more than any others to be read.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { deflateRawSync } from "node:zlib";
import { expect, test } from "vitest";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import { realClock } from "../../../src/os/clock.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { counts, drawn } from "../../support/seed.ts";
import { startServe } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";

const MIB = 2 ** 20;
/** Besides what a server of a small image takes. */
const MORE_BYTES_MAX = 64 * MIB;
const READS = 10_000;
const ROUNDS_MAX = 6;
const WORKERS = 32;
const SECTOR_BYTES = 512;
const TEST_MS_MAX = 300_000;
const ENTRY_BYTES = 8;

/** What a table's entry is, by its index: which of `count` places of the file after all tables, or bytes that are none. */
type Entries = (index: number, count: number) => number | "garbage";

const QCOW2_CLUSTER = 512;
/** QEMU's limits: 32 MiB, and 8 MiB. */
const L1_ENTRIES = 2 ** 22;
const REFCOUNT_ENTRIES = 2 ** 20;
const COPIED = 0x8000_0000;

const inOrder: Entries = (index) => index;
/** A permutation, since the factor is odd and the length a power of two. */
const mixed: Entries = (index, count) => (index * 40_503) % count;
const garbage: Entries = () => "garbage";
const same: Entries = () => 0;

/** Clusters from one table to the next, so that their numbers do not fit into 31 bits; the file is all the longer. */
const FAR = 2 ** 10;

interface Qcow2Tables {
  readonly l1: Entries;
  readonly dirty?: boolean;
  readonly apart?: number;
  /** Entries of the table of reference counts are wrong, so that a check has none to put right. */
  readonly uncounted?: boolean;
}

const QCOW2: Record<string, Qcow2Tables> = {
  "in order": { l1: inOrder },
  "in any order": { l1: mixed },
  "in any order, far from each other": { l1: mixed, apart: FAR },
  "all of them wrong": { l1: garbage },
  "all of them wrong, after a crash": { l1: garbage, dirty: true },
  "all of them the same": { l1: same },
};

function writeTable(fd: number, at: number, count: number, entry: (view: DataView, at: number, index: number) => void) {
  const piece = Buffer.alloc(MIB);
  const view = new DataView(piece.buffer, piece.byteOffset, piece.length);
  for (let first = 0; first < count; first += MIB / ENTRY_BYTES) {
    const some = Math.min(MIB / ENTRY_BYTES, count - first);
    for (let i = 0; i < some; i++) entry(view, i * ENTRY_BYTES, first + i);
    writeSync(fd, piece, 0, some * ENTRY_BYTES, at + first * ENTRY_BYTES);
  }
}

/** Of so many entries, a power of two, in each table; the file is as long as that needs, and holds nothing else. */
function makeQcow2(path: string, tables: Qcow2Tables, l1Entries: number): void {
  const { l1, dirty = false, apart = 1, uncounted = l1 === garbage } = tables;
  const header = Buffer.alloc(104);
  const refcountEntries = Math.min(REFCOUNT_ENTRIES, l1Entries);
  const l1Offset = QCOW2_CLUSTER + refcountEntries * ENTRY_BYTES;
  const behind = (l1Offset + l1Entries * ENTRY_BYTES) / QCOW2_CLUSTER;
  header.write("QFI\xfb", 0, "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(Math.log2(QCOW2_CLUSTER), 20);
  header.writeBigUInt64BE(BigInt(l1Entries) * BigInt(QCOW2_CLUSTER ** 2 / ENTRY_BYTES), 24);
  header.writeUInt32BE(l1Entries, 36);
  header.writeBigUInt64BE(BigInt(l1Offset), 40);
  header.writeBigUInt64BE(BigInt(QCOW2_CLUSTER), 48);
  header.writeUInt32BE((refcountEntries * ENTRY_BYTES) / QCOW2_CLUSTER, 56);
  header.writeUInt32BE(dirty ? 1 : 0, 76);
  header.writeUInt32BE(6, 96);
  header.writeUInt32BE(104, 100);
  const fd = openSync(path, "wx");
  try {
    writeSync(fd, header, 0, header.length, 0);
    const put = (entries: Entries, skipped: number, flags: number) => (view: DataView, at: number, index: number) => {
      const entry = entries(index, l1Entries);
      const offset = entry === "garbage" ? 2 ** 53 : (behind + (skipped + entry) * apart) * QCOW2_CLUSTER;
      view.setUint32(at, entry === "garbage" ? 0xffff_ffff : (Math.floor(offset / 2 ** 32) | flags) >>> 0);
      view.setUint32(at + 4, entry === "garbage" ? 0xffff_ffff : offset % 2 ** 32);
    };
    writeTable(fd, QCOW2_CLUSTER, refcountEntries, put(uncounted ? garbage : inOrder, l1Entries, 0));
    writeTable(fd, l1Offset, l1Entries, put(l1, 0, COPIED));
    // L2 tables, and behind them blocks of reference counts.
    ftruncateSync(fd, (behind + (l1Entries + refcountEntries) * apart) * QCOW2_CLUSTER);
  } finally {
    closeSync(fd);
  }
}

const QED_CLUSTER = 2 ** 17;
const QED_TABLE_CLUSTERS = 16;

/** The longest L1 table that a QED image can have use for is 2 MiB. */
function makeQed(path: string, { entries, dirty = false }: QedTables, l1Entries: number): void {
  const tableBytes = QED_CLUSTER * QED_TABLE_CLUSTERS;
  const header = Buffer.alloc(64);
  const covers = BigInt(tableBytes / ENTRY_BYTES) * BigInt(QED_CLUSTER);
  const sizeBytes = BigInt(l1Entries) * covers;
  header.write("QED\0", 0, "latin1");
  header.writeUInt32LE(QED_CLUSTER, 4);
  header.writeUInt32LE(QED_TABLE_CLUSTERS, 8);
  header.writeUInt32LE(1, 12);
  header.writeUInt32LE(dirty ? 2 : 0, 16);
  header.writeBigUInt64LE(BigInt(QED_CLUSTER), 40);
  header.writeBigUInt64LE(sizeBytes < 2n ** 53n ? sizeBytes : 2n ** 53n - 512n, 48);
  const behind = QED_CLUSTER + tableBytes;
  const fd = openSync(path, "wx");
  try {
    writeSync(fd, header, 0, header.length, 0);
    writeTable(fd, QED_CLUSTER, l1Entries, (view, at, index) => {
      const entry = entries(index, l1Entries);
      const value = entry === "garbage" ? 2n ** 64n - 1n : BigInt(behind) + BigInt(entry) * BigInt(tableBytes);
      view.setBigUint64(at, value, true);
    });
    ftruncateSync(fd, behind + l1Entries * tableBytes);
  } finally {
    closeSync(fd);
  }
}

const QED_L1_ENTRIES = 2 ** 18;

interface QedTables {
  readonly entries: Entries;
  readonly dirty?: boolean;
}

const QED: Record<string, QedTables> = {
  "in order": { entries: inOrder },
  "in any order": { entries: mixed },
  "all of them wrong": { entries: garbage },
};

const LARGE_CLUSTER = 2 ** 21;

/** So many clusters of 2 MiB, each compressed to a few bytes, and said to take twice its size. */
function makeCompressed(path: string, count: number): void {
  const header = Buffer.alloc(104);
  header.write("QFI\xfb", 0, "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(Math.log2(LARGE_CLUSTER), 20);
  header.writeBigUInt64BE(BigInt(count * LARGE_CLUSTER), 24);
  header.writeUInt32BE(1, 36);
  header.writeBigUInt64BE(BigInt(2 * LARGE_CLUSTER), 40);
  header.writeBigUInt64BE(BigInt(LARGE_CLUSTER), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(104, 100);
  const packed = deflateRawSync(Buffer.alloc(LARGE_CLUSTER, 7));
  const l1 = Buffer.alloc(ENTRY_BYTES);
  l1.writeBigUInt64BE(BigInt(3 * LARGE_CLUSTER) | (1n << 63n));
  const l2 = Buffer.alloc(count * ENTRY_BYTES);
  const sectorBits = 13;
  const most = (1n << BigInt(sectorBits)) - 1n;
  for (let i = 0; i < count; i++) {
    const at = BigInt((4 + 2 * i) * LARGE_CLUSTER);
    l2.writeBigUInt64BE((1n << 62n) | (most << BigInt(62 - sectorBits)) | at, i * ENTRY_BYTES);
  }
  const fd = openSync(path, "wx");
  try {
    writeSync(fd, header, 0, header.length, 0);
    writeSync(fd, l1, 0, l1.length, 2 * LARGE_CLUSTER);
    writeSync(fd, l2, 0, l2.length, 3 * LARGE_CLUSTER);
    for (let i = 0; i < count; i++) writeSync(fd, packed, 0, packed.length, (4 + 2 * i) * LARGE_CLUSTER);
    ftruncateSync(fd, (4 + 2 * count) * LARGE_CLUSTER);
  } finally {
    closeSync(fd);
  }
}

/** What the collector of the server has not come to yet is not of interest here, and differs from run to run. */
const COLLECTED_SOON = { NODE_OPTIONS: "--max-semi-space-size=1" };

interface Served {
  readonly folder: TempDir;
  readonly readOnly: boolean;
  /** How many sectors are asked for. */
  readonly readsMax: number;
}

/** The most that a server has ever held while it was asked for sectors all over the disk. */
async function peakBytes({ folder, readOnly, readsMax }: Served, image: string): Promise<number> {
  const socket = folder.file("s");
  await using server = await startServe({ image, socket, flags: readOnly ? ["-r"] : [], env: COLLECTED_SOON });
  const address = { kind: "unix", path: socket } as const;
  await using client = await connectNbd({ clock: realClock, links: realLinks }, { address, exportName: "" });
  const sectors = Math.floor(client.sizeBytes / SECTOR_BYTES);
  const reads = Math.min(readsMax, sectors);
  let next = 0;
  const worker = async (): Promise<void> => {
    const into = Buffer.alloc(SECTOR_BYTES);
    while (next < reads) {
      // Each in another table, as far as there are so many.
      const offset = Math.floor((next++ * sectors) / reads) * SECTOR_BYTES;
      await client.read(offset, into).catch(expectIo);
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, worker));
  await client.extents(0, client.sizeBytes, 100).catch(expectIo);
  // It needs new space, and so it waits until the image has been checked.
  if (!readOnly) await client.write(0, Buffer.alloc(SECTOR_BYTES, 1)).catch(expectIoOrFull);
  const { peakBytes: peak } = server.memory();
  await client.close();
  expect(await server.stop()).toBe(0);
  return peak;
}

/** Of an image that is corrupt, nothing else comes. */
function expectIo(error: unknown): void {
  expect(error).toMatchObject({ name: "BlockError", code: "io" });
}

/** The counts of a file's clusters have an end as well. */
function expectIoOrFull(error: unknown): void {
  expect(error).toMatchObject({ name: "BlockError", code: expect.stringMatching(/^(io|no-space)$/) });
}

interface Growing {
  readonly format: string;
  readonly make: (path: string, entries: number) => void;
  readonly small?: number;
  readonly large: number;
  /** Default: both. */
  readonly readOnly?: boolean;
  readonly readsMax?: number;
}

async function expectBounded({ format, make, small = 2 ** 10, large, readsMax = READS, ...image }: Growing) {
  using folder = tempDir(tmpdir());
  const [smallPath, largePath] = [folder.file(`small.${format}`), folder.file(`large.${format}`)];
  make(smallPath, small);
  make(largePath, large);
  for (const readOnly of image.readOnly === undefined ? [true, false] : [image.readOnly]) {
    const served = { folder, readOnly, readsMax };
    const moreBytes = await moreThan(
      () => peakBytes(served, smallPath),
      () => peakBytes(served, largePath),
    );
    console.info(`${readOnly ? "read-only" : "writable"}: ${(moreBytes / MIB).toFixed(1)} MiB more than a small one`);
    expect(moreBytes).toBeLessThan(MORE_BYTES_MAX);
  }
}

/** What lies about for the collector adds to what is held, and never takes from it: the least is the nearest. */
async function moreThan(small: () => Promise<number>, large: () => Promise<number>): Promise<number> {
  let least = Infinity;
  for (let round = 0; round < ROUNDS_MAX && least >= MORE_BYTES_MAX; round++) {
    least = Math.min(least, (await large()) - (await small()));
  }
  return least;
}

/** Over as much of a file as used to be counted at a time. */
function farApart(entries: number): Qcow2Tables {
  return { l1: mixed, dirty: true, apart: 2 ** 25 / entries, uncounted: true };
}

/** What takes longer: to be checked, or to be read. */
const HARD: Record<string, Growing> = {
  "a check of a qcow2's many tables, far from each other": {
    format: "qcow2",
    make: (path, entries) => makeQcow2(path, farApart(entries), entries),
    large: counts({ local: 2 ** 17, ci: L1_ENTRIES / 2 }),
    readOnly: false,
  },
  "a check of a qcow2's largest tables, in any order": {
    format: "qcow2",
    make: (path, entries) => makeQcow2(path, { l1: mixed, dirty: true }, entries),
    large: counts({ local: 2 ** 17, ci: L1_ENTRIES }),
    readOnly: false,
  },
  "a check of a QED's largest tables, in any order": {
    format: "qed",
    make: (path, entries) => makeQed(path, { entries: mixed, dirty: true }, entries),
    small: 1,
    large: counts({ local: 2 ** 16, ci: QED_L1_ENTRIES }),
    readOnly: false,
  },
  "reading many of the largest compressed clusters at once": {
    format: "qcow2",
    make: makeCompressed,
    small: 1,
    large: 64,
    readOnly: true,
    readsMax: 64,
  },
};

const FULL: readonly [string, Growing][] = [
  ...Object.entries(QCOW2).map(([what, tables]): [string, Growing] => [
    `a qcow2's largest tables, full of entries, ${what}`,
    { format: "qcow2", make: (path, entries) => makeQcow2(path, tables, entries), large: L1_ENTRIES },
  ]),
  ...Object.entries(QED).map(([what, tables]): [string, Growing] => [
    `a QED's largest L1 table, full of entries, ${what}`,
    { format: "qed", make: (path, entries) => makeQed(path, tables, entries), small: 1, large: QED_L1_ENTRIES },
  ]),
];

for (const [what, image] of drawn([...FULL, ...Object.entries(HARD)], 1)) {
  test(`memory is bounded: ${what}`, () => expectBounded(image), TEST_MS_MAX);
}
