/**
 * A guest's disks move from one host to another: how long the guest stands still for the switchover, and what the whole
 * migration takes in each mode, beside QEMU's own way. Sources, destinations and lines are processes of their own.
 */
import { Pattern } from "../lib/pattern.ts";
import {
  type BenchCase,
  type Contender,
  type Metric,
  type OpenSuite,
  type Round,
  SUBJECT,
  type Suite,
  type SuiteContext,
} from "../lib/suite.ts";
import { measureMode } from "./migrate-modes.ts";
import { measurePause, ROUND_TRIPS } from "./migrate-pause.ts";
import { measureMirror } from "./migrate-qemu.ts";
import { measureDemand, measureWorkingSet } from "./migrate-reads.ts";
import { findTools, type Tools } from "./tools.ts";

const MIB = 2 ** 20;
const PATTERN = new Pattern("blockferry bench migrate");
const PAUSE_DISK_BYTES = 16 * MIB;
/** Brief, and big enough for the programs to have done everything once. */
const WARM_UP = { sizeBytes: 16 * MIB, measureMs: 200 } as const;
const PAUSE_BEYOND_MS = 20;
/** A third. */
const HEAT_SHARE = 0.333;
const DEMAND_BEYOND_MS = 8;
const LINE = { rttMs: 10, bitsPerSecond: 1e9 } as const;

const PAUSE_CASES = [
  { disks: 1, rttMs: 0 },
  { disks: 4, rttMs: 0 },
  { disks: 1, rttMs: 10 },
  { disks: 4, rttMs: 10 },
] as const;

export const migrateSuite: Suite = {
  name: "migrate",
  what: "a guest's disks move to another host: the switchover's pause, each mode beside QEMU's mirror",
  open,
};

async function open(context: SuiteContext): Promise<OpenSuite> {
  const tools = await findTools();
  const cases = [
    ...PAUSE_CASES.map((it) => pauseCase(it, tools)),
    moveCase(context, tools),
    heatCase(context, tools),
    demandCase(context, tools),
  ];
  // Every sample makes its own disks, and removes them.
  return { cases, versions: tools.versions, [Symbol.asyncDispose]: async () => {} };
}

function pauseCase({ disks, rttMs }: { disks: number; rttMs: number }, { missing }: Tools): BenchCase {
  const names = Array.from({ length: disks }, (_, index) => `vd${"abcd"[index]}`);
  const options = { disks: names, sizeBytes: PAUSE_DISK_BYTES, rttMs, pattern: PATTERN };
  const contender = (name: string, way: "stopped" | "held"): Contender => ({
    ...{ name, ...missing(SUBJECT) },
    measure: () => measurePause(way, options),
  });
  return {
    name: `pause-${disks}disk-${rttMs}ms`,
    what: `${disks} × ${PAUSE_DISK_BYTES / MIB} MiB in memory, ${rttMs} ms: last write accepted here to first accepted there`,
    metrics: [
      { name: "pauseMs", better: "lower", heading: "pause ms" },
      { name: "syncMs", better: "lower", heading: "syncs ms" },
      { name: "beyondMs", better: "lower", heading: `beyond syncs and ${ROUND_TRIPS} RTT ms` },
      { name: "reportedMs", better: "lower", heading: "reported ms" },
    ],
    bars: [{ kind: "value", metric: "beyondMs", bound: "atMost", limit: PAUSE_BEYOND_MS }],
    contenders: [contender(SUBJECT, "stopped"), contender("forced", "held")],
  };
}

function brief<T extends { readonly sizeBytes: number }>(options: T, { warmUp }: Round): T {
  return warmUp ? { ...options, ...WARM_UP } : options;
}

const MOVE_METRICS: readonly [Metric, ...Metric[]] = [
  { name: "totalMs", better: "lower", heading: "total s", divisor: 1000 },
  { name: "switchedMs", better: "lower", heading: "until switched s", divisor: 1000 },
  { name: "releasedMs", better: "lower", heading: "source needed s", divisor: 1000 },
  { name: "pauseMs", better: "lower", heading: "pause ms" },
  { name: "stallMs", better: "lower", heading: "longest stall ms" },
  { name: "movedBytes", better: "lower", heading: "moved MiB", divisor: MIB },
  { name: "writes", better: "higher", heading: "writes" },
  { name: "lineLatenessP99Ms", better: "lower", heading: "line late p99 ms" },
];

function moveCase({ quick, sizeBytes = (quick ? 128 : 512) * MIB }: SuiteContext, { missing }: Tools): BenchCase {
  const options = { sizeBytes, distance: LINE, pattern: PATTERN };
  const mode = (name: string, how: Parameters<typeof measureMode>[0]): Contender => ({
    ...{ name, ...missing(SUBJECT) },
    measure: (round) => measureMode(how, brief(options, round)),
  });
  return {
    name: "move-10ms",
    what: `${sizeBytes / MIB} MiB over 1 Gb/s and ${LINE.rttMs} ms while the guest writes 4 KiB every 10 ms`,
    metrics: MOVE_METRICS,
    bars: [],
    contenders: [
      mode(SUBJECT, "hybrid"),
      mode("postcopy", "postcopy"),
      mode("precopy", "precopy"),
      {
        name: "qemu-mirror",
        ...missing("qemu-storage-daemon"),
        measure: (round) => measureMirror(brief(options, round)),
      },
    ],
  };
}

function heatCase({ quick, sizeBytes = (quick ? 128 : 1024) * MIB }: SuiteContext, { missing }: Tools): BenchCase {
  const measureMs = quick ? 1500 : 10_000;
  const options = { sizeBytes, distance: LINE, pattern: PATTERN, measureMs };
  const contender = (name: string, seen: boolean): Contender => ({
    ...{ name, ...missing(SUBJECT) },
    measure: (round) => measureWorkingSet(seen, brief(options, round)),
  });
  return {
    name: "heat-10ms",
    what:
      `a guest reads in 5 % of ${sizeBytes / MIB} MiB for ${measureMs / 1000} s after the switchover, over 1 Gb/s and ` +
      `${LINE.rttMs} ms; the source has seen it do so, or not`,
    metrics: [
      { name: "stallMs", better: "lower", heading: "stalled ms" },
      { name: "stalls", better: "lower", heading: "stalls" },
      { name: "reads", better: "higher", heading: "reads" },
      { name: "maxMs", better: "lower", heading: "max ms" },
    ],
    bars: [{ kind: "ratio", against: "linear", metric: "stallMs", bound: "atMost", limit: HEAT_SHARE }],
    contenders: [contender(SUBJECT, true), contender("linear", false)],
  };
}

function demandCase({ quick, sizeBytes = (quick ? 128 : 1024) * MIB }: SuiteContext, { missing }: Tools): BenchCase {
  const options = { sizeBytes, distance: LINE, pattern: PATTERN, measureMs: quick ? 700 : 5000 };
  const contender = (name: string, tunnel: boolean): Contender => ({
    ...{ name, ...missing(SUBJECT) },
    measure: (round) => measureDemand(tunnel, brief(options, round)),
  });
  return {
    name: "demand-10ms",
    what: `four who read 4 KiB at random while the rest of ${sizeBytes / MIB} MiB and a tunnel share 1 Gb/s and ${LINE.rttMs} ms`,
    metrics: [
      { name: "beyondP99Ms", better: "lower", heading: "p99 beyond RTT and line ms" },
      { name: "p50Ms", better: "lower", heading: "p50 ms" },
      { name: "p99Ms", better: "lower", heading: "p99 ms" },
      { name: "residenceP99Ms", better: "lower", heading: "in the line p99 ms" },
      { name: "lineUse", better: "higher", heading: "line use" },
      { name: "tunnelBytesPerSecond", better: "higher", heading: "tunnel MiB/s", divisor: MIB },
      { name: "reads", better: "higher", heading: "reads" },
    ],
    bars: [{ kind: "value", metric: "beyondP99Ms", bound: "atMost", limit: DEMAND_BEYOND_MS }],
    contenders: [contender(SUBJECT, true), contender("no-tunnel", false)],
  };
}
