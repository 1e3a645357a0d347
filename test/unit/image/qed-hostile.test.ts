/** Headers and tables that somebody has damaged, or made to do damage: a clean error, soon, and in little memory. */
import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { ImageOpenError } from "../../../src/image/errors.ts";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import { openQed } from "../../../src/image/qed/open.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { damaged, handMadeQed } from "../../support/qed-bytes.ts";
import { counts, itSeeded } from "../../support/seed.ts";

const PATH = "/vm/hostile.qed";
const READ_BYTES_MAX = 1024 * 1024;
const CLUSTERS = new Map<number, number | "zero">([
  [0, 1],
  [3, 2],
  [4, "zero"],
  [5, 3],
  [9, 4],
]);
const made = handMadeQed({ sizeBytes: 64 * 4096, clusters: CLUSTERS });
/** Of processor time, for all that is done with one image; opening is a small part of it. */
const SLOW_MS = 400;

type Outcome = "refused" | "corrupt" | "served";

/** Unlike time on the clock, it does not depend on what else this machine does. */
function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Everything that can be asked of an image. Rejects only for what is a defect. */
async function exercise(bytes: Buffer, size = bytes.length): Promise<Outcome> {
  const files = new FakeFiles();
  files.add(PATH, size).put(0, bytes);
  try {
    await use(files, true);
    await checkQed({ files }, { path: PATH });
    await checkQed({ files }, { path: PATH, repair: true });
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
  await using image = await openQed({ files }, { path: PATH, readOnly, backing: "absent" });
  const { sizeBytes } = image;
  if (sizeBytes === 0) return;
  const into = Buffer.alloc(Math.min(READ_BYTES_MAX, sizeBytes));
  await image.read(0, into);
  await image.read(sizeBytes - 512, into.subarray(0, 512));
  await image.extents(0, sizeBytes, 1000);
  if (readOnly) return;
  for (const offset of [0, 4096, Math.floor(sizeBytes / 1024) * 512, sizeBytes - 512]) {
    const bytes = pattern(offset, 512, 9);
    await image.write(offset, bytes);
    const found = Buffer.alloc(512);
    await image.read(offset, found);
    expect(found.equals(bytes)).toBe(true);
  }
  // As much as one NBD request can ask for.
  await image.writeZeroes(0, Math.min(sizeBytes, 2 ** 32 - 512));
}

itSeeded(
  "damaged headers and tables never do more than fail",
  async (rng) => {
    const outcomes = { refused: 0, corrupt: 0, served: 0 };
    const count = counts({ local: 800, ci: 20_000 });
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
  readonly clusterBytes: number;
  readonly tableClusters: number;
  readonly sizeBytes: bigint;
  readonly fileBytes: number;
}

const MIB = 2 ** 20;
/** The most that the fields can ask for, in files that are long enough for them and hold nothing. */
const LARGEST: Record<string, HostileHeader> = {
  "the largest clusters and tables": {
    clusterBytes: 64 * MIB,
    tableClusters: 16,
    sizeBytes: 2n ** 53n - 512n,
    fileBytes: 2 ** 31,
  },
  "the longest L1 table": { clusterBytes: 65_536, tableClusters: 16, sizeBytes: 2n ** 50n, fileBytes: 2 * MIB },
  "an L1 table of 2 MiB": { clusterBytes: 131_072, tableClusters: 16, sizeBytes: 2n ** 53n - 512n, fileBytes: 4 * MIB },
  "a file of 4 PiB": { clusterBytes: 4096, tableClusters: 2, sizeBytes: 4096n * 1024n * 1024n, fileBytes: 2 ** 52 },
};

for (const [name, { clusterBytes, tableClusters, sizeBytes, fileBytes }] of Object.entries(LARGEST)) {
  test(`${name}: opened, read, written and mapped in bounded time and memory`, async () => {
    const header = handMadeQed({ sizeBytes: 0, clusterBytes: 4096 }).bytes.subarray(0, 64);
    header.writeUInt32LE(clusterBytes, 4);
    header.writeUInt32LE(tableClusters, 8);
    header.writeBigUInt64LE(BigInt(clusterBytes), 40);
    header.writeBigUInt64LE(sizeBytes, 48);
    const before = process.memoryUsage();
    const startedMs = processorMs();
    expect(await exercise(header, fileBytes)).toBe("served");
    const after = process.memoryUsage();
    const tookMs = processorMs() - startedMs;
    const tookBytes = after.rss - before.rss;
    console.info(`${name}: ${tookMs.toFixed(1)} ms, ${(tookBytes / MIB).toFixed(1)} MiB`);
    expect(tookBytes).toBeLessThan(64 * MIB);
    expect(tookMs).toBeLessThan(SLOW_MS);
  });
}

test("every field of the header has a refusal that names it", async () => {
  const cases: [field: string, at: number, value: bigint, code: string][] = [
    ["cluster_size", 4, 4097n, "corrupt"],
    ["cluster_size", 4, 2n ** 27n, "corrupt"],
    ["cluster_size", 4, 0n, "corrupt"],
    ["table_size", 8, 3n, "corrupt"],
    ["table_size", 8, 32n, "corrupt"],
    ["header_size", 12, 0n, "corrupt"],
    ["header_size", 12, 2n ** 32n - 1n, "corrupt"],
    ["features", 16, 8n, "unsupported-format"],
    ["l1_table_offset", 40, 0n, "corrupt"],
    ["l1_table_offset", 40, 4097n, "corrupt"],
    ["l1_table_offset", 40, 2n ** 63n, "corrupt"],
    ["image_size", 48, 511n, "corrupt"],
    ["image_size", 48, 2n ** 63n, "corrupt"],
  ];
  for (const [field, at, value, code] of cases) {
    const bytes = Buffer.from(made.bytes);
    if (at < 16) bytes.writeUInt32LE(Number(value), at);
    else bytes.writeBigUInt64LE(value, at);
    const files = new FakeFiles();
    files.add(PATH, bytes);
    const attempt = openQed({ files }, { path: PATH, readOnly: true });
    await expect(attempt, field).rejects.toMatchObject({
      name: "ImageOpenError",
      code,
      why: expect.stringContaining(field),
    });
    expect(files.count("close")).toBe(1);
  }
});
