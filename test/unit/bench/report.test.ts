import { stripVTControlCharacters } from "node:util";
import { describe, expect, test } from "vitest";
import { compare } from "../../../bench/lib/compare.ts";
import { caseLines, figure } from "../../../bench/lib/report.ts";
import type { BenchCase } from "../../../bench/lib/suite.ts";

const contender = (name: string, iops: readonly number[]) => ({
  name,
  measure: async ({ index }: { index: number }) => ({
    values: { iops: iops[Math.max(0, index)] ?? 0 },
    notes: iops.length > 1 && index === 0 ? ["fio was slow"] : [],
  }),
});

async function lines(): Promise<string[]> {
  const benchCase: BenchCase = {
    ...{ name: "randread", what: "random reads" },
    metrics: [
      { name: "iops", better: "higher", heading: "k op/s", divisor: 1000 },
      { name: "p50Us", better: "lower", heading: "p50 µs" },
    ],
    contenders: [
      contender("blockferry", [120_000, 90_000]),
      contender("nbdkit", [100_000, 100_000]),
      { ...contender("qemu-nbd", []), missing: "not installed; run scripts/install-peers" },
    ],
    bars: [
      { kind: "ratio", metric: "iops", bound: "atLeast", limit: 1.1, against: "nbdkit" },
      { kind: "ratio", metric: "iops", bound: "atLeast", limit: 2, against: "qemu-nbd" },
    ],
  };
  const entries = await compare(benchCase, { samples: 2, onSample: () => {} });
  return caseLines(benchCase, entries).map(stripVTControlCharacters);
}

describe("the table", () => {
  test("shows medians, extremes and noise, and leaves out columns that nobody has", async () => {
    const text = (await lines()).join("\n");
    expect(text).toMatch(/blockferry +105 +90\.0–120 +29 %!/);
    expect(text).toMatch(/nbdkit +100 +100–100 +0 %/);
    expect(text).not.toContain("p50 µs");
  });

  test("shows every ratio behind a verdict, also those against it", async () => {
    const text = (await lines()).join("\n");
    expect(text).toMatch(/MISSED +iops ≥ 1\.1 × nbdkit: 1\.05 +\(1\.20 0\.90\)/);
    expect(text).toMatch(/iops blockferry \/ nbdkit: 1\.05 +\(1\.20 0\.90\)/);
  });

  test("never leaves out who was missing or what was noted", async () => {
    const text = (await lines()).join("\n");
    expect(text).toContain("skipped qemu-nbd: not installed; run scripts/install-peers");
    expect(text).toMatch(/NOT JUDGED +iops ≥ 2 × qemu-nbd: no samples of qemu-nbd/);
    expect(text).toContain("note blockferry (1 of 2): fio was slow");
  });
});

test("a figure has about three digits and no exponent", () => {
  expect([0, 0.123, 1.456, 12.34, 123.4, 1234567].map(figure)).toEqual(["0", "0.12", "1.46", "12.3", "123", "1234567"]);
});
