/**
 * What a run leaves behind: one object, written as JSON on request, and a table of it for people. The object holds every
 * sample; the table shows medians and what lies around them.
 */
import { styleText } from "node:util";
import type { JudgedBar, Ratios } from "./bars.ts";
import type { Entry } from "./compare.ts";
import type { Machine } from "./machine.ts";
import { type BenchCase, type Metric, SUBJECT } from "./suite.ts";

export interface Results {
  readonly suite: string;
  /** When the run began. */
  readonly date: string;
  readonly quick: boolean;
  readonly machine: Machine & { readonly loadBefore: number; readonly loadAfter: number };
  readonly versions: Readonly<Record<string, string>>;
  /** One per case and contender. */
  readonly cases: readonly Entry[];
}

export interface Outcome {
  readonly failed: number;
  readonly missed: number;
  readonly notJudged: number;
  readonly met: number;
}

/** Samples further apart than this, or so many cores used by others, make a result doubtful; it is marked, not dropped. */
const NOISY_SPREAD = 0.2;
const NOISY_FOREIGN_CORES = 0.2;

export function outcomeOf(entries: readonly Entry[]): Outcome {
  const verdicts = entries.flatMap(({ bars = [] }) => bars.map(({ verdict }) => verdict));
  const count = (wanted: JudgedBar["verdict"]): number => verdicts.filter((verdict) => verdict === wanted).length;
  const failed = entries.filter((entry) => entry.failed !== undefined).length;
  return { failed, met: count("met"), missed: count("missed"), notJudged: count("not-judged") };
}

export function headLines(results: Omit<Results, "cases">): string[] {
  const { machine, versions } = results;
  const memory = `${(machine.memoryBytes / 2 ** 30).toFixed(0)} GiB`;
  const place = `${machine.cpu} × ${machine.cores}, ${memory}, Linux ${machine.kernel}, ${machine.fileSystem}`;
  const named = Object.entries(versions).map(([name, version]) =>
    version.startsWith(name) ? version : `${name} ${version}`,
  );
  return [
    `suite ${results.suite}, ${results.date}${results.quick ? ", QUICK: not for comparing" : ""}`,
    place,
    [...named, `node ${machine.node}`].join(" · "),
    `load average ${machine.loadBefore.toFixed(2)} before, ${machine.loadAfter.toFixed(2)} after`,
  ];
}

/** The lines on one case. `entries` are this case's. */
export function caseLines(benchCase: BenchCase, entries: readonly Entry[]): string[] {
  const taken = entries.filter(({ samples }) => samples.length > 0);
  return [
    "",
    `${styleText("bold", benchCase.name)}  ${benchCase.what}`,
    ...(taken.length > 0 ? table(benchCase.metrics, taken) : []),
    ...entries.flatMap(({ peer, skipped }) => (skipped === undefined ? [] : [`  skipped ${peer}: ${skipped}`])),
    ...entries.flatMap(({ peer, failed }) => (failed === undefined ? [] : [`  FAILED ${peer}: ${failed}`])),
    ...entries.flatMap(({ ratios = {}, metric }) => Object.entries(ratios).map((pair) => ratioLine(metric, pair))),
    ...entries.flatMap(({ bars = [] }) => bars.map(barLine)),
    ...noteLines(taken),
  ];
}

function table(metrics: readonly Metric[], entries: readonly Entry[]): string[] {
  const [main, ...others] = metrics;
  const shown = others.filter(({ name }) => entries.some(({ medians }) => medians[name] !== undefined));
  const head = ["contender", main?.heading ?? "", "min–max", "noise", ...shown.map(({ heading }) => heading)];
  const rows = entries.map((entry) => {
    const { spread, medians, samples } = entry;
    const range = spread && main ? `${format(main, spread.min)}–${format(main, spread.max)}` : "";
    const cell = (metric: Metric): string => format(metric, medians[metric.name]);
    return [entry.peer, main ? cell(main) : "", range, noise(spread?.relative ?? 0, samples), ...shown.map(cell)];
  });
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string =>
    `  ${row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0))).join("  ")}`;
  return [head, ...rows].map(line);
}

/** "4 %", and "4 %!" when the samples, or others who used the machine meanwhile, make it doubtful. */
function noise(relativeSpread: number, samples: Entry["samples"]): string {
  const disturbed = samples.some(({ foreignCores }) => foreignCores > NOISY_FOREIGN_CORES);
  return `${(relativeSpread * 100).toFixed(0)} %${relativeSpread > NOISY_SPREAD || disturbed ? "!" : ""}`;
}

function noteLines(entries: readonly Entry[]): string[] {
  const lines = entries.flatMap(({ peer, samples }) => {
    const counts = new Map<string, number>();
    for (const note of samples.flatMap(({ notes }) => notes)) counts.set(note, (counts.get(note) ?? 0) + 1);
    return [...counts].map(([note, count]) => `  note ${peer} (${count} of ${samples.length}): ${note}`);
  });
  const foreign = entries.flatMap(({ samples }) => samples.map(({ foreignCores }) => foreignCores));
  const most = Math.max(0, ...foreign);
  if (most > NOISY_FOREIGN_CORES)
    lines.push(`  noisy: others kept up to ${most.toFixed(2)} cores busy during a sample`);
  return lines;
}

function ratioLine(metric: string, [peer, { median, perRound }]: [string, Ratios]): string {
  return `  ${metric} ${SUBJECT} / ${peer}: ${figure(median)}  (${perRound.map(figure).join(" ")})`;
}

function barLine({ bar, verdict, figure: judged, figures, why }: JudgedBar): string {
  const all = figures.length > 0 ? `  (${figures.map(figure).join(" ")})` : "";
  switch (verdict) {
    case "met":
      return `  ${styleText("green", "MET")}     ${bar}: ${figure(judged ?? 0)}${all}`;
    case "missed":
      return `  ${styleText("red", "MISSED")}  ${bar}: ${figure(judged ?? 0)}${all}`;
    case "not-judged":
      return `  ${styleText("yellow", "NOT JUDGED")}  ${bar}: ${why ?? ""}`;
  }
}

function format({ divisor = 1 }: Metric, value: number | undefined): string {
  return value === undefined ? "" : figure(value / divisor);
}

/** Three digits that mean something, and never an exponent. */
export function figure(value: number): string {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return String(value);
  return value.toFixed(size >= 100 || value === 0 ? 0 : size >= 10 ? 1 : 2);
}
