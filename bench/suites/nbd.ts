/**
 * One disk in the page cache, served over NBD on a unix socket by us, by nbdkit and by qemu-nbd, and the same client
 * for all. Server and client share the machine's cores, for each of them alike.
 */
import { join } from "node:path";
import type { Bar } from "../lib/bars.ts";
import { Pattern } from "../lib/pattern.ts";
import { BLOCKFERRY, NBDKIT, type NbdPeer, presence, QEMU_NBD } from "../lib/peers.ts";
import { createPatternFile, type Range } from "../lib/prepare.ts";
import type { BenchCase, Contender, Measurement, Metric, OpenSuite, Round, Suite, SuiteContext } from "../lib/suite.ts";
import { type Disk, measureReads, measureWrites, type ReadShape, type Times } from "./nbd-cases.ts";
import { measureReadsBesideColdReader } from "./nbd-cold.ts";

const MIB = 2 ** 20;
const PEERS: readonly NbdPeer[] = [BLOCKFERRY, NBDKIT, QEMU_NBD];

const IOPS: Metric = { name: "iops", better: "higher", heading: "k op/s", divisor: 1000 };
const RATE: Metric = { name: "bytesPerSecond", better: "higher", heading: "MiB/s", divisor: MIB };
const P50: Metric = { name: "p50Us", better: "lower", heading: "p50 µs" };
const P99: Metric = { name: "p99Us", better: "lower", heading: "p99 µs" };
const SLOWDOWN: Metric = { name: "slowdown", better: "lower", heading: "slowdown" };
const COST: readonly Metric[] = [
  { name: "serverCores", better: "lower", heading: "server cores" },
  { name: "clientCores", better: "lower", heading: "client cores" },
  { name: "serverPeakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];
const LOOP_DELAY: Metric = { name: "loopDelayP99Ms", better: "lower", heading: "loop p99 ms" };

interface Spec extends Omit<BenchCase, "contenders"> {
  measure(peer: NbdPeer, disk: Disk, times: Times): Promise<Measurement>;
}

const reads = (shape: ReadShape) => (peer: NbdPeer, disk: Disk, times: Times) => measureReads(peer, disk, times, shape);
const atLeast = (metric: Metric, limit: number, against: string): Bar => ({
  ...{ kind: "ratio", bound: "atLeast" },
  ...{ metric: metric.name, limit, against },
});

const SPECS: readonly Spec[] = [
  {
    name: "randread-4k-qd32",
    what: "random reads of 4 KiB within 256 MiB, 32 in flight",
    metrics: [IOPS, P50, P99, ...COST],
    bars: [atLeast(IOPS, 1.1, "nbdkit"), atLeast(IOPS, 2, "qemu-nbd")],
    measure: reads({ rw: "randread", blockBytes: 4096, depth: 32 }),
  },
  {
    name: "randread-4k-qd1",
    what: "random reads of 4 KiB within 64 MiB, one at a time",
    metrics: [P50, P99, IOPS, ...COST],
    bars: [{ kind: "ratio", metric: P50.name, bound: "atMost", limit: 1.3, against: "nbdkit" }],
    measure: reads({ rw: "randread", blockBytes: 4096, depth: 1, within: "hottest" }),
  },
  {
    name: "randwrite-4k-qd32-flush",
    what: "random writes of 4 KiB within 16 MiB, 32 in flight, while another connection flushes ten times a second",
    metrics: [IOPS, P50, P99, { name: "flushP50Us", better: "lower", heading: "flush p50 µs" }, ...COST, LOOP_DELAY],
    bars: [atLeast(IOPS, 1, "nbdkit"), atLeast(IOPS, 2, "qemu-nbd")],
    measure: measureWrites,
  },
  {
    name: "read-256k-qd8",
    what: "sequential reads of 256 KiB, 8 in flight",
    metrics: [RATE, P50, P99, ...COST],
    bars: [atLeast(RATE, 1, "nbdkit")],
    measure: reads({ rw: "read", blockBytes: 256 << 10, depth: 8 }),
  },
  {
    name: "cold-neighbour",
    what: "1000 cached reads of 4 KiB a second, while another client reads what is not cached, 128 MiB/s",
    metrics: [
      P99,
      { name: "quietP99Us", better: "lower", heading: "quiet p99 µs" },
      SLOWDOWN,
      { name: "p999Us", better: "lower", heading: "p99.9 µs" },
      { name: "maxUs", better: "lower", heading: "max µs" },
      { name: "coldBytesPerSecond", better: "higher", heading: "cold MiB/s", divisor: MIB },
      ...COST,
    ],
    // A server that waited for the disk where it also serves the cached client would be slowed down a hundredfold.
    bars: [{ kind: "value", metric: SLOWDOWN.name, bound: "atMost", limit: 5 }],
    measure: measureReadsBesideColdReader,
  },
];

export const nbdSuite: Suite = {
  name: "nbd",
  what: "a disk in the page cache over NBD on a unix socket: blockferry serve, nbdkit file, qemu-nbd",
  open,
};

async function open(context: SuiteContext): Promise<OpenSuite> {
  const wanted = SPECS.some(({ name }) => context.wants(name));
  const fio = await presence(["fio", "--version"], "run scripts/install-peers");
  const found = await Promise.all(PEERS.map((peer) => presence(peer.versionCommand, peer.hint)));
  const disk = layout(context, join(context.directory, "disk.raw"));
  if (wanted && "version" in fio) {
    context.log(`writing a disk of ${disk.sizeBytes / MIB} MiB`);
    await createPatternFile(disk.path, disk.sizeBytes, disk.original);
  }
  const contenders = ({ measure }: Spec): Contender[] =>
    PEERS.map((peer, index) => {
      const [state] = [fio, found[index]].filter((tool) => tool !== undefined && "missing" in tool);
      return {
        name: peer.name,
        ...(state !== undefined && "missing" in state && { missing: state.missing }),
        measure: (round) => measure(peer, disk, times(context, round)),
      };
    });
  const versions = [["fio", fio] as const, ...PEERS.map(({ name }, index) => [name, found[index]] as const)];
  return {
    cases: SPECS.map((spec) => ({ ...spec, contenders: contenders(spec) })),
    versions: Object.fromEntries(
      versions.flatMap(([name, state]) => (state && "version" in state ? [[name, state.version]] : [])),
    ),
    // The disk is in the run's folder, which goes with the run.
    [Symbol.asyncDispose]: async () => {},
  };
}

/**
 * `cached` and `cold` are apart by more than the kernel reads ahead; `written` is read by nobody else. The slower a region is
 * read, the smaller it is: each of its pages is used every second or two, before a kernel takes it for idle.
 */
function layout(context: SuiteContext, path: string): Disk {
  const sizeBytes = (context.quick ? 512 : 1024) * MIB;
  const written: Range = { offset: sizeBytes - 32 * MIB, length: 16 * MIB };
  const before: Range = { offset: written.offset - 64 * MIB, length: 64 * MIB };
  const after: Range = { offset: written.offset + written.length, length: 15 * MIB };
  const hot: Range = { offset: 0, length: 256 * MIB };
  const hottest: Range = { offset: 0, length: 64 * MIB };
  const cached: Range = { offset: 0, length: 8 * MIB };
  const coldOffset = 128 * MIB;
  const cold: Range = { offset: coldOffset, length: written.offset - coldOffset };
  return {
    ...{ path, sizeBytes, hot, written, besideWritten: [before, after], hottest, cached, cold },
    original: new Pattern("blockferry bench disk"),
    directory: context.directory,
  };
}

function times({ quick }: SuiteContext, { warmUp }: Round): Times {
  if (warmUp) return { rampMs: 100, measureMs: 400, warmUp };
  return quick ? { rampMs: 300, measureMs: 1000 } : { rampMs: 1000, measureMs: 4000 };
}
