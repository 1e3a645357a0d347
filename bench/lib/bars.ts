/**
 * Bars: what a result is measured against. A bar is stated before the run, is judged once on the samples that there
 * are, and is reported met, missed or not judged with all of its figures. Nothing is ever run again because of it.
 */
import { median } from "./stats.ts";

interface BarOf {
  /** The metric's name. */
  readonly metric: string;
  readonly bound: "atLeast" | "atMost";
  readonly limit: number;
}

export type Bar =
  /** The subject's value divided by the peer's of the same round; the median over the rounds counts. */
  | (BarOf & { readonly kind: "ratio"; readonly against: string })
  /** The median of the subject's own values counts. */
  | (BarOf & { readonly kind: "value" });

/** One contender's values of one metric, by round. A round without a sample has no entry. */
export type ByRound = ReadonlyMap<number, number>;

export interface Ratios {
  readonly median: number;
  /** One per round that both had, in order of rounds. */
  readonly perRound: readonly number[];
}

export type Verdict = "met" | "missed" | "not-judged";

export interface JudgedBar {
  readonly bar: string;
  readonly metric: string;
  readonly verdict: Verdict;
  /** What was compared with the limit: a median ratio or a median value. Absent when not judged. */
  readonly figure?: number;
  /** All the ratios or values that `figure` is the median of. */
  readonly figures: readonly number[];
  /** Why it was not judged. */
  readonly why?: string;
}

export function barText(bar: Bar): string {
  const sign = bar.bound === "atLeast" ? "≥" : "≤";
  return `${bar.metric} ${sign} ${bar.limit}${bar.kind === "ratio" ? ` × ${bar.against}` : ""}`;
}

/**
 * Subject divided by peer, pair by pair. Two samples of one round ran one after the other, so that what disturbs the
 * machine for longer than a sample disturbs both alike and cancels out.
 */
export function ratios(subject: ByRound, peer: ByRound): Ratios | undefined {
  const perRound: number[] = [];
  for (const [round, value] of [...subject].sort(([a], [b]) => a - b)) {
    const other = peer.get(round);
    if (other !== undefined) perRound.push(value / other);
  }
  return perRound.length === 0 ? undefined : { median: median(perRound), perRound };
}

/** `valuesOf` gives a peer's values of the bar's metric, empty when it has none. */
export function judge(bar: Bar, subject: ByRound, valuesOf: (peer: string) => ByRound): JudgedBar {
  const text = { bar: barText(bar), metric: bar.metric };
  const notJudged = (why: string): JudgedBar => ({ ...text, verdict: "not-judged", figures: [], why });
  if (subject.size === 0) return notJudged("no samples of our own");
  let figures: readonly number[] = [...subject.values()];
  if (bar.kind === "ratio") {
    const pairs = ratios(subject, valuesOf(bar.against));
    if (pairs === undefined) return notJudged(`no samples of ${bar.against} in the same rounds`);
    figures = pairs.perRound;
  }
  const figure = median(figures);
  if (Number.isNaN(figure)) return notJudged("not a number");
  const met = bar.bound === "atLeast" ? figure >= bar.limit : figure <= bar.limit;
  return { ...text, verdict: met ? "met" : "missed", figure, figures };
}
