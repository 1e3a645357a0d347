/**
 * The contract of `BlockDevice`, executable. Every implementation runs all rules that apply to it:
 *
 *     for (const rule of conformanceRules) {
 *       if (applies(rule, target)) await rule.run(target, seed);
 *     }
 *
 * Rules throw `AssertionError` and know no test framework. For each rule there is a deliberately broken device that it
 * must catch (`test/unit/block/`); a new rule brings its own.
 */
import { dataRules } from "./conformance/data.ts";
import { extentRules } from "./conformance/extents.ts";
import { lifeRules } from "./conformance/life.ts";
import { randomRules } from "./conformance/random.ts";
import { rangeRules } from "./conformance/ranges.ts";
import type { ConformanceRule } from "./conformance/rule.ts";
import { zeroRules } from "./conformance/zeroes.ts";

export const conformanceRules: readonly ConformanceRule[] = [
  ...rangeRules,
  ...dataRules,
  ...zeroRules,
  ...extentRules,
  ...lifeRules,
  ...randomRules,
];
