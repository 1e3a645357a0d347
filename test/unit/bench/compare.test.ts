import { describe, expect, test } from "vitest";
import { compare, turns } from "../../../bench/lib/compare.ts";
import { outcomeOf } from "../../../bench/lib/report.ts";
import type { BenchCase, Contender, Round } from "../../../bench/lib/suite.ts";

type Measure = (round: Round) => Promise<{ values: Record<string, number>; notes?: string[] }>;

function contender(name: string, measure: Measure): Contender {
  return { name, measure };
}

function benchCase(contenders: Contender[], bars: BenchCase["bars"] = []): BenchCase {
  const metrics: BenchCase["metrics"] = [{ name: "iops", better: "higher", heading: "op/s" }];
  return { name: "case", what: "a case", metrics, contenders, bars };
}

const quiet = { onSample: () => {} };

describe("turns", () => {
  test("rotate by one each round", () => {
    const order = [0, 1, 2, 3].map((round) => turns(["a", "b", "c"], round).join(""));
    expect(order).toEqual(["abc", "bca", "cab", "abc"]);
  });

  test("give everybody every place equally often", () => {
    const firsts = Array.from({ length: 6 }, (_, round) => turns(["a", "b", "c"], round)[0]);
    expect(firsts.toSorted()).toEqual(["a", "a", "b", "b", "c", "c"]);
    expect(turns([], 3)).toEqual([]);
  });
});

describe("a comparison", () => {
  test("warms everybody up, then alternates, and keeps every sample but the warm-up's", async () => {
    const calls: string[] = [];
    const counting = (name: string): Contender =>
      contender(name, async ({ index, warmUp }) => {
        calls.push(`${name}${warmUp ? "w" : index}`);
        return { values: { iops: 100 + index } };
      });
    const entries = await compare(benchCase(["a", "b", "c"].map(counting)), { samples: 3, ...quiet });
    expect(calls.join(" ")).toBe("aw bw cw a0 b0 c0 b1 c1 a1 c2 a2 b2");
    expect(entries.map(({ peer }) => peer)).toEqual(["a", "b", "c"]);
    expect(entries[0]?.samples.map(({ round, position }) => [round, position])).toEqual([
      [0, 0],
      [1, 5],
      [2, 7],
    ]);
    expect(entries[0]).toMatchObject({ median: 101, medians: { iops: 101 }, spread: { min: 100, max: 102 } });
  });

  test("never overlaps two samples", async () => {
    let running = 0;
    const exclusive = (name: string): Contender =>
      contender(name, async () => {
        running += 1;
        expect(running).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        running -= 1;
        return { values: { iops: 1 } };
      });
    const entries = await compare(benchCase(["a", "b"].map(exclusive)), { samples: 2, ...quiet });
    expect(entries.every(({ failed }) => failed === undefined)).toBe(true);
  });

  test("sets the subject against each peer, round by round, and judges its bars", async () => {
    const values = { blockferry: [120, 60, 130], nbdkit: [100, 50, 100] };
    const contenders = Object.entries(values).map(([name, iops]) =>
      contender(name, async ({ index }) => ({ values: { iops: iops[Math.max(0, index)] ?? 0 } })),
    );
    const bars: BenchCase["bars"] = [
      { kind: "ratio", metric: "iops", bound: "atLeast", limit: 1.1, against: "nbdkit" },
      { kind: "ratio", metric: "iops", bound: "atLeast", limit: 2, against: "nbdkit" },
    ];
    const [subject, peer] = await compare(benchCase(contenders, bars), { samples: 3, ...quiet });
    expect(subject?.ratios).toEqual({ nbdkit: { perRound: [1.2, 1.2, 1.3], median: 1.2 } });
    expect(subject?.bars?.map(({ verdict }) => verdict)).toEqual(["met", "missed"]);
    expect(peer?.bars).toBeUndefined();
    expect(outcomeOf([subject, peer].filter((entry) => entry !== undefined))).toMatchObject({ met: 1, missed: 1 });
  });

  test("reports a contender that is missing, and goes on without it", async () => {
    const missing = { ...contender("nbdkit", () => Promise.reject(new Error("was run"))), missing: "install it" };
    const here = contender("blockferry", async () => ({ values: { iops: 1 } }));
    const bar = { kind: "ratio", metric: "iops", bound: "atLeast", limit: 1, against: "nbdkit" } as const;
    const entries = await compare(benchCase([missing, here], [bar]), { samples: 1, ...quiet });
    expect(entries[0]).toMatchObject({ peer: "nbdkit", skipped: "install it", samples: [] });
    expect(entries[0]?.failed).toBeUndefined();
    expect(outcomeOf(entries)).toEqual({ failed: 0, met: 0, missed: 0, notJudged: 1 });
  });

  test("does not ask a contender again that failed, and keeps what it had", async () => {
    let calls = 0;
    const failing = contender("blockferry", async ({ index }) => {
      calls += 1;
      if (index === 1) throw new Error("the byte at 512 is wrong");
      return { values: { iops: 1 } };
    });
    const entries = await compare(benchCase([failing]), { samples: 5, ...quiet });
    expect(calls).toBe(3);
    expect(entries[0]).toMatchObject({ failed: "the byte at 512 is wrong", samples: [{ round: 0 }] });
    expect(outcomeOf(entries).failed).toBe(1);
  });

  test("gives no median of a value that only some samples have", async () => {
    const sometimes = contender(
      "a",
      async ({ index }): ReturnType<Measure> => ({ values: index === 1 ? { iops: 1 } : { iops: 1, extra: 2 } }),
    );
    const [entry] = await compare(benchCase([sometimes]), { samples: 2, ...quiet });
    expect(entry?.medians).toEqual({ iops: 1 });
  });
});
