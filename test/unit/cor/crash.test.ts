import { describe, expect, it } from "vitest";
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import { counts } from "../../support/seed.ts";
import { type Exploration, explore, histories, type Operation } from "./crash-explorer.ts";

function* cases(lengthMax: number): Generator<readonly [operations: Operation[], together: boolean]> {
  for (let length = 1; length <= lengthMax; length++) {
    for (const operations of histories(length)) {
      yield [operations, false];
      yield [operations, true];
    }
  }
}

/** Every history of up to `lengthMax` operations, issued one after another and at once, until something is wrong. */
async function exploreAll(lengthMax: number, mutants: readonly CorChaosPoint[] = []): Promise<Exploration> {
  let [count, crashes] = [0, 0];
  for (const [operations, together] of cases(lengthMax)) {
    const { crashes: more, wrong } = await explore(operations, together, mutants);
    count += 1;
    crashes += more;
    if (wrong !== undefined) return { histories: count, crashes, wrong };
  }
  return { histories: count, crashes, wrong: undefined };
}

describe("crashes of an overlay", () => {
  const lengthMax = counts({ local: 2, ci: 3 });

  it(`loses nothing that was acknowledged, whatever is lost, in every history of up to ${lengthMax} operations`, async () => {
    const { wrong, crashes, histories: count } = await exploreAll(lengthMax);
    expect(wrong).toBeUndefined();
    expect(count).toBe(2 * (8 + 64 + (lengthMax === 3 ? 512 : 0)));
    expect(crashes).toBeGreaterThan(count);
    console.info(`${count} histories, ${crashes} crashes`);
  }, 120_000);

  it.each<CorChaosPoint>([
    "cor/map-before-data",
    "cor/ack-before-map-sync",
    "cor/flush-shortcut-always",
    "cor/partial-trim-sets-bit",
    "cor/stale-slot",
    "cor/log-skipped",
    "cor/live-map",
    "cor/seal-after-barrier",
  ])(
    "shows the mutant %s",
    async (mutant) => {
      const { wrong } = await exploreAll(3, [mutant]);
      expect(wrong).toBeDefined();
    },
    60_000,
  );
});
