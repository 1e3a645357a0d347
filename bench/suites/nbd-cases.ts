/** How one sample of reading or writing is taken from one server. */
import { type FioOutcome, type FioRun, runFio } from "../lib/fio.ts";
import { isClientBound } from "../lib/fio-report.ts";
import { Pattern } from "../lib/pattern.ts";
import { type LoopDelay, type NbdPeer, type ServedImage, serve } from "../lib/peers.ts";
import { makeClean, type Range, warm } from "../lib/prepare.ts";
import type { Measurement } from "../lib/suite.ts";
import { verifyFile, verifyServer } from "../lib/verify.ts";

export interface Disk {
  readonly path: string;
  readonly sizeBytes: number;
  /** What all but `written` and the last block hold, at all times. */
  readonly original: Pattern;
  /** For reads from the page cache. */
  readonly hot: Range;
  /** For fewer of them. */
  readonly hottest: Range;
  readonly written: Range;
  /** On both sides of `written`. */
  readonly besideWritten: readonly Range[];
  readonly cached: Range;
  readonly cold: Range;
  /** For sockets and for fio's files. */
  readonly directory: string;
}

export interface Times {
  readonly rampMs: number;
  readonly measureMs: number;
  /** Its figures do not count. */
  readonly warmUp?: boolean;
}

export interface ReadShape {
  readonly rw: "read" | "randread";
  readonly blockBytes: number;
  readonly depth: number;
  readonly within?: "hot" | "hottest";
}

const WRITE_BLOCK_BYTES = 4096;
const WRITE_DEPTH = 32;
const FLUSH_EVERY_MS = 100;
/**
 * Kernels that reclaim idle pages may take a page at any time. More than this share, and it is the disk that is measured;
 * where only the median counts, and reads are few, more can be borne.
 */
const FROM_DISK_MAX = 0.01;
const FROM_DISK_MAX_ONE_AT_A_TIME = 0.05;

export async function measureReads(
  peer: NbdPeer,
  disk: Disk,
  times: Times,
  readShape: ReadShape,
): Promise<Measurement> {
  const { within = "hot", ...shape } = readShape;
  const range = disk[within];
  await warm(disk.path, range);
  await using server = await serve(peer, { image: disk.path, readOnly: true, directory: disk.directory });
  const { offset, length } = range;
  const measured = await observe(server, disk, times, [{ name: "read", ...shape, offset, sizeBytes: length }]);
  await verifyServer(server.socketPath, { ...range, sizeBytes: disk.sizeBytes }, disk.original);
  await server.stop();
  const [job] = measured.jobs;
  const fromDisk = measured.diskReadBytes / (job.main.bytesPerSecond * measured.busySeconds);
  if (times.warmUp !== true && fromDisk > (shape.depth === 1 ? FROM_DISK_MAX_ONE_AT_A_TIME : FROM_DISK_MAX)) {
    throw new Error(`${(fromDisk * 100).toFixed(1)} % of the bytes came from the disk, not from the page cache`);
  }
  const notes = notesOn(job, shape.depth);
  if (fromDisk > 0)
    notes.push("some pages had left the page cache, a few per cent at most, and were read from the disk");
  return { values: { ...ioValues(job), ...costValues(measured) }, notes };
}

let writeCount = 0;

/**
 * Writes are tagged with the sample's number. fio visits every block before it visits one again, so that after some
 * passes the whole region must hold this sample's tag: in the server's answers before it stops, in the file after.
 */
export async function measureWrites(peer: NbdPeer, disk: Disk, times: Times): Promise<Measurement> {
  const pattern = new Pattern(`sample ${++writeCount} of ${peer.name}`, WRITE_BLOCK_BYTES);
  await warm(disk.path, disk.written);
  await makeClean(disk.path);
  const { path: image, directory } = disk;
  await using server = await serve(peer, { image, readOnly: false, traceLoopDelay: true, directory });
  const shape = { rw: "randwrite", blockBytes: WRITE_BLOCK_BYTES, depth: WRITE_DEPTH } as const;
  const measured = await observe(server, disk, times, [
    {
      ...{ name: "write", ...shape, offset: disk.written.offset, sizeBytes: disk.written.length },
      options: { verify: "pattern", do_verify: 0, verify_pattern: pattern.fioArgument },
    },
    {
      // fio's own fsync= would send a volley of 32 flushes at this depth; this sends one at a time, at the same pace to all.
      ...{ name: "flush", rw: "write", blockBytes: WRITE_BLOCK_BYTES, depth: 1 },
      ...{ offset: disk.sizeBytes - WRITE_BLOCK_BYTES, sizeBytes: WRITE_BLOCK_BYTES },
      options: { fsync: 1, thinktime: `${FLUSH_EVERY_MS}ms` },
    },
  ]);
  const [job, flusher] = measured.jobs;
  const blocks = disk.written.length / WRITE_BLOCK_BYTES;
  if (job.main.count < 2 * blocks) throw new Error(`only ${job.main.count} writes: not every block was written`);
  await verifyServer(server.socketPath, { ...disk.written, sizeBytes: disk.sizeBytes }, pattern);
  const loopDelay = await server.stop();
  await verifyFile(disk.path, disk.written, pattern);
  for (const range of [disk.hot, ...disk.besideWritten]) await verifyFile(disk.path, range, disk.original);
  if (flusher === undefined || flusher.flushes.count === 0) throw new Error("there was not one flush");
  const flushes = {
    flushes: flusher.flushes.count,
    flushP50Us: flusher.flushes.latency.p50Us,
    flushMaxUs: flusher.flushes.latency.maxUs,
  };
  return {
    values: { ...ioValues(job), ...flushes, ...costValues(measured, loopDelay) },
    notes: notesOn(job, WRITE_DEPTH),
  };
}

export interface Observed {
  readonly jobs: readonly [FioOutcome, ...FioOutcome[]];
  /** How long fio kept the server busy, the ramp included. */
  readonly busySeconds: number;
  readonly serverCores: number;
  readonly serverPeakRssBytes: number;
  readonly diskReadBytes: number;
}

/** Runs fio against the server, which must still be the same process afterwards. */
export async function observe(server: ServedImage, disk: Disk, times: Times, jobs: FioRun["jobs"]): Promise<Observed> {
  const before = server.usage();
  const [first, ...others] = await runFio({ socketPath: server.socketPath, directory: disk.directory, ...times, jobs });
  const after = server.usage();
  if (first === undefined) throw new Error("fio did not report");
  const busySeconds = (times.rampMs + times.measureMs) / 1000;
  return {
    jobs: [first, ...others],
    busySeconds,
    serverCores: (after.cpuSeconds - before.cpuSeconds) / busySeconds,
    serverPeakRssBytes: after.peakRssBytes,
    diskReadBytes: after.diskReadBytes - before.diskReadBytes,
  };
}

export function ioValues({ main, clientCores, effectiveDepth }: FioOutcome): Record<string, number> {
  const { p50Us, p99Us, p999Us, maxUs } = main.latency;
  const rates = { iops: main.perSecond, bytesPerSecond: main.bytesPerSecond };
  return { ...rates, p50Us, p99Us, p999Us, maxUs, clientCores, effectiveDepth };
}

export function costValues(observed: Observed, loopDelay?: LoopDelay): Record<string, number> {
  const delay = loopDelay && {
    loopDelayP50Ms: loopDelay.p50Ms,
    loopDelayP99Ms: loopDelay.p99Ms,
    loopDelayMaxMs: loopDelay.maxMs,
  };
  const { serverCores, serverPeakRssBytes, diskReadBytes } = observed;
  return { serverCores, serverPeakRssBytes, diskReadBytes, ...delay };
}

function notesOn(job: FioOutcome, depth: number): string[] {
  const notes: string[] = [];
  if (isClientBound(job)) notes.push("fio's one thread was the bottleneck; the server may be faster than this");
  if (job.effectiveDepth < 0.9 * depth) notes.push(`fewer than ${depth} requests were in flight on average`);
  return notes;
}
