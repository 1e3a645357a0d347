/**
 * Images of a disk of 1 TiB, every cluster of which has a place: tables of some 100 MiB over a file that is one hole. And
 * what is asked of them: to be opened, to be checked.
 */
import { open } from "node:fs/promises";
import { performance } from "node:perf_hooks";
import { openImage } from "../../src/image/format.ts";
import { createRealEnv } from "../../src/os/real-env.ts";
import { BUILT, LAUNCHER } from "../lib/peers.ts";
import { runTool } from "../lib/process.ts";
import type { Measurement } from "../lib/suite.ts";

const TIB = 2 ** 40;
const CLUSTER_BYTES = 65_536;
const ENTRY_BYTES = 8;
/** Of QED, by default. */
const TABLE_CLUSTERS = 4;
const MAKE_TIMEOUT_MS = 300_000;
const CHECK_TIMEOUT_MS = 300_000;

export type LargeFormat = "qcow2" | "qed";

export interface LargeImage {
  readonly path: string;
  readonly format: LargeFormat;
  readonly sizeBytes: number;
}

export async function makeLarge({ path, format, sizeBytes }: LargeImage): Promise<void> {
  const options = format === "qcow2" ? ["-o", "preallocation=metadata"] : [];
  const argv = ["qemu-img", "create", "-q", "-f", format, ...options, path, `${sizeBytes}`] as const;
  await runTool({ argv: [...argv], timeoutMs: MAKE_TIMEOUT_MS });
  if (format === "qed") await fillTables(path, sizeBytes);
}

/** Nobody offers to allocate all of a QED image: header, L1 table, then each L2 table before the clusters it points to. */
async function fillTables(path: string, sizeBytes: number): Promise<void> {
  const tableBytes = TABLE_CLUSTERS * CLUSTER_BYTES;
  const entries = tableBytes / ENTRY_BYTES;
  const clusters = sizeBytes / CLUSTER_BYTES;
  const l1 = Buffer.alloc(tableBytes);
  await using file = await open(path, "r+");
  let at = CLUSTER_BYTES + tableBytes;
  for (let first = 0; first < clusters; first += entries) {
    const l2 = Buffer.alloc(tableBytes);
    const count = Math.min(entries, clusters - first);
    const data = at + tableBytes;
    for (let i = 0; i < count; i++) l2.writeBigUInt64LE(BigInt(data + i * CLUSTER_BYTES), i * ENTRY_BYTES);
    await file.write(l2, 0, tableBytes, at);
    l1.writeBigUInt64LE(BigInt(at), (first / entries) * ENTRY_BYTES);
    at = data + count * CLUSTER_BYTES;
  }
  await file.write(l1, 0, tableBytes, CLUSTER_BYTES);
  await file.truncate(at);
  await file.sync();
}

/** In this process: starting one takes longer than the rest. The first read loads what it needs of the tables. */
export async function measureOpen({ path, sizeBytes }: LargeImage): Promise<Measurement> {
  const env = createRealEnv();
  const startedMs = performance.now();
  const { image } = await openImage(env, { path, readOnly: false });
  const openedMs = performance.now();
  await using _ = image;
  if (image.sizeBytes !== sizeBytes) throw new Error(`${path} has ${image.sizeBytes} bytes`);
  const bytes = Buffer.alloc(4096, 1);
  await image.read(Math.floor(sizeBytes / 2), bytes);
  const readMs = performance.now();
  if (bytes.some((byte) => byte !== 0)) throw new Error("a hole was read as something else");
  return { values: { openMs: openedMs - startedMs, openAndReadMs: readMs - startedMs } };
}

export interface Checker {
  readonly name: string;
  argv(image: LargeImage): readonly [string, ...string[]];
  readonly environment?: Readonly<Record<string, string>>;
}

export const CHECK_BLOCKFERRY: Checker = {
  name: "blockferry",
  argv: ({ path }) => [LAUNCHER, "image", "check", "--json", path],
  environment: BUILT,
};

/** Status 3 is lost space, which it sees in every large QED image, its own as well. */
const LOST_SPACE_IS_FINE = '"$@"; status=$?; [ $status -eq 3 ] && exit 0; exit $status';

export const CHECK_QEMU_IMG: Checker = {
  name: "qemu-img",
  argv: ({ path, format }) => {
    const check = ["qemu-img", "check", "-f", format, "--output=json", path];
    return ["/bin/sh", "-c", LOST_SPACE_IS_FINE, "sh", ...check];
  },
};

/** The walk is the one that runs beside a guest's work. Its tables are in the page cache, or not, for both alike. */
export async function measureCheck({ argv, environment = {} }: Checker, image: LargeImage): Promise<Measurement> {
  const run = await runTool({ argv: argv(image), environment, timeoutMs: CHECK_TIMEOUT_MS });
  const report = JSON.parse(run.stdout) as Record<string, unknown>;
  const clusters = image.sizeBytes / CLUSTER_BYTES;
  if (report["allocated-clusters"] !== clusters || report["check-errors"] !== 0) {
    throw new Error(`the check did not see ${clusters} clusters: ${run.stdout}`);
  }
  return {
    values: { seconds: run.wallMs / 1000, cpuSeconds: run.cpuSeconds, peakRssBytes: run.peakRssBytes },
  };
}

export function largeBytes(quick: boolean): number {
  return quick ? TIB / 16 : TIB;
}
