/** What a suite of benchmarks is made of. A suite knows its contenders and its bars; how they are compared it does not. */
import type { Bar } from "./bars.ts";

/** Every bar and ratio is about this contender. */
export const SUBJECT = "blockferry";

export interface Metric {
  /** In the results and in bars; ends in its unit where it has one ("p99Us"). */
  readonly name: string;
  readonly better: "higher" | "lower";
  /** For tables: the heading, and what a value is divided by before it is printed. */
  readonly heading: string;
  readonly divisor?: number;
}

export interface Round {
  /** Counted from 0; the warm-up round is −1. */
  readonly index: number;
  /** Run as ever, but briefly: the figures are thrown away. */
  readonly warmUp: boolean;
}

export interface Measurement {
  /** By metric name. May hold more than the case lists: all is kept in the results. */
  readonly values: Readonly<Record<string, number>>;
  /** What a reader must know to judge the figures: who was the bottleneck, what was verified. */
  readonly notes?: readonly string[];
}

export interface Contender {
  readonly name: string;
  /** Why it cannot take part, and what to do about it. */
  readonly missing?: string;
  /**
   * One sample: prepares, starts what it needs, measures, verifies what was read or written, and leaves nothing
   * running. Rejects when anything was wrong: a figure that was not verified is not a figure.
   */
  measure(round: Round): Promise<Measurement>;
}

export interface BenchCase {
  readonly name: string;
  /** One line: what is done, and with what. */
  readonly what: string;
  /** The first is the one that the case is about. */
  readonly metrics: readonly [Metric, ...Metric[]];
  readonly contenders: readonly Contender[];
  readonly bars: readonly Bar[];
}

export interface SuiteContext {
  /** A folder of this run, removed after it. */
  readonly directory: string;
  readonly quick: boolean;
  /** What `--size` asked for; a suite whose disks have the size they must have may leave it alone. */
  readonly sizeBytes?: number;
  /** Whether anything of the case will be run: prepare nothing for cases that will not. */
  wants(caseName: string): boolean;
  log(line: string): void;
}

export interface OpenSuite extends AsyncDisposable {
  readonly cases: readonly BenchCase[];
  /** Of every program that took part. */
  readonly versions: Readonly<Record<string, string>>;
}

export interface Suite {
  readonly name: string;
  readonly what: string;
  open(context: SuiteContext): Promise<OpenSuite>;
}
