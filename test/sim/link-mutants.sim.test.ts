import { expect, test } from "vitest";
import { LINK_CHAOS_POINTS, type LinkChaosPoint } from "../../src/link/chaos-points.ts";
import { drawn, itSeeded } from "../support/seed.ts";
import { linkHistory } from "./link-history.ts";
import { LinkOracleError } from "./link-talker.ts";
import { SimHangError } from "./scheduler.ts";

const HISTORIES_MAX = 400;

const points: readonly LinkChaosPoint[] = [
  "link/replay-from-wrong-offset",
  "link/replay-from-credit",
  "link/credit-counted-twice",
  "link/received-as-consumed",
  "link/lost-wake-up",
  "link/close-before-data",
  "link/restart-unnoticed",
];

/** What loses no byte, but comes too late or costs too much: link-order.sim.test.ts. */
const elsewhere: readonly LinkChaosPoint[] = [
  "link/priority-inverted",
  "link/background-starves",
  "link/paused-reader-is-credited",
];

test("every mutant of the link is tried", () => {
  expect([...points, ...elsewhere].toSorted()).toEqual(Object.keys(LINK_CHAOS_POINTS).toSorted());
});

for (const point of drawn(points, 2)) {
  itSeeded(`the histories of a link notice the mutant ${point}`, async (rng) => {
    const first = rng.integer(1, 1e9);
    for (let seed = first; seed < first + HISTORIES_MAX; seed++) {
      const caught = await linkHistory(seed, { mutants: [point] }).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (caught === undefined) continue;
      console.info(`${point}: caught at seed ${seed}, history ${seed - first + 1}: ${String(caught)}`);
      expect(caught instanceof LinkOracleError || caught instanceof SimHangError, String(caught)).toBe(true);
      return;
    }
    expect.unreachable("no seed caught it");
  });
}
