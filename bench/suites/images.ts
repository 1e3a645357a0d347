/** Images with tables: streamed into, served, opened and checked, beside QEMU's own way of doing the same. */
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Bar } from "../lib/bars.ts";
import { Pattern } from "../lib/pattern.ts";
import { BLOCKFERRY, NBDKIT, type NbdPeer, QEMU_NBD, serve } from "../lib/peers.ts";
import { createPatternFile, warm } from "../lib/prepare.ts";
import { runTool } from "../lib/process.ts";
import type { Suite, SuiteContext } from "../lib/suite.ts";
import {
  type BenchCase,
  type Contender,
  type Measurement,
  type Metric,
  type OpenSuite,
  SUBJECT,
} from "../lib/suite.ts";
import { verifyServer } from "../lib/verify.ts";
import {
  CHECK_BLOCKFERRY,
  CHECK_QEMU_IMG,
  type LargeFormat,
  type LargeImage,
  largeBytes,
  makeLarge,
  measureCheck,
  measureOpen,
} from "./images-large.ts";
import { costValues, type Disk, ioValues, observe, type Times } from "./nbd-cases.ts";
import { copyBlockStream } from "./stream-block-stream.ts";
import { copyBlockferry } from "./stream-copiers.ts";
import { measureCopy, type SourceDisk } from "./stream-copy.ts";
import { findTools, type Tools } from "./tools.ts";

const MIB = 2 ** 20;
const PATTERN = new Pattern("blockferry bench images");
/** All of it is read from. */
const SERVED_BYTES = 256 * MIB;
const CONVERT_TIMEOUT_MS = 120_000;

const RATE: Metric = { name: "bytesPerSecond", better: "higher", heading: "MiB/s", divisor: MIB };
const IOPS: Metric = { name: "iops", better: "higher", heading: "k op/s", divisor: 1000 };
const SECONDS: Metric = { name: "seconds", better: "lower", heading: "s" };
const RSS: Metric = { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB };
const STREAM_COST: readonly Metric[] = [
  SECONDS,
  { name: "destinationCpuPerGib", better: "lower", heading: "CPU s/GiB" },
  { name: "sourceCpuPerGib", better: "lower", heading: "source" },
  RSS,
];
const READ_COST: readonly Metric[] = [
  { name: "p50Us", better: "lower", heading: "p50 µs" },
  { name: "p99Us", better: "lower", heading: "p99 µs" },
  { name: "serverCores", better: "lower", heading: "server cores" },
  { name: "clientCores", better: "lower", heading: "client cores" },
  { name: "serverPeakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];

const atLeast = (metric: Metric, limit: number, against: string): Bar => ({
  ...{ kind: "ratio", bound: "atLeast" },
  ...{ metric: metric.name, limit, against },
});

export const imagesSuite: Suite = {
  name: "images",
  what: "qcow2 and QED: streamed into, served, opened and checked, beside QEMU",
  open,
};

type Missing = Tools["missing"];

/** A case, and what has to be there before it is run. */
interface PreparedCase extends BenchCase {
  readonly needs: string;
  prepare(): Promise<void>;
}

async function open(context: SuiteContext): Promise<OpenSuite> {
  const { versions, missing } = await findTools();
  const cases = [
    streamCase("qcow2", context, missing),
    streamCase("qed", context, missing),
    readCase(context, missing),
    ...largeCases("qcow2", context, missing),
    ...largeCases("qed", context, missing),
  ];
  const made = new Set<string>();
  for (const { name, needs, prepare } of cases) {
    if (!context.wants(name) || made.has(needs)) continue;
    made.add(needs);
    context.log(`preparing ${needs}`);
    await prepare();
  }
  // All files are in the run's folder, which goes with the run.
  return { cases, versions, [Symbol.asyncDispose]: async () => {} };
}

function streamCase(format: LargeFormat, context: SuiteContext, missing: Missing): PreparedCase {
  const { directory, quick, sizeBytes = (quick ? 256 : 1024) * MIB } = context;
  const path = join(directory, "source.raw");
  const disk: SourceDisk = {
    ...{ path, sizeBytes, directory, dataBytes: sizeBytes },
    data: [{ offset: 0, length: sizeBytes }],
  };
  return {
    name: `stream-into-${format}`,
    what: `${sizeBytes / MIB} MiB of data over loopback TCP from nbdkit into a new ${format} image, synced`,
    metrics: [RATE, ...STREAM_COST],
    bars: [atLeast(RATE, 3, "block-stream")],
    contenders: [
      {
        name: SUBJECT,
        ...missing(SUBJECT, "nbdkit", "qemu-img"),
        measure: () => measureCopy(copyBlockferry(format), NBDKIT, disk),
      },
      {
        name: "block-stream",
        ...missing("nbdkit", "qemu-storage-daemon", "qemu-img"),
        measure: () => measureCopy(copyBlockStream(format), NBDKIT, disk),
      },
    ],
    needs: `a disk with ${sizeBytes / MIB} MiB of data`,
    prepare: () => createPatternFile(path, sizeBytes, PATTERN),
  };
}

const QEMU_NBD_QCOW2: NbdPeer = {
  ...QEMU_NBD,
  command: (request, listen) => {
    const [program, ...words] = QEMU_NBD.command(request, listen);
    return [program, ...words.map((word) => (word === "--format=raw" ? "--format=qcow2" : word))];
  },
};

function readCase({ directory, quick }: SuiteContext, missing: Missing): PreparedCase {
  const [raw, path] = [join(directory, "served.raw"), join(directory, "served.qcow2")];
  const whole = { offset: 0, length: SERVED_BYTES };
  const disk: Disk = {
    ...{ path, sizeBytes: SERVED_BYTES, original: PATTERN, directory },
    ...{ hot: whole, hottest: whole, written: whole, besideWritten: [], cached: whole, cold: whole },
  };
  const times: Times = quick ? { rampMs: 200, measureMs: 800 } : { rampMs: 1000, measureMs: 4000 };
  const contender = (peer: NbdPeer): Contender => ({
    name: peer.name,
    ...missing(peer.name, "qemu-img", "fio"),
    measure: () => measureReads(peer, disk, times),
  });
  return {
    name: "randread-4k-qd32-qcow2",
    what: `random reads of 4 KiB within ${SERVED_BYTES / MIB} MiB of an allocated qcow2 image, 32 in flight`,
    metrics: [IOPS, ...READ_COST],
    bars: [atLeast(IOPS, 1.5, "qemu-nbd")],
    contenders: [contender(BLOCKFERRY), contender(QEMU_NBD_QCOW2)],
    needs: "an allocated qcow2 image",
    prepare: async () => {
      await createPatternFile(raw, SERVED_BYTES, PATTERN);
      const convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path] as const;
      await runTool({ argv: [...convert], timeoutMs: CONVERT_TIMEOUT_MS });
      await rm(raw);
    },
  };
}

async function measureReads(peer: NbdPeer, disk: Disk, times: Times): Promise<Measurement> {
  await warm(disk.path, { offset: 0, length: (await stat(disk.path)).size });
  await using server = await serve(peer, { image: disk.path, readOnly: true, directory: disk.directory });
  const job = {
    name: "read",
    rw: "randread",
    blockBytes: 4096,
    depth: 32,
    offset: 0,
    sizeBytes: disk.sizeBytes,
  } as const;
  const measured = await observe(server, disk, times, [job]);
  await verifyServer(server.socketPath, { ...disk.hot, sizeBytes: disk.sizeBytes }, disk.original);
  await server.stop();
  const [read] = measured.jobs;
  return { values: { ...ioValues(read), ...costValues(measured) } };
}

/** A disk of 1 TiB, all of which has a place. */
function largeCases(format: LargeFormat, { directory, quick }: SuiteContext, missing: Missing): PreparedCase[] {
  const sizeBytes = largeBytes(quick);
  const image: LargeImage = { path: join(directory, `large.${format}`), format, sizeBytes };
  const what = `a ${format} image of ${sizeBytes / 2 ** 30} GiB, every cluster of which has a place`;
  const shared = { needs: what, prepare: () => makeLarge(image) };
  return [
    {
      ...shared,
      name: `open-${format}`,
      what: `${what}: opened for writing, and read from in the middle`,
      metrics: [
        { name: "openAndReadMs", better: "lower", heading: "open and read ms" },
        { name: "openMs", better: "lower", heading: "open ms" },
      ],
      bars: [{ kind: "value", metric: "openAndReadMs", bound: "atMost", limit: 50 }],
      contenders: [{ name: SUBJECT, ...missing("qemu-img"), measure: () => measureOpen(image) }],
    },
    {
      ...shared,
      name: `check-${format}`,
      what: `${what}: all of its tables walked`,
      metrics: [SECONDS, { name: "cpuSeconds", better: "lower", heading: "CPU s" }, RSS],
      bars: [],
      contenders: [CHECK_BLOCKFERRY, CHECK_QEMU_IMG].map((checker) => ({
        name: checker.name,
        ...missing(checker.name, "qemu-img"),
        measure: () => measureCheck(checker, image),
      })),
    },
  ];
}
