import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ISLANDS_MAX, ReadCoverage } from "../../../../src/nbd/client/read-coverage.ts";
import { fcParameters } from "../../../support/seed.ts";

describe("the coverage of a read", () => {
  test("agrees with one flag per byte, whatever chunks come in whatever order", () => {
    const chunk = fc.tuple(fc.nat(63), fc.integer({ min: 1, max: 64 }));
    const property = fc.property(
      fc.integer({ min: 1, max: 64 }),
      fc.array(chunk, { maxLength: 40 }),
      (length, chunks) => {
        const coverage = new ReadCoverage(length);
        const flags = new Array<boolean>(length).fill(false);
        for (const [from, count] of chunks) {
          const start = from % length;
          const end = Math.min(start + count, length);
          const overlaps = flags.slice(start, end).includes(true);
          expect(coverage.add(start, end)).toBe(overlaps ? "overlap" : "added");
          if (overlaps) return;
          flags.fill(true, start, end);
          expect(coverage.complete).toBe(!flags.includes(false));
        }
      },
    );
    fc.assert(property, fcParameters({ local: 2000, ci: 20_000 }));
  });

  test("keeps a bounded number of islands", () => {
    const coverage = new ReadCoverage(4 * ISLANDS_MAX);
    for (let island = 0; island < ISLANDS_MAX; island++) expect(coverage.add(2 * island, 2 * island + 1)).toBe("added");
    expect(coverage.add(2 * ISLANDS_MAX, 2 * ISLANDS_MAX + 1)).toBe("too-scattered");
    // Filling gaps is still possible, and needs less room instead of more.
    expect(coverage.add(1, 2)).toBe("added");
    expect(coverage.add(2 * ISLANDS_MAX, 2 * ISLANDS_MAX + 1)).toBe("added");
  });
});
