import { expect } from "vitest";
import { COR_CHAOS_POINTS, type CorChaosPoint } from "../../src/cor/chaos-points.ts";
import { counts, drawn, itSeeded } from "../support/seed.ts";
import { replayCommand } from "./overlay-bulk.ts";
import { overlayHistory } from "./overlay-history.ts";
import { withoutStacks } from "./without-stacks.ts";

const HISTORIES_MAX = 60_000;
const TIMEOUT_MS = 240_000;
/** What only a failed sync brings to light is looked for where syncs fail in many lives. */
const FAILING_LIVES: Partial<Record<CorChaosPoint, number>> = {
  "cor/retry-sync": 0.9,
  "cor/rewrite-skipped": 0.5,
  "cor/replay-not-rewritten": 0.9,
};

itSeeded("an overlay's history is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < counts({ local: 10, ci: 40 }); round++) {
    const seed = rng.integer(1, 1e9);
    const once = await overlayHistory(seed);
    expect(await overlayHistory(seed), replayCommand(seed)).toEqual(once);
  }
});

async function firstDeath(first: number, mutant: CorChaosPoint): Promise<{ seed: number; why: string } | undefined> {
  for (let seed = first; seed < first + HISTORIES_MAX; seed++) {
    if (seed % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
    try {
      await overlayHistory(seed, [mutant], "raw", FAILING_LIVES[mutant]);
    } catch (error) {
      return { seed, why: String(error) };
    }
  }
  return undefined;
}

for (const mutant of drawn(Object.keys(COR_CHAOS_POINTS) as CorChaosPoint[], 6)) {
  itSeeded(
    `histories of an overlay show the mutant ${mutant}: ${COR_CHAOS_POINTS[mutant]}`,
    async (rng) => {
      const first = rng.integer(1, 1e9);
      const death = await withoutStacks(() => firstDeath(first, mutant));
      expect(death, "no history showed it").toBeDefined();
      if (death === undefined) return;
      // It is the mutant that is wrong, not the seed.
      await overlayHistory(death.seed, [], "raw", FAILING_LIVES[mutant]);
      console.info(
        `${mutant}: died at seed ${death.seed}, history ${death.seed - first + 1}: ${death.why.slice(0, 90)}`,
      );
    },
    TIMEOUT_MS,
  );
}
