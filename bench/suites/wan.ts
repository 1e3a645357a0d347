/**
 * A disk comes over a line of 1 Gb/s with a round-trip time: how much of the line `blockferry clone` uses, how long those
 * wait who read what is not here yet, and what a guest gets that reads ahead of the copy. The line is `tools/line`, a
 * process on the same machine, which uses up to half a core.
 */
import { join } from "node:path";
import type { Bar } from "../lib/bars.ts";
import { Pattern } from "../lib/pattern.ts";
import { createPatternFile } from "../lib/prepare.ts";
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
import { COPY_NBDCOPY } from "./stream-copiers.ts";
import type { SourceDisk } from "./stream-copy.ts";
import { findTools, type Tools } from "./tools.ts";
import { measureClone, measureOther, measurePlain, type WanCopy } from "./wan-copy.ts";
import { measureFollowing, STEPS } from "./wan-follow.ts";
import { measureRandom, measureSequential } from "./wan-guest.ts";
import { LAZY_NBDKIT, LAZY_QEMU, type LazyServer, lazyClone } from "./wan-lazy.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const PATTERN = new Pattern("blockferry bench wan");
const PLAIN = "plain-tcp";
/** As much as 64 requests of 256 KiB, which is what nbdcopy has under way on each connection. */
const FIXED_WINDOW = "16M";
/** Far more than any sample brings, so that nearly all of it is missing to the end. */
const ENDLESS_BYTES = 64 * GIB;
/** At 50 ms block-stream needs a second for 9 MiB. */
const SLOW_COPIER_PART = 1 / 8;
const WARM_UP_BYTES = 16 * MIB;
const DEPTH = 16;

/** The share of a plain TCP connection's rate that has to be reached. */
const COPY_CASES = [
  { rttMs: 1, share: 0.95 },
  { rttMs: 10, share: 0.95 },
  { rttMs: 50, share: 0.9 },
] as const;

const RATE: Metric = { name: "bytesPerSecond", better: "higher", heading: "MiB/s", divisor: MIB };
const RSS: Metric = { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB };
const LATENESS: Metric = { name: "lineLatenessP99Ms", better: "lower", heading: "line late p99 ms" };
const LINE_USE: Metric = { name: "lineUse", better: "higher", heading: "line use" };
const COPY_METRICS: readonly [Metric, ...Metric[]] = [
  RATE,
  { name: "seconds", better: "lower", heading: "s" },
  { name: "beyondP99Ms", better: "lower", heading: "read p99 beyond RTT ms" },
  { name: "readP50Ms", better: "lower", heading: "read p50 ms" },
  { name: "readP99Ms", better: "lower", heading: "p99 ms" },
  { name: "readMaxMs", better: "lower", heading: "max ms" },
  { name: "reads", better: "higher", heading: "reads" },
  LATENESS,
  { name: "lineCores", better: "lower", heading: "line cores" },
  RSS,
];

export const wanSuite: Suite = {
  name: "wan",
  what: "a disk over a line of 1 Gb/s and 1, 10 or 50 ms: throughput, waiting readers, sequential and random guests",
  open,
};

async function open(context: SuiteContext): Promise<OpenSuite> {
  const tools = await findTools();
  const disks = disksOf(context);
  const cases = [
    ...COPY_CASES.map((settings) => copyCase(settings, disks, tools)),
    sequentialCase(context, tools),
    randomCase(context, tools),
    followCase(context, tools),
  ];
  if (COPY_CASES.some(({ rttMs }) => context.wants(copyName(rttMs)))) {
    for (const disk of Object.values(disks)) {
      context.log(`writing a disk of ${disk.sizeBytes / MIB} MiB`);
      await createPatternFile(disk.path, disk.sizeBytes, PATTERN);
    }
  }
  // All files are in the run's folder, which goes with the run.
  return { cases, versions: tools.versions, [Symbol.asyncDispose]: async () => {} };
}

interface Disks {
  readonly whole: SourceDisk;
  readonly part: SourceDisk;
  readonly warmUp: SourceDisk;
}

function disksOf({ directory, quick, sizeBytes = (quick ? 64 : 1024) * MIB }: SuiteContext): Disks {
  const disk = (name: string, bytes: number): SourceDisk => ({
    ...{ directory, path: join(directory, `${name}.raw`), sizeBytes: bytes },
    ...{ data: [{ offset: 0, length: bytes }], dataBytes: bytes },
  });
  const part = Math.max(WARM_UP_BYTES, Math.floor((sizeBytes * SLOW_COPIER_PART) / MIB) * MIB);
  return { whole: disk("whole", sizeBytes), part: disk("part", part), warmUp: disk("warm-up", WARM_UP_BYTES) };
}

function copyName(rttMs: number): string {
  return `copy-${rttMs}ms`;
}

function copyCase({ rttMs, share }: { rttMs: number; share: number }, disks: Disks, { missing }: Tools): BenchCase {
  const contender = (
    name: string,
    measure: (copy: WanCopy) => ReturnType<Contender["measure"]>,
    { needs, disk = disks.whole }: { needs: readonly string[]; disk?: SourceDisk },
  ): Contender => ({
    ...{ name, ...missing(...needs) },
    measure: ({ warmUp }) => measure({ disk: warmUp ? disks.warmUp : disk, pattern: PATTERN, rttMs }),
  });
  const clone = ["nbdkit", SUBJECT];
  return {
    name: copyName(rttMs),
    what:
      `${disks.whole.sizeBytes / MIB} MiB over 1 Gb/s and ${rttMs} ms into a new file, with four who read 4 KiB at random ` +
      `meanwhile (block-stream: ${disks.part.sizeBytes / MIB} MiB)`,
    metrics: COPY_METRICS,
    bars: [
      { kind: "ratio", against: PLAIN, metric: RATE.name, bound: "atLeast", limit: share },
      { kind: "value", metric: "beyondP99Ms", bound: "atMost", limit: 8 },
    ],
    contenders: [
      contender(SUBJECT, (copy) => measureClone(copy), { needs: clone }),
      contender("fixed-window", (copy) => measureClone(copy, ["--window", FIXED_WINDOW]), { needs: clone }),
      contender(PLAIN, (copy) => measurePlain(copy), { needs: [] }),
      contender("nbdcopy", (copy) => measureOther(COPY_NBDCOPY, copy), { needs: ["nbdkit", "nbdcopy"] }),
      contender("block-stream", (copy) => measureOther(COPY_BLOCK_STREAM, copy), {
        needs: ["nbdkit", "qemu-storage-daemon", "qemu-img"],
        disk: disks.part,
      }),
    ],
  };
}

/** Of bytes that the source makes up; `dataBytes`: about what a sample brings, which is what memory is readied for. */
function endlessDisk({ directory }: SuiteContext, dataBytes: number): SourceDisk {
  return { directory, path: "", sizeBytes: ENDLESS_BYTES, data: [], dataBytes };
}

function sequentialCase(context: SuiteContext, { missing }: Tools): BenchCase {
  const lengthBytes = (context.quick ? 48 : 256) * MIB;
  const rttMs = 10;
  const disk = endlessDisk(context, 2 * lengthBytes);
  const contender = (server: LazyServer, part = 1): Contender => ({
    ...{ name: server.name, ...missing("nbdkit", ...server.needs) },
    measure: ({ warmUp }) =>
      measureSequential(server, { disk, rttMs, lengthBytes: warmUp ? 2 * MIB : Math.floor(lengthBytes * part) }),
  });
  return {
    name: "sequential-10ms",
    what: `a guest reads ${lengthBytes / MIB} MiB that are missing, 128 KiB at a time, over 1 Gb/s and ${rttMs} ms, while the rest is brought`,
    metrics: [
      RATE,
      { name: "lineShare", better: "higher", heading: "of the line" },
      LINE_USE,
      { name: "fetchedFactor", better: "lower", heading: "fetched / read" },
      LATENESS,
      RSS,
    ],
    bars: [{ kind: "value", metric: "lineShare", bound: "atLeast", limit: 0.7 }],
    contenders: [
      contender(lazyClone()),
      // They take a round trip for each piece.
      contender(LAZY_QEMU, SLOW_COPIER_PART),
      contender(LAZY_NBDKIT, SLOW_COPIER_PART),
    ],
  };
}

function randomCase(context: SuiteContext, { missing }: Tools): BenchCase {
  const measureMs = context.quick ? 1000 : 5000;
  const rttMs = 10;
  const disk = endlessDisk(context, (1.5 * measureMs * 125_000_000) / 1000);
  const contender = (server: LazyServer): Contender => ({
    ...{ name: server.name, ...missing("nbdkit", "fio", ...server.needs) },
    measure: ({ warmUp }) => measureRandom(server, { disk, rttMs, depth: DEPTH, measureMs: warmUp ? 300 : measureMs }),
  });
  const bars: readonly Bar[] = [{ kind: "value", metric: "rttShare", bound: "atLeast", limit: 0.9 }];
  return {
    name: "random-10ms",
    what: `a guest reads 4 KiB at random, ${DEPTH} at a time, nearly all of it missing, over 1 Gb/s and ${rttMs} ms`,
    metrics: [
      { name: "perSecond", better: "higher", heading: "reads/s" },
      { name: "rttShare", better: "higher", heading: "of what the RTT allows" },
      { name: "p50Ms", better: "lower", heading: "p50 ms" },
      { name: "p99Ms", better: "lower", heading: "p99 ms" },
      LATENESS,
      RSS,
    ],
    bars,
    contenders: [
      contender(lazyClone()),
      contender(lazyClone("slow-background", ["--rate", "1M"])),
      contender(LAZY_QEMU),
      contender(LAZY_NBDKIT),
    ],
  };
}

function followCase(context: SuiteContext, { missing }: Tools): BenchCase {
  const steps = context.quick ? STEPS.slice(0, 2) : STEPS;
  const [settleMs, stepMs] = context.quick ? [2000, 3500] : [3000, 5000];
  const disk = endlessDisk(context, GIB);
  return {
    name: "follow",
    what: "a line of 1 Gb/s and 10 ms becomes one of 50 ms, of 10, of a fifth of the bandwidth, of all again",
    metrics: [
      { name: "slowestSeconds", better: "lower", heading: "slowest s" },
      ...steps.map(({ name }): Metric => ({ name: `${name}Seconds`, better: "lower", heading: `${name} s` })),
    ],
    bars: [{ kind: "value", metric: "slowestSeconds", bound: "atMost", limit: 3 }],
    contenders: [
      {
        ...{ name: SUBJECT, ...missing("nbdkit", SUBJECT) },
        measure: ({ warmUp }) =>
          measureFollowing({ disk, rttMs: 10, steps: warmUp ? [] : steps, settleMs: warmUp ? 300 : settleMs, stepMs }),
      },
    ],
  };
}
