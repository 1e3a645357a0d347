/**
 * A disk comes over a TCP connection into a new local file: `blockferry clone` and those who do that today, from one and
 * the same server, all on the same two ends of a loopback connection, all with a sync at the end.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Bar } from "../lib/bars.ts";
import { type Compiled, compileC } from "../lib/c-program.ts";
import { Pattern } from "../lib/pattern.ts";
import { BLOCKFERRY_BUILT, buildBlockferry, NBDKIT, type NbdPeer, type Presence, presence } from "../lib/peers.ts";
import { createPatternFile, createSparseFile, type Range } from "../lib/prepare.ts";
import {
  type BenchCase,
  type Contender,
  type Metric,
  type OpenSuite,
  SUBJECT,
  type Suite,
  type SuiteContext,
} from "../lib/suite.ts";
import { COPY_BLOCK_STREAM } from "./stream-block-stream.ts";
import {
  COPY_BLOCKFERRY,
  COPY_NBDCOPY,
  COPY_NBDCOPY_ONE,
  COPY_QEMU_IMG,
  type Copier,
  copyLoop,
} from "./stream-copiers.ts";
import { measureCopy, type SourceDisk } from "./stream-copy.ts";
import { measureFlushes } from "./stream-flush.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const LIMIT_PROGRAM = fileURLToPath(new URL("../limit/copy-loop.c", import.meta.url));
const PATTERN = new Pattern("blockferry bench source");

const SPARSE_BYTES = 100 * GIB;
const SPARSE_PIECES = 80;
const SPARSE_PIECE_BYTES = 64 << 10;

const RATE: Metric = { name: "bytesPerSecond", better: "higher", heading: "MiB/s", divisor: MIB };
const SECONDS: Metric = { name: "seconds", better: "lower", heading: "s" };
const SYNC: Metric = { name: "finalSyncMs", better: "lower", heading: "last sync ms" };
const COST: readonly Metric[] = [
  { name: "cpuPerGib", better: "lower", heading: "CPU s/GiB" },
  { name: "sourceCpuPerGib", better: "lower", heading: "source" },
  { name: "destinationCpuPerGib", better: "lower", heading: "destination" },
  { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];
const SPARSE_COST: readonly Metric[] = [
  { name: "sourceCpuSeconds", better: "lower", heading: "source CPU s" },
  { name: "destinationCpuSeconds", better: "lower", heading: "destination CPU s" },
  { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];
const SLOWDOWN: Metric = { name: "slowdown", better: "lower", heading: "slowdown" };
const FLUSH_METRICS: readonly [Metric, ...Metric[]] = [
  SLOWDOWN,
  { name: "flushP99Us", better: "lower", heading: "p99 µs" },
  { name: "idleFlushP99Us", better: "lower", heading: "idle p99 µs" },
  { name: "flushP50Us", better: "lower", heading: "p50 µs" },
  { name: "idleFlushP50Us", better: "lower", heading: "idle p50 µs" },
  { name: "flushMaxUs", better: "lower", heading: "max µs" },
  { name: "writeP99Us", better: "lower", heading: "write p99 µs" },
  { name: "flushes", better: "higher", heading: "flushes" },
  RATE,
  { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];

const atLeast = (limit: number, against: string): Bar => ({
  ...{ kind: "ratio", bound: "atLeast" },
  ...{ metric: RATE.name, limit, against },
});
const COPY_BARS: readonly Bar[] = [atLeast(3, "block-stream"), atLeast(1.5, "nbdcopy"), atLeast(0.85, "c-loop")];

export const streamSuite: Suite = {
  name: "stream",
  what: "a disk over TCP into a local file: blockferry clone, nbdcopy, QEMU's block-stream, a bare C loop",
  open,
};

async function open(context: SuiteContext): Promise<OpenSuite> {
  const tools = await findTools(context.directory);
  const cases = [
    copyCase({ name: "copy-from-nbdkit", server: NBDKIT }, fullDisk(context), tools),
    copyCase({ name: "copy-from-blockferry", server: BLOCKFERRY_BUILT }, fullDisk(context), tools),
    sparseCase(sparseDisk(context), tools),
    flushCase(flushDisk(context), tools, context.quick),
  ];
  const made = new Set<string>();
  for (const { disk, name } of cases) {
    if (!context.wants(name) || made.has(disk.path)) continue;
    made.add(disk.path);
    context.log(`writing a disk with ${disk.dataBytes / MIB} MiB of data`);
    if (disk.dataBytes === disk.sizeBytes) await createPatternFile(disk.path, disk.sizeBytes, PATTERN);
    else await createSparseFile(disk.path, disk.sizeBytes, disk.data, PATTERN);
  }
  return {
    cases,
    versions: tools.versions,
    // All files are in the run's folder, which goes with the run.
    [Symbol.asyncDispose]: async () => {},
  };
}

type DiskCase = BenchCase & { readonly disk: SourceDisk };

function copyCase(
  { name, server }: { name: string; server: NbdPeer },
  disk: SourceDisk,
  { missing, limit }: Tools,
): DiskCase {
  const from = `from ${server.name}`;
  const contender = (copier: Copier, ...needed: readonly string[]): Contender => ({
    name: copier.name,
    ...missing(server.name, ...needed),
    measure: () => measureCopy(copier, server, disk),
  });
  return {
    ...{ name, disk },
    what: `${disk.sizeBytes / MIB} MiB of data over loopback TCP ${from} into a new sparse file, synced`,
    metrics: [RATE, SECONDS, SYNC, ...COST],
    bars: COPY_BARS,
    contenders: [
      contender(COPY_BLOCKFERRY, SUBJECT),
      contender(COPY_NBDCOPY, "nbdcopy"),
      contender(COPY_NBDCOPY_ONE, "nbdcopy"),
      contender(COPY_BLOCK_STREAM, "qemu-storage-daemon", "qemu-img"),
      contender(COPY_QEMU_IMG, "qemu-img"),
      "path" in limit ? contender(copyLoop(limit.path)) : { ...contender(copyLoop("")), missing: limit.missing },
    ],
  };
}

function sparseCase(disk: SourceDisk, { missing }: Tools): DiskCase {
  // Full verification of what is nearly all holes is qemu-img's job, whoever made the copy.
  const contender = (copier: Copier, ...needed: readonly string[]): Contender => ({
    name: copier.name,
    ...missing("nbdkit", "qemu-img", ...needed),
    measure: () => measureCopy(copier, NBDKIT, disk),
  });
  return {
    ...{ name: "sparse", disk },
    what: `${disk.sizeBytes / GIB} GiB with ${disk.dataBytes / MIB} MiB of data in ${disk.data.length} places, from nbdkit`,
    metrics: [SECONDS, SYNC, ...SPARSE_COST],
    bars: [{ kind: "value", metric: SECONDS.name, bound: "atMost", limit: 2 }],
    contenders: [contender(COPY_BLOCKFERRY, SUBJECT), contender(COPY_NBDCOPY, "nbdcopy"), contender(COPY_QEMU_IMG)],
  };
}

function flushCase(disk: SourceDisk, { missing }: Tools, quick: boolean): DiskCase {
  return {
    ...{ name: "flush-while-hydrating", disk },
    what: `a guest's flush after 4 KiB, 50 a second, while ${disk.sizeBytes / MIB} MiB come from nbdkit at full speed, and after`,
    metrics: FLUSH_METRICS,
    bars: [{ kind: "value", metric: SLOWDOWN.name, bound: "atMost", limit: 3 }],
    contenders: [
      {
        name: SUBJECT,
        ...missing(SUBJECT, "nbdkit"),
        measure: () => measureFlushes(disk, PATTERN, { idleMs: quick ? 1500 : 5000 }),
      },
    ],
  };
}

function fullDisk({ directory, quick, sizeBytes = (quick ? 256 : 1024) * MIB }: SuiteContext): SourceDisk {
  return allData({ directory, path: join(directory, "source.raw"), sizeBytes });
}

/** Long enough for a 99th percentile of flushes that come every 20 ms. */
function flushDisk({ directory, quick, sizeBytes = (quick ? 512 : 2048) * MIB }: SuiteContext): SourceDisk {
  return allData({ directory, path: join(directory, "long-source.raw"), sizeBytes: 2 * sizeBytes });
}

function allData(disk: Pick<SourceDisk, "path" | "sizeBytes" | "directory">): SourceDisk {
  return { ...disk, data: [{ offset: 0, length: disk.sizeBytes }], dataBytes: disk.sizeBytes };
}

/** Pieces at uneven distances, each at a whole 4 KiB, the first and the last block of the disk among them. */
function sparseDisk({ directory }: SuiteContext): SourceDisk {
  const last = SPARSE_BYTES - SPARSE_PIECE_BYTES;
  const data: Range[] = Array.from({ length: SPARSE_PIECES }, (_, index) => {
    const place = (index / (SPARSE_PIECES - 1)) ** 1.5 * last;
    return { offset: Math.floor(place / 4096) * 4096, length: SPARSE_PIECE_BYTES };
  });
  const dataBytes = SPARSE_PIECES * SPARSE_PIECE_BYTES;
  return { directory, path: join(directory, "sparse-source.raw"), sizeBytes: SPARSE_BYTES, data, dataBytes };
}

interface Tools {
  readonly versions: Readonly<Record<string, string>>;
  readonly limit: Compiled;
  /** The first of the named programs that is missing, if any, as a contender says it. */
  missing(...names: readonly string[]): { missing: string } | undefined;
}

async function findTools(folder: string): Promise<Tools> {
  const commands: readonly (readonly [name: string, hint: string, command: readonly [string, ...string[]]])[] = [
    ["nbdkit", NBDKIT.hint, NBDKIT.versionCommand],
    ["nbdcopy", NBDKIT.hint, ["nbdcopy", "--version"]],
    ["qemu-img", NBDKIT.hint, ["qemu-img", "--version"]],
    ["qemu-storage-daemon", NBDKIT.hint, ["qemu-storage-daemon", "--version"]],
  ];
  const found = new Map<string, Presence>([[SUBJECT, await buildBlockferry()]]);
  for (const [name, hint, command] of commands) found.set(name, await presence(command, hint));
  const limit = await compileC(LIMIT_PROGRAM, folder);
  const versions = [...found].flatMap(([name, state]) => ("version" in state ? [[name, state.version] as const] : []));
  return {
    versions: { ...Object.fromEntries(versions), ...("compiler" in limit && { cc: limit.compiler }) },
    limit,
    missing: (...names) => {
      const absent = names.map((name) => found.get(name)).find((state) => state !== undefined && "missing" in state);
      return absent !== undefined && "missing" in absent ? { missing: absent.missing } : undefined;
    },
  };
}
