/**
 * fio with its NBD engine (libnbd): one job is one connection, one process and one thread. What that engine does was
 * looked up and measured; README.md ("What fio does") says what to mind.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { type FioJobReport, parseFioReport } from "./fio-report.ts";
import { runTool } from "./process.ts";

/** fio takes a third of a second to start, and some to end. */
const FIO_EXTRA_TIMEOUT_MS = 20_000;

export interface FioJob {
  readonly name: string;
  readonly rw: "read" | "write" | "randread" | "randwrite";
  readonly blockBytes: number;
  /** Requests in flight, always. */
  readonly depth: number;
  /** Where on the disk; all of it by default. */
  readonly offset?: number;
  readonly sizeBytes?: number;
  /** Further options of fio's, without the dashes. */
  readonly options?: Readonly<Record<string, string | number>>;
  /** Keep the latency of every single request. For rates of some thousands a second, not for full speed. */
  readonly keepLatencies?: boolean;
}

export interface FioRun {
  readonly socketPath: string;
  /** For fio's own files. */
  readonly directory: string;
  readonly rampMs: number;
  readonly measureMs: number;
  /** All run at the same time. */
  readonly jobs: readonly [FioJob, ...FioJob[]];
}

export interface FioOutcome extends FioJobReport {
  /** In µs, in order of completion, without the ramp; only with `keepLatencies`. */
  readonly latenciesUs?: readonly number[];
}

/** Runs fio and resolves to one outcome per job, in order. Rejects on any I/O error and on a job that did nothing. */
export async function runFio(run: FioRun): Promise<FioOutcome[]> {
  const folder = await mkdtemp(join(run.directory, "fio-"));
  try {
    const output = join(folder, "report.json");
    const argv: [string, ...string[]] = [
      "fio",
      "--output-format=json",
      `--output=${output}`,
      ...fioArguments(run, folder),
    ];
    await runTool({ argv, timeoutMs: run.rampMs + run.measureMs + FIO_EXTRA_TIMEOUT_MS });
    const reports = parseFioReport(await readFile(output, "utf8"));
    return await Promise.all(run.jobs.map((job, index) => outcome(job, reports[index], join(folder, job.name))));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** All jobs share the ramp and the time; fio applies an option to the job whose name was given last. */
export function fioArguments(run: FioRun, folder: string): string[] {
  const common: [string, string | number][] = [
    ["ioengine", "nbd"],
    ["uri", nbdUri(run.socketPath)],
    ["time_based", 1],
    ["runtime", `${run.measureMs}ms`],
    ["ramp_time", `${run.rampMs}ms`],
    ["per_job_logs", 0],
  ];
  return run.jobs.flatMap((job) => {
    const options: [string, string | number][] = [
      ["name", job.name],
      ...common,
      ["rw", job.rw],
      ["bs", job.blockBytes],
      ["iodepth", job.depth],
      ["offset", job.offset ?? 0],
      ...(job.sizeBytes === undefined ? [] : [["size", job.sizeBytes] satisfies [string, number]]),
      ...(job.keepLatencies ? [["write_lat_log", join(folder, job.name)] satisfies [string, string]] : []),
      ...Object.entries(job.options ?? {}),
    ];
    return options.map(([name, value]) => `--${name}=${value}`);
  });
}

export function nbdUri(socketPath: string, exportName = ""): string {
  return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${socketPath}`;
}

async function outcome(job: FioJob, report: FioJobReport | undefined, log: string): Promise<FioOutcome> {
  if (report?.name !== job.name) throw new Error(`fio did not report on ${job.name}`);
  if (report.error !== 0) throw new Error(`fio: ${job.name} ended with error ${report.error}`);
  if (report.main.count === 0) throw new Error(`fio: ${job.name} did nothing`);
  if (!job.keepLatencies) return report;
  return { ...report, latenciesUs: parseLatencyLog(await readFile(`${log}_clat.log`, "utf8")) };
}

/** Lines of "time in ms, latency in ns, direction, size, offset, priority". */
export function parseLatencyLog(text: string): number[] {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => Number(line.split(",")[1]) / 1000);
}
