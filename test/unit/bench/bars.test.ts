import { describe, expect, test } from "vitest";
import { type Bar, type ByRound, barText, judge, ratios } from "../../../bench/lib/bars.ts";

const byRound = (...values: number[]): ByRound => new Map(values.map((value, round) => [round, value]));
const NONE: ByRound = new Map();
const against = (values: ByRound) => (peer: string) => (peer === "nbdkit" ? values : NONE);

const faster: Bar = { kind: "ratio", metric: "iops", bound: "atLeast", limit: 1.1, against: "nbdkit" };
const quicker: Bar = { kind: "ratio", metric: "p50Us", bound: "atMost", limit: 1.3, against: "nbdkit" };
const bounded: Bar = { kind: "value", metric: "slowdown", bound: "atMost", limit: 5 };

describe("ratios", () => {
  test("pair the samples of one round, whatever order they are in", () => {
    const subject = new Map([
      [2, 30],
      [0, 10],
    ]);
    expect(ratios(subject, byRound(5, 100, 10))).toEqual({ perRound: [2, 3], median: 2.5 });
  });

  test("are the median of the pairs, not the ratio of the medians", () => {
    // Medians 200 and 100 would give 2; a disturbance that hit both of a pair alike does not count.
    expect(ratios(byRound(100, 200, 300), byRound(100, 50, 300))?.median).toBe(1);
  });

  test("do not exist without a round that both took part in", () => {
    expect(ratios(new Map([[0, 1]]), new Map([[1, 1]]))).toBeUndefined();
  });
});

describe("a bar", () => {
  test("says what it asks for", () => {
    expect([faster, quicker, bounded].map(barText)).toEqual([
      "iops ≥ 1.1 × nbdkit",
      "p50Us ≤ 1.3 × nbdkit",
      "slowdown ≤ 5",
    ]);
  });

  test("is met at its limit and missed just short of it", () => {
    expect(judge(faster, byRound(11), against(byRound(10))).verdict).toBe("met");
    expect(judge(faster, byRound(10.99), against(byRound(10))).verdict).toBe("missed");
    expect(judge(quicker, byRound(13), against(byRound(10))).verdict).toBe("met");
    expect(judge(quicker, byRound(13.01), against(byRound(10))).verdict).toBe("missed");
  });

  test("is judged by the median, and keeps the figures that were against it", () => {
    const judged = judge(faster, byRound(12, 5, 13), against(byRound(10, 10, 10)));
    expect(judged).toMatchObject({ verdict: "met", figure: 1.2, figures: [1.2, 0.5, 1.3] });
  });

  test("on a value looks at nobody else", () => {
    expect(judge(bounded, byRound(4, 9, 2), against(NONE))).toMatchObject({ verdict: "met", figure: 4 });
    expect(judge(bounded, byRound(6), against(NONE)).verdict).toBe("missed");
  });

  test("is not judged, and says so, when samples are missing", () => {
    expect(judge(faster, byRound(1), against(NONE))).toMatchObject({
      verdict: "not-judged",
      why: expect.stringContaining("nbdkit"),
    });
    expect(judge(bounded, NONE, against(NONE))).toMatchObject({
      verdict: "not-judged",
      why: expect.stringContaining("our own"),
    });
    expect(judge({ ...faster, against: "nobody" }, byRound(1), against(byRound(1))).verdict).toBe("not-judged");
  });
});
