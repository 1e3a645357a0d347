/** Headers and tables that somebody has damaged, or made to do damage: a clean error, soon, and in little memory. */
import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { ImageOpenError } from "../../../src/image/errors.ts";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { openQcow2 } from "../../../src/image/qcow2/open.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { damaged, type HandMadeCluster, handMadeQcow2 } from "../../support/qcow2-bytes.ts";
import { counts, itSeeded } from "../../support/seed.ts";

const PATH = "/vm/hostile.qcow2";
const READ_BYTES_MAX = 1024 * 1024;
const CLUSTERS = new Map<number, HandMadeCluster>([
  [0, 1],
  [3, 2],
  [4, "zero"],
  [5, { compressed: 3 }],
  [6, "zero, placed"],
  [9, 4],
]);
const made = handMadeQcow2({ sizeBytes: 64 * 4096, clusters: CLUSTERS });
/** Of processor time, for all that is done with one image; opening is a small part of it. */
const SLOW_MS = 400;
/** Tables of 40 MiB in all are read, twice. */
const LARGE_MS = 2000;

type Outcome = "refused" | "corrupt" | "served";

/** Unlike time on the clock, it does not depend on what else this machine does. */
function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Everything that can be asked of an image. Rejects only for what is a defect. */
async function exercise(bytes: Buffer): Promise<Outcome> {
  const files = new FakeFiles();
  files.add(PATH, bytes);
  try {
    await use(files, true);
    await checkQcow2({ files }, { path: PATH });
    await checkQcow2({ files }, { path: PATH, repair: "all" });
    files.disks.get(PATH)?.put(0, bytes);
    await use(files, false);
    return "served";
  } catch (error) {
    if (error instanceof ImageOpenError) return "refused";
    if (error instanceof BlockError) return "corrupt";
    throw error;
  }
}

async function use(files: FakeFiles, readOnly: boolean): Promise<void> {
  await using image = await openQcow2({ files }, { path: PATH, readOnly, backing: "absent" });
  const { sizeBytes } = image;
  if (sizeBytes < 512) return;
  const into = Buffer.alloc(Math.min(READ_BYTES_MAX, sizeBytes));
  await image.read(0, into);
  await image.read(sizeBytes - 512, into.subarray(0, 512));
  await image.extents(0, sizeBytes, 1000);
  if (readOnly) return;
  for (const offset of [0, 4096, 5 * 4096, Math.floor(sizeBytes / 1024) * 512, sizeBytes - 512]) {
    if (offset + 512 > sizeBytes) continue;
    const bytes = pattern(offset, 512, 9);
    await image.write(offset, bytes);
    const found = Buffer.alloc(512);
    await image.read(offset, found);
    // Beyond a cluster's end may be, by another entry, the same place in the file: nobody can tell without a check.
    if (offset % 512 === 0) expect(found.equals(bytes)).toBe(true);
  }
  // As much as one NBD request can ask for.
  await image.writeZeroes(0, Math.min(sizeBytes, 2 ** 32 - 512));
}

itSeeded(
  "damaged headers and tables never do more than fail",
  async (rng) => {
    const outcomes = { refused: 0, corrupt: 0, served: 0 };
    const count = counts({ local: 1500, ci: 20_000 });
    let slowestMs = 0;
    for (let round = 0; round < count; round++) {
      const bytes = damaged(made, rng);
      const startedMs = processorMs();
      outcomes[await exercise(bytes)] += 1;
      slowestMs = Math.max(slowestMs, processorMs() - startedMs);
      if (round % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    console.info(`${count} damaged images: ${JSON.stringify(outcomes)}, the slowest took ${slowestMs.toFixed(1)} ms`);
    expect(slowestMs).toBeLessThan(SLOW_MS);
    // It does not always end at the same check.
    for (const seen of Object.values(outcomes)) expect(seen).toBeGreaterThan(count / 50);
  },
  120_000,
);

interface HostileHeader {
  readonly clusterBits: number;
  readonly sizeBytes: bigint;
  readonly l1Entries: number;
  readonly refcountClusters: number;
  readonly fileBytes: number;
  readonly refcountOrder?: number;
}

const MIB = 2 ** 20;
/** The most that the fields can ask for, in files that are long enough for them and hold nothing. */
const LARGEST: Record<string, HostileHeader> = {
  "the largest clusters and tables": {
    clusterBits: 21,
    sizeBytes: 2n ** 53n - 512n,
    l1Entries: 2 ** 22,
    refcountClusters: 4,
    fileBytes: 2 ** 31,
  },
  "the longest L1 table": {
    clusterBits: 9,
    sizeBytes: 2n ** 37n,
    l1Entries: 2 ** 22,
    refcountClusters: 2 ** 14,
    fileBytes: 64 * MIB,
    refcountOrder: 6,
  },
  "a file of 4 TiB": {
    clusterBits: 16,
    sizeBytes: 2n ** 42n,
    l1Entries: 2 ** 13,
    refcountClusters: 1,
    fileBytes: 2 ** 42,
  },
};

for (const [name, header] of Object.entries(LARGEST)) {
  test(`${name}: opened, read, written and mapped in bounded time and memory`, async () => {
    const { clusterBits, sizeBytes, l1Entries, refcountClusters, fileBytes, refcountOrder = 4 } = header;
    const bytes = Buffer.from(handMadeQcow2({ sizeBytes: 0 }).bytes.subarray(0, 112));
    const clusterBytes = 2 ** clusterBits;
    bytes.writeUInt32BE(clusterBits, 20);
    bytes.writeBigUInt64BE(sizeBytes, 24);
    bytes.writeUInt32BE(l1Entries, 36);
    bytes.writeBigUInt64BE(BigInt(clusterBytes * (1 + refcountClusters)), 40);
    bytes.writeBigUInt64BE(BigInt(clusterBytes), 48);
    bytes.writeUInt32BE(refcountClusters, 56);
    bytes.writeUInt32BE(refcountOrder, 96);
    const before = process.memoryUsage();
    const startedMs = processorMs();
    const files = new FakeFiles();
    files.add(PATH, fileBytes).put(0, bytes);
    await use(files, true);
    await use(files, false);
    const after = process.memoryUsage();
    const tookMs = processorMs() - startedMs;
    const tookBytes = after.rss - before.rss;
    console.info(`${name}: ${tookMs.toFixed(1)} ms, ${(tookBytes / MIB).toFixed(1)} MiB`);
    expect(tookMs).toBeLessThan(LARGE_MS);
    expect(tookBytes).toBeLessThan(192 * MIB);
  });
}

test("every field of the header has a refusal that names it", async () => {
  const cases: [field: string, at: number, value: bigint, code: string][] = [
    ["version", 4, 4n, "unsupported-format"],
    ["backing_file_offset", 8, 4097n, "corrupt"],
    ["cluster_bits", 20, 8n, "corrupt"],
    ["cluster_bits", 20, 22n, "corrupt"],
    ["size", 24, 2n ** 21n + 1n, "corrupt"],
    ["size", 24, 2n ** 64n - 1n, "corrupt"],
    ["AES", 32, 1n, "unsupported-format"],
    ["LUKS", 32, 2n, "unsupported-format"],
    ["l1_size", 36, 2n ** 22n + 1n, "corrupt"],
    ["l1_table_offset", 40, 0n, "corrupt"],
    ["l1_table_offset", 40, 4097n, "corrupt"],
    ["l1_table_offset", 40, 2n ** 63n, "corrupt"],
    ["refcount_table_offset", 48, 512n, "corrupt"],
    ["refcount_table_offset", 48, 2n ** 40n, "corrupt"],
    ["refcount_table_clusters", 56, 0n, "corrupt"],
    ["refcount_table_clusters", 56, 2049n, "corrupt"],
    ["nb_snapshots", 60, 65_537n, "corrupt"],
    ["external data file", 72, 4n, "unsupported-format"],
    ["compression_type", 72, 8n, "corrupt"],
    ["extended L2", 72, 16n, "unsupported-format"],
    ["0x8000000000000000", 72, 2n ** 63n, "unsupported-format"],
    ["refcount_order", 96, 7n, "corrupt"],
    ["header_length", 100, 103n, "corrupt"],
    ["header_length", 100, 8192n, "corrupt"],
    ["compression_type", 104, 2n, "unsupported-format"],
    ["compression_type", 104, 1n, "corrupt"],
    ["header extension", 112, (1n << 32n) | 5000n, "corrupt"],
  ];
  const wide = new Set([8, 24, 40, 48, 72, 112]);
  for (const [field, at, value, code] of cases) {
    const bytes = Buffer.from(made.bytes);
    if (at === 104) bytes.writeUInt8(Number(value), at);
    else if (wide.has(at)) bytes.writeBigUInt64BE(value, at);
    else bytes.writeUInt32BE(Number(value), at);
    const files = new FakeFiles();
    files.add(PATH, bytes);
    const attempt = openQcow2({ files }, { path: PATH, readOnly: true });
    await expect(attempt, `${field} ${value}`).rejects.toMatchObject({
      name: "ImageOpenError",
      code,
      why: expect.stringContaining(field),
    });
    expect(files.count("close")).toBe(1);
  }
});
