/** `npm run bench -- SUITE`: runs one suite, says what came out, and whether every bar was met. */
import { writeFileSync } from "node:fs";
import { compare, type Entry } from "./lib/compare.ts";
import { loadAverage, machine } from "./lib/machine.ts";
import { type BenchOptions, parseOptions, USAGE, UsageError } from "./lib/options.ts";
import { temporaryFolder } from "./lib/process.ts";
import { caseLines, figure, headLines, outcomeOf, type Results } from "./lib/report.ts";
import type { BenchCase, Suite, SuiteContext } from "./lib/suite.ts";
import { imagesSuite } from "./suites/images.ts";
import { migrateSuite } from "./suites/migrate.ts";
import { nbdSuite } from "./suites/nbd.ts";
import { sparseSuite } from "./suites/sparse.ts";
import { streamSuite } from "./suites/stream.ts";
import { wanSuite } from "./suites/wan.ts";

const SUITES: readonly Suite[] = [nbdSuite, streamSuite, sparseSuite, wanSuite, migrateSuite, imagesSuite];

const EXIT_FAILED = 1;
const EXIT_NOT_REACHED = 2;
const EXIT_USAGE = 64;
const EXIT_INTERRUPTED = 130;

async function main(words: readonly string[]): Promise<number> {
  const options = parseOptions(words);
  const toError = options.jsonFile === "-";
  const print = (line: string): void => (toError ? console.error(line) : console.log(line));
  if (options.help) {
    print(USAGE);
    return 0;
  }
  const suite = SUITES.find(({ name }) => name === options.suite);
  if (options.suite === undefined && options.list) {
    for (const { name, what } of SUITES) print(`${name}  ${what}`);
    return 0;
  }
  if (suite === undefined) {
    const names = SUITES.map(({ name }) => name).join(", ");
    throw new UsageError(
      options.suite === undefined ? "no suite given" : `no suite "${options.suite}"; there is ${names}`,
    );
  }
  const results = await run(suite, options, print);
  if (results === undefined) return 0;
  const text = `${JSON.stringify(results, undefined, 2)}\n`;
  if (toError) process.stdout.write(text);
  else if (options.jsonFile !== undefined) writeFileSync(options.jsonFile, text);
  return verdict(results, options, print);
}

/** Undefined when only a list was asked for. */
async function run(suite: Suite, options: BenchOptions, print: (line: string) => void): Promise<Results | undefined> {
  const folder = temporaryFolder(options.directory);
  try {
    const context: SuiteContext = {
      directory: folder.path,
      quick: options.quick,
      ...(options.sizeBytes !== undefined && { sizeBytes: options.sizeBytes }),
      wants: (name) => !options.list && name.includes(options.filter),
      log: (line) => console.error(line),
    };
    const date = new Date().toISOString();
    const loadBefore = loadAverage();
    await using open = await suite.open(context);
    if (options.list) {
      for (const { name, what } of open.cases) print(`${name}  ${what}`);
      return undefined;
    }
    const cases = open.cases
      .filter(({ name }) => context.wants(name))
      .map((benchCase) => selected(benchCase, options.only));
    if (cases.length === 0) throw new UsageError(`no case of ${suite.name} has "${options.filter}" in its name`);
    const entries = await runCases(cases, options, print);
    const conditions = { ...machine(folder.path), loadBefore, loadAfter: loadAverage() };
    const results = {
      suite: suite.name,
      date,
      quick: options.quick,
      machine: conditions,
      versions: open.versions,
      cases: entries,
    };
    for (const line of ["", ...headLines(results)]) print(line);
    return results;
  } finally {
    folder.remove();
  }
}

async function runCases(
  cases: readonly BenchCase[],
  options: BenchOptions,
  print: (line: string) => void,
): Promise<Entry[]> {
  const all: Entry[] = [];
  for (const benchCase of cases) {
    const [{ name: metric, heading, divisor = 1 }] = benchCase.metrics;
    const entries = await compare(benchCase, {
      samples: options.samples,
      onSample: (peer, round, outcome) => {
        const when = round.warmUp ? "warm-up" : `round ${round.index + 1} of ${options.samples}`;
        const value = outcome instanceof Error ? NaN : (outcome.values[metric] ?? NaN);
        const what = outcome instanceof Error ? `FAILED: ${outcome.message}` : `${figure(value / divisor)} ${heading}`;
        console.error(`${benchCase.name}  ${when}  ${peer}  ${what}`);
      },
    });
    for (const line of caseLines(benchCase, entries)) print(line);
    all.push(...entries);
  }
  return all;
}

function selected(benchCase: BenchCase, only: readonly string[]): BenchCase {
  if (only.length === 0) return benchCase;
  const contenders = benchCase.contenders.filter(({ name }) => only.includes(name));
  if (contenders.length > 0) return { ...benchCase, contenders };
  const names = benchCase.contenders.map(({ name }) => name).join(", ");
  throw new UsageError(`no contender "${only.join(",")}" in ${benchCase.name}; there is ${names}`);
}

function verdict(results: Results, options: BenchOptions, print: (line: string) => void): number {
  const { met, missed, notJudged, failed } = outcomeOf(results.cases);
  print(`bars: ${met} met, ${missed} missed, ${notJudged} not judged; ${failed} contenders failed`);
  if (failed > 0) return EXIT_FAILED;
  if (results.cases.every(({ samples }) => samples.length === 0)) return EXIT_NOT_REACHED;
  const forComparing = !options.quick && options.only.length === 0;
  return forComparing && missed + notJudged > 0 ? EXIT_NOT_REACHED : 0;
}

process.once("SIGINT", () => process.exit(EXIT_INTERRUPTED));
process.once("SIGTERM", () => process.exit(EXIT_INTERRUPTED));
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof UsageError) console.error(`bench: ${error.message}\n${USAGE}`);
  else console.error(error);
  process.exitCode = error instanceof UsageError ? EXIT_USAGE : EXIT_FAILED;
}
