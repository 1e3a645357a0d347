/** Reads the JSON that `fio --output-format=json` writes: of some hundred fields, those that a comparison needs. */

export interface FioLatency {
  readonly meanUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  readonly maxUs: number;
}

export interface FioOperations {
  readonly count: number;
  readonly perSecond: number;
  readonly bytesPerSecond: number;
  /** From submission to completion. Zeroes when there were no operations. */
  readonly latency: FioLatency;
}

export interface FioJobReport {
  readonly name: string;
  /** An errno; 0 when all went well. */
  readonly error: number;
  /** The job's reads or writes, whichever it did more of. */
  readonly main: FioOperations;
  readonly flushes: Pick<FioOperations, "count" | "latency">;
  /** Cores that this job kept busy: near 1, it was the bottleneck itself, for it has one thread. */
  readonly clientCores: number;
  /** Requests in flight on average, by Little's law: how deep the queue really was. */
  readonly effectiveDepth: number;
}

/** Above this, a job's single thread is taken to be the bottleneck: the server might have done more. */
const CLIENT_BOUND_CORES = 0.9;

export function isClientBound(report: FioJobReport): boolean {
  return report.clientCores >= CLIENT_BOUND_CORES;
}

/** Throws when the text is not such a report. fio prints lines of its own before the JSON when both go to one place. */
export function parseFioReport(text: string): FioJobReport[] {
  const start = text.search(/^\{/m);
  if (start < 0) throw new Error(`no JSON in fio's output: ${text.slice(0, 200)}`);
  const jobs = member(JSON.parse(text.slice(start)), "jobs");
  if (!Array.isArray(jobs)) throw new Error("fio's report has no jobs");
  return jobs.map(parseJob);
}

function parseJob(job: unknown): FioJobReport {
  const [read, write] = [parseOperations(member(job, "read")), parseOperations(member(job, "write"))];
  const main = read.count >= write.count ? read : write;
  const sync = member(job, "sync");
  return {
    name: String(member(job, "jobname")),
    error: number(job, "error"),
    main,
    flushes: { count: number(sync, "total_ios"), latency: parseLatency(sync, "lat_ns") },
    clientCores: (number(job, "usr_cpu") + number(job, "sys_cpu")) / 100,
    effectiveDepth:
      main.perSecond * (number(member(member(job, main === read ? "read" : "write"), "lat_ns"), "mean") / 1e9),
  };
}

function parseOperations(direction: unknown): FioOperations {
  return {
    count: number(direction, "total_ios"),
    perSecond: number(direction, "iops"),
    bytesPerSecond: number(direction, "bw_bytes"),
    latency: parseLatency(direction, "clat_ns"),
  };
}

/** fio leaves the percentiles out when nothing was measured. */
function parseLatency(direction: unknown, name: string): FioLatency {
  const latency = member(direction, name);
  const percentiles = optional(latency, "percentile") ?? {};
  const us = (from: unknown, key: string): number => Number(optional(from, key) ?? 0) / 1000;
  return {
    meanUs: us(latency, "mean"),
    p50Us: us(percentiles, "50.000000"),
    p99Us: us(percentiles, "99.000000"),
    p999Us: us(percentiles, "99.900000"),
    maxUs: us(latency, "max"),
  };
}

function number(object: unknown, name: string): number {
  const value = member(object, name);
  if (typeof value !== "number") throw new Error(`fio's report: ${name} is not a number`);
  return value;
}

function member(object: unknown, name: string): unknown {
  const value = optional(object, name);
  if (value === undefined) throw new Error(`fio's report has no ${name}`);
  return value;
}

function optional(object: unknown, name: string): unknown {
  return typeof object === "object" && object !== null ? (object as Record<string, unknown>)[name] : undefined;
}
