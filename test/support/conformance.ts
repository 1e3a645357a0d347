/** Runs the contract of `BlockDevice` against an implementation: one test for each rule that applies to it. */
import { describe } from "vitest";
import { applies, type ConformanceTarget } from "../../src/block/conformance/rule.ts";
import { conformanceRules } from "../../src/block/conformance.ts";
import { runSeed } from "./seed.ts";
import { itWith } from "./tools.ts";

export interface ConformanceOptions {
  /** Programs that the target needs. */
  readonly tools?: readonly string[];
  readonly timeoutMs?: number;
}

/**
 * Inside a test file: `describeConformance("a raw image", target)`. Rules that do not apply are not listed. A failure is
 * repeated with `BLOCKFERRY_SEED`, which the run prints.
 */
export function describeConformance(
  name: string,
  target: ConformanceTarget,
  { tools = [], timeoutMs }: ConformanceOptions = {},
): void {
  describe(`${name} keeps the contract of a block device`, () => {
    for (const rule of conformanceRules.filter((candidate) => applies(candidate, target))) {
      itWith(tools, rule.title, () => rule.run(target, runSeed() % 2 ** 32), timeoutMs);
    }
  });
}
