import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { median, percentile, spread, withOmittedWaits } from "../../../bench/lib/stats.ts";
import { fcParameters } from "../../support/seed.ts";

const RUNS = { local: 200, ci: 5000 };
const samples = fc.array(fc.double({ min: -1e9, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 40 });

describe("the median", () => {
  test("is the middle sample, or the mean of the two in the middle", () => {
    expect(median([9, 1, 5])).toBe(5);
    expect(median([9, 1, 5, 7])).toBe(6);
    expect(median([3])).toBe(3);
  });

  test("sorts numbers as numbers, and leaves the samples in their order", () => {
    const values = [100, 20, 3];
    expect(median(values)).toBe(20);
    expect(values).toEqual([100, 20, 3]);
  });

  test("has as many samples below it as above it", () => {
    const property = fc.property(samples, (values) => {
      const middle = median(values);
      const below = values.filter((value) => value < middle).length;
      const above = values.filter((value) => value > middle).length;
      expect(Math.max(below, above)).toBeLessThanOrEqual(values.length / 2);
    });
    fc.assert(property, fcParameters(RUNS));
  });

  test("of nothing, or of what is not a number, is refused", () => {
    expect(() => median([])).toThrow(/nothing/);
    expect(() => median([1, Number.NaN])).toThrow(/not a number/);
  });
});

describe("a percentile", () => {
  test("is the sample that so many do not exceed", () => {
    const hundred = Array.from({ length: 100 }, (_, index) => 100 - index);
    expect(percentile(hundred, 0.5)).toBe(50);
    expect(percentile(hundred, 0.99)).toBe(99);
    expect(percentile(hundred, 1)).toBe(100);
    expect(percentile(hundred, 0)).toBe(1);
    expect(percentile([7], 0.999)).toBe(7);
  });

  test("takes a fraction, not per cent", () => {
    expect(() => percentile([1], 99)).toThrow(/between 0 and 1/);
  });
});

test("the spread is what lies between the extremes, in parts of the median", () => {
  expect(spread([90, 100, 130])).toEqual({ min: 90, max: 130, relative: 0.4 });
  expect(spread([5, 5])).toEqual({ min: 5, max: 5, relative: 0 });
});

describe("waits that a waiting client did not notice", () => {
  test("are added, one per interval that the stall lasted", () => {
    expect(withOmittedWaits([10, 3500, 20], 1000)).toEqual([10, 3500, 2500, 1500, 20]);
  });

  test("are not added where there was no stall", () => {
    expect(withOmittedWaits([10, 999, 1000], 1000)).toEqual([10, 999, 1000]);
  });

  test("move the 99th percentile of a client that met one long stall", () => {
    const latencies = [...Array.from({ length: 999 }, () => 50), 100_000];
    expect(percentile(latencies, 0.99)).toBe(50);
    expect(percentile(withOmittedWaits(latencies, 1000), 0.99)).toBeGreaterThan(80_000);
  });
});
