import { expect, test } from "vitest";
import { QED_CHAOS_POINTS } from "../../src/image/qed/chaos-points.ts";
import { counts, drawn, itSeeded, type Prng } from "../support/seed.ts";
import { OracleError } from "./oracle.ts";
import { QedTablesError, qedHistory } from "./qed-history.ts";
import { withoutStacks } from "./without-stacks.ts";

/** Of many histories on a busy machine. */
const TIMEOUT_MS = 240_000;
/** Histories after which a mutant must have been caught. */
const MUTANT_HISTORIES_MAX = 20_000;
/** Histories that have failed, and what had been wrong. */
const ONCE_FAILED: readonly [seed: number, what: string][] = [
  [485_130_568, "space that a failed write had used was zeroed, but not durably, before it was used again"],
  [44_568_398, "tables that were dropped left their NEED_CHECK to be cleared when others had been loaded"],
  [3_100_001_712, "the history took a kill for harmless during which a sync had failed"],
];

async function breathe(seed: number): Promise<void> {
  if (seed % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
}

itSeeded(
  "a QED image loses nothing it acknowledged, whatever the crash, and a crash leaves lost space at most",
  async (rng) => {
    const first = rng.integer(1, 1e9);
    const count = counts({ local: 300, ci: 20_000 });
    const startedMs = performance.now();
    const seen = { requests: 0, checks: 0, cleared: 0, lives: 0 };
    for (let seed = first; seed < first + count; seed++) {
      const result = await withoutStacks(() => qedHistory(seed)).catch((error: unknown) => {
        throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
      });
      seen.requests += result.requests;
      seen.checks += result.checks;
      seen.cleared += result.cleared;
      seen.lives += result.ends.length;
      await breathe(seed);
    }
    const perSecond = Math.round(count / ((performance.now() - startedMs) / 1000));
    console.info(`${count} histories from seed ${first}: ${JSON.stringify(seen)}, ${perSecond} histories/s`);
    expect(seen.requests).toBeGreaterThan(count);
    // The histories do get where it matters.
    expect(seen.checks).toBeGreaterThan(count / 10);
    expect(seen.cleared).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);

for (const [seed, what] of ONCE_FAILED) {
  test(`history ${seed} passes, which had failed because ${what}`, async () => {
    await qedHistory(seed);
  });
}

itSeeded("a history is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < counts({ local: 10, ci: 30 }); round++) {
    const seed = rng.integer(1, 1e9);
    const once = await qedHistory(seed);
    expect(await qedHistory(seed)).toEqual(once);
  }
});

for (const [point, what] of drawn(Object.entries(QED_CHAOS_POINTS), 3)) {
  const title = `it is noticed when ${what}`;
  const body = async (rng: Prng): Promise<void> => {
    const first = rng.integer(1, 1e9);
    const caught = await withoutStacks(() => firstCaught(first, point));
    expect(caught, "no history caught it").toBeDefined();
    const { seed = 0, how = "" } = caught ?? {};
    console.info(`${point}: caught at seed ${seed}, history ${seed - first + 1}: ${how}`);
  };
  itSeeded(title, body, TIMEOUT_MS);
}

async function firstCaught(first: number, point: string): Promise<{ seed: number; how: string } | undefined> {
  for (let seed = first; seed < first + MUTANT_HISTORIES_MAX; seed++) {
    try {
      await qedHistory(seed, { chaos: new Set([point]) });
    } catch (error) {
      if (!(error instanceof OracleError || error instanceof QedTablesError)) throw error;
      return { seed, how: error.message.slice(0, 120) };
    }
    await breathe(seed);
  }
  return undefined;
}
