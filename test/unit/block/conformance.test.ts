/** The contract itself: every rule notices the devices that were built to break it. */

import { AssertionError } from "node:assert";
import { describe, expect, test } from "vitest";
import { applies } from "../../../src/block/conformance/rule.ts";
import { conformanceRules } from "../../../src/block/conformance.ts";
import { BlockError } from "../../../src/block/error.ts";
import { runSeed } from "../../support/seed.ts";
import { type Doubles, dataDoubles, rangeDoubles, zeroDoubles } from "./doubles-data.ts";
import { extentDoubles, lifeDoubles, randomDoubles } from "./doubles-rest.ts";

const doubles: Doubles = {
  ...rangeDoubles,
  ...dataDoubles,
  ...zeroDoubles,
  ...extentDoubles,
  ...lifeDoubles,
  ...randomDoubles,
};

test("every rule has a device that breaks it, and every broken device has a rule", () => {
  expect(Object.keys(doubles).sort()).toEqual(conformanceRules.map((rule) => rule.title).sort());
  for (const [title, broken] of Object.entries(doubles)) expect(Object.keys(broken), title).not.toHaveLength(0);
});

for (const rule of conformanceRules) {
  describe(`the rule "${rule.title}"`, () => {
    for (const [flaw, target] of Object.entries(doubles[rule.title] ?? {})) {
      test(`notices a device that is wrong in this: ${flaw}`, async () => {
        expect(applies(rule, target)).toBe(true);
        const seed = runSeed() % 2 ** 32;
        const noticed: unknown = await rule.run(target, seed).then(
          () => "nothing",
          (error: unknown) => error,
        );
        // Anything else would be a fault of the rule or of the double.
        expect(noticed instanceof AssertionError || noticed instanceof BlockError, String(noticed)).toBe(true);
      });
    }
  });
}
