/** The largest tables that a header may name, full of what somebody chose, in `blockferry serve`: what they take of memory. */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect, test } from "vitest";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import { realClock } from "../../../src/os/clock.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { drawn } from "../../support/seed.ts";
import { startServe } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";

const MIB = 2 ** 20;
/** Besides what a server of a small image takes. */
const MORE_BYTES_MAX = 64 * MIB;
const READS = 10_000;
const ROUNDS_MAX = 6;
const WORKERS = 32;
const SECTOR_BYTES = 512;
const TEST_MS_MAX = 120_000;
const ENTRY_BYTES = 8;

/** What a table's entry is, by its index: a cluster of the file after all tables, or bytes that are no place. */
type Entries = (index: number) => number | "garbage";

const QCOW2_CLUSTER = 512;
/** QEMU's limits: 32 MiB, and 8 MiB. */
const L1_ENTRIES = 2 ** 22;
const REFCOUNT_ENTRIES = 2 ** 20;
/** Tables of references, two kinds of them, one after the other. */
const CLUSTERS_BEHIND = L1_ENTRIES + REFCOUNT_ENTRIES;
const COPIED = 0x8000_0000;

const inOrder: Entries = (index) => index;
/** A permutation, since the factor is odd and the length a power of two. */
const mixed: Entries = (index) => (index * 40_503) % L1_ENTRIES;
const garbage: Entries = () => "garbage";
const same: Entries = () => 0;

/** Entries of both tables, and features. */
const QCOW2: Record<string, { l1: Entries; dirty: boolean }> = {
  "in order": { l1: inOrder, dirty: false },
  "in any order": { l1: mixed, dirty: false },
  "all of them wrong": { l1: garbage, dirty: false },
  "all of them wrong, after a crash": { l1: garbage, dirty: true },
  "all of them the same": { l1: same, dirty: false },
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

/** Of so many entries in each table; the file is as long as that needs, and holds nothing else. */
function makeQcow2(path: string, { l1, dirty }: { l1: Entries; dirty: boolean }, l1Entries: number): void {
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
      const entry = entries(index);
      const offset = entry === "garbage" ? 2 ** 53 : (behind + skipped + entry) * QCOW2_CLUSTER;
      view.setUint32(at, entry === "garbage" ? 0xffff_ffff : (Math.floor(offset / 2 ** 32) | flags) >>> 0);
      view.setUint32(at + 4, entry === "garbage" ? 0xffff_ffff : offset % 2 ** 32);
    };
    writeTable(fd, QCOW2_CLUSTER, refcountEntries, put(l1 === garbage ? garbage : inOrder, l1Entries, 0));
    writeTable(fd, l1Offset, l1Entries, put(l1, 0, COPIED));
    ftruncateSync(fd, (behind + CLUSTERS_BEHIND) * QCOW2_CLUSTER);
  } finally {
    closeSync(fd);
  }
}

const QED_CLUSTER = 2 ** 17;
const QED_TABLE_CLUSTERS = 16;

/** The longest L1 table that a QED image can have use for is 2 MiB. */
function makeQed(path: string, entries: Entries, l1Entries: number): void {
  const tableBytes = QED_CLUSTER * QED_TABLE_CLUSTERS;
  const header = Buffer.alloc(64);
  const covers = BigInt(tableBytes / ENTRY_BYTES) * BigInt(QED_CLUSTER);
  const sizeBytes = BigInt(l1Entries) * covers;
  header.write("QED\0", 0, "latin1");
  header.writeUInt32LE(QED_CLUSTER, 4);
  header.writeUInt32LE(QED_TABLE_CLUSTERS, 8);
  header.writeUInt32LE(1, 12);
  header.writeBigUInt64LE(BigInt(QED_CLUSTER), 40);
  header.writeBigUInt64LE(sizeBytes < 2n ** 53n ? sizeBytes : 2n ** 53n - 512n, 48);
  const behind = QED_CLUSTER + tableBytes;
  const fd = openSync(path, "wx");
  try {
    writeSync(fd, header, 0, header.length, 0);
    writeTable(fd, QED_CLUSTER, l1Entries, (view, at, index) => {
      const entry = entries(index);
      const value = entry === "garbage" ? 2n ** 64n - 1n : BigInt(behind) + BigInt(entry) * BigInt(tableBytes);
      view.setBigUint64(at, value, true);
    });
    ftruncateSync(fd, behind + l1Entries * tableBytes);
  } finally {
    closeSync(fd);
  }
}

const QED_L1_ENTRIES = 2 ** 18;
const QED: Record<string, Entries> = {
  "in order": inOrder,
  "in any order": (index) => (index * 40_503) % QED_L1_ENTRIES,
  "all of them wrong": garbage,
};

/** What the collector of the server has not come to yet is not of interest here, and differs from run to run. */
const COLLECTED_SOON = { NODE_OPTIONS: "--max-semi-space-size=1" };

/** The most that a server has ever held while it was asked for sectors all over the disk. */
async function peakBytes(folder: TempDir, image: string, readOnly: boolean): Promise<number> {
  const socket = folder.file("s");
  await using server = await startServe({ image, socket, flags: readOnly ? ["-r"] : [], env: COLLECTED_SOON });
  const address = { kind: "unix", path: socket } as const;
  await using client = await connectNbd({ clock: realClock, links: realLinks }, { address, exportName: "" });
  const sectors = Math.floor(client.sizeBytes / SECTOR_BYTES);
  const reads = Math.min(READS, sectors);
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
  const { peakBytes: peak } = server.memory();
  await client.close();
  expect(await server.stop()).toBe(0);
  return peak;
}

/** Of an image that is corrupt, nothing else comes. */
function expectIo(error: unknown): void {
  expect(error).toMatchObject({ name: "BlockError", code: "io" });
}

async function expectBounded(make: (path: string, l1Entries: number) => void, format: string, most: number) {
  using folder = tempDir(tmpdir());
  const [small, large] = [folder.file(`small.${format}`), folder.file(`large.${format}`)];
  make(small, 2 ** 10);
  make(large, most);
  for (const readOnly of [true, false]) {
    const moreBytes = await moreThan(
      () => peakBytes(folder, small, readOnly),
      () => peakBytes(folder, large, readOnly),
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

for (const [what, tables] of drawn(Object.entries(QCOW2), 1)) {
  test(
    `the largest tables of a qcow2, full of entries, ${what}, take bounded memory`,
    () => expectBounded((path, l1Entries) => makeQcow2(path, tables, l1Entries), "qcow2", L1_ENTRIES),
    TEST_MS_MAX,
  );
}

for (const [what, entries] of drawn(Object.entries(QED), 1)) {
  test(
    `the largest L1 table of a QED, full of entries, ${what}, takes bounded memory`,
    () => expectBounded((path, l1Entries) => makeQed(path, entries, l1Entries), "qed", QED_L1_ENTRIES),
    TEST_MS_MAX,
  );
}
