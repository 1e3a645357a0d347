/**
 * Runs the contenders of one case in turn, A B C, B C A, C A B …, and keeps every sample. Taking turns makes a
 * disturbance hit everybody; turning the order makes nobody always the one who runs after the same neighbour.
 * A contender that fails is not asked again, and nothing is repeated to get a nicer figure.
 */
import { type Bar, type ByRound, type JudgedBar, judge, type Ratios, ratios } from "./bars.ts";
import { foreignCores, loadAverage, readCpu } from "./machine.ts";
import { median, type Spread, spread } from "./stats.ts";
import { type BenchCase, type Contender, type Metric, type Round, SUBJECT } from "./suite.ts";

export interface Sample {
  readonly round: number;
  /** Its place in the sequence of all samples of the case: tells who ran after whom. */
  readonly position: number;
  readonly startedAt: string;
  readonly values: Readonly<Record<string, number>>;
  readonly notes: readonly string[];
  /** The machine's load average at the start. */
  readonly load: number;
  /** Cores kept busy by others while the sample was taken. */
  readonly foreignCores: number;
}

/** One contender in one case: an entry of `cases` in the results. */
export interface Entry {
  readonly name: string;
  readonly what: string;
  readonly peer: string;
  /** The metric that `median`, `spread` and `ratios` are about. */
  readonly metric: string;
  readonly better: "higher" | "lower";
  readonly samples: readonly Sample[];
  readonly median?: number;
  readonly medians: Readonly<Record<string, number>>;
  readonly spread?: Spread;
  /** Subject divided by each peer, round by round; only in the subject's entry. */
  readonly ratios?: Readonly<Record<string, Ratios>>;
  /** Only in the subject's entry. */
  readonly bars?: readonly JudgedBar[];
  /** Why it did not take part. */
  readonly skipped?: string;
  /** What went wrong; samples taken before it are kept. */
  readonly failed?: string;
}

export interface CompareOptions {
  /** Rounds, not counting the warm-up. */
  readonly samples: number;
  onSample(peer: string, round: Round, outcome: Sample | Error): void;
}

/** Whose turn it is, round by round. */
export function turns(names: readonly string[], round: number): string[] {
  const first = names.length === 0 ? 0 : round % names.length;
  return [...names.slice(first), ...names.slice(0, first)];
}

interface Lane {
  readonly contender: Contender;
  readonly samples: Sample[];
  failed?: string;
}

export async function compare(benchCase: BenchCase, options: CompareOptions): Promise<Entry[]> {
  const lanes = new Map<string, Lane>();
  for (const contender of benchCase.contenders) lanes.set(contender.name, { contender, samples: [] });
  const names = [...lanes.values()]
    .filter(({ contender }) => contender.missing === undefined)
    .map(({ contender }) => contender.name);

  let position = 0;
  for (let index = -1; index < options.samples; index++) {
    const round: Round = { index, warmUp: index < 0 };
    for (const name of turns(names, Math.max(0, index))) {
      const lane = lanes.get(name);
      if (lane === undefined || lane.failed !== undefined) continue;
      const outcome = await takeSample(lane.contender, round, position);
      options.onSample(name, round, outcome);
      if (outcome instanceof Error) lane.failed = outcome.message;
      else if (!round.warmUp) lane.samples.push(outcome);
      if (!round.warmUp) position += 1;
    }
  }
  return entries(benchCase, lanes);
}

async function takeSample(contender: Contender, round: Round, position: number): Promise<Sample | Error> {
  const startedAt = new Date().toISOString();
  const load = loadAverage();
  const before = readCpu();
  try {
    const { values, notes = [] } = await contender.measure(round);
    const foreign = foreignCores(before, readCpu());
    return { round: round.index, position, startedAt, values, notes, load, foreignCores: foreign };
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function entries(benchCase: BenchCase, lanes: ReadonlyMap<string, Lane>): Entry[] {
  const valuesOf = (peer: string, metric: string): ByRound => {
    const samples = lanes.get(peer)?.samples ?? [];
    return new Map(
      samples.flatMap(({ round, values }) => (values[metric] === undefined ? [] : [[round, values[metric]]])),
    );
  };
  return [...lanes].map(([peer, { contender, samples, failed }]): Entry => {
    const [main] = benchCase.metrics;
    const own = [...valuesOf(peer, main.name).values()];
    const common = {
      name: benchCase.name,
      what: benchCase.what,
      peer,
      metric: main.name,
      better: main.better,
      samples,
    };
    return {
      ...common,
      medians: medians(samples),
      ...(own.length > 0 && { median: median(own), spread: spread(own) }),
      ...(peer === SUBJECT && { ratios: allRatios(main, lanes, valuesOf), bars: judgeAll(benchCase.bars, valuesOf) }),
      ...(contender.missing !== undefined && { skipped: contender.missing }),
      ...(failed !== undefined && { failed }),
    };
  });
}

type ValuesOf = (peer: string, metric: string) => ByRound;

function judgeAll(bars: readonly Bar[], valuesOf: ValuesOf): JudgedBar[] {
  return bars.map((bar) => judge(bar, valuesOf(SUBJECT, bar.metric), (peer) => valuesOf(peer, bar.metric)));
}

function allRatios(metric: Metric, lanes: ReadonlyMap<string, Lane>, valuesOf: ValuesOf): Record<string, Ratios> {
  const own = valuesOf(SUBJECT, metric.name);
  const peers = [...lanes.keys()].filter((peer) => peer !== SUBJECT);
  const pairs = peers.map((peer) => [peer, ratios(own, valuesOf(peer, metric.name))] as const);
  return Object.fromEntries(pairs.filter((pair): pair is [string, Ratios] => pair[1] !== undefined));
}

/** Of every value that all samples have. */
function medians(samples: readonly Sample[]): Record<string, number> {
  const names = Object.keys(samples[0]?.values ?? {});
  const complete = names.filter((name) => samples.every(({ values }) => values[name] !== undefined));
  return Object.fromEntries(complete.map((name) => [name, median(samples.map(({ values }) => values[name] ?? 0))]));
}
