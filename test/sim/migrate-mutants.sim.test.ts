import { expect, test } from "vitest";
import { MIGRATE_CHAOS_POINTS, type MigrateChaosPoint } from "../../src/migrate/chaos-points.ts";
import { drawn, itSeeded } from "../support/seed.ts";
import { type Fault, migrateHistory, type Order, type Story } from "./migrate-history.ts";
import { WHENS, type When } from "./migrate-steps.ts";
import type { MigrateWorldOptions } from "./migrate-world.ts";

const HISTORIES_MAX = 1500;
const TIMEOUT_MS = 120_000;

interface Where {
  readonly story: Story;
  /** None: it shows by itself. */
  readonly faults?: readonly Fault[];
  readonly stepMax?: number;
  readonly whens?: readonly When[];
  readonly world?: MigrateWorldOptions;
}

/** Where each of them shows: a story, and the faults that bring it to light. */
const WHERE: Partial<Record<MigrateChaosPoint, Where>> = {
  "migrate/grant-before-fence": { story: "handover", faults: ["power source"], stepMax: 12, world: { requests: 3 } },
  "migrate/active-before-dirty-set": { story: "handover" },
  "migrate/clean-bit-after-read": {
    ...{ story: "handover", world: { latencyMs: 40, requests: 10, nowRefused: 1, mode: "hybrid" } },
  },
  "migrate/release-before-complete": { story: "release", faults: ["power dest"], stepMax: 30, world: { requests: 3 } },
  "migrate/tracking-ignored": { story: "precopy", faults: ["kill source"] },
  "migrate/held-writes-fail-on-thaw": { story: "return", world: { requests: 150 } },
  "migrate/owner-before-returned": { story: "return", faults: ["power dest", "power both"] },
  "migrate/first-write-not-noted": { story: "contest", faults: ["kill dest"], stepMax: 20 },
  "migrate/records-not-rewritten": {
    ...{ story: "handover", faults: ["twice source"], stepMax: 8, whens: ["before"], world: { requests: 3 } },
  },
};

/**
 * A pull that fails while everything else goes on: test/unit/migrate/precopy.test.ts. An order, which is no matter of right
 * or wrong: test/unit/migrate/heat.test.ts.
 */
const ELSEWHERE: readonly MigrateChaosPoint[] = ["migrate/landed-kept-while-pulling", "migrate/heat-ignored"];

test("every mutant of a migration is tried", () => {
  const tried = [...Object.keys(WHERE), ...ELSEWHERE].toSorted();
  expect(tried).toEqual(Object.keys(MIGRATE_CHAOS_POINTS).toSorted());
});

for (const [mutant, where] of drawn(Object.entries(WHERE), 3)) {
  const { story, faults, stepMax = 60, whens = WHENS, world: options = {} } = where;
  const point = mutant as MigrateChaosPoint;
  itSeeded(
    `histories of a migration notice the mutant ${mutant}: ${MIGRATE_CHAOS_POINTS[point]}`,
    async (rng) => {
      const first = rng.integer(1, 1e9);
      for (let seed = first; seed < first + HISTORIES_MAX; seed++) {
        const fault = faults && { step: rng.integer(0, stepMax), when: rng.pick(whens), what: rng.pick(faults) };
        const order: Order = fault === undefined ? { story } : { story, fault };
        const caught = await migrateHistory(seed, order, { ...options, mutants: [point] }).then(
          () => undefined,
          (error: unknown) => error,
        );
        if (seed % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
        if (caught === undefined) continue;
        // It is the mutant that is wrong, not the history.
        await migrateHistory(seed, order, options);
        const why = String(caught).slice(0, 120);
        console.info(`${mutant}: died at seed ${seed}, history ${seed - first + 1}, ${JSON.stringify(order)}: ${why}`);
        return;
      }
      expect.unreachable("no history showed it");
    },
    TIMEOUT_MS,
  );
}
