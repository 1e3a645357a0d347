import { expect, test } from "vitest";
import { ImageOpenError } from "../../src/image/errors.ts";
import { QCOW2_CHAOS_POINTS } from "../../src/image/qcow2/chaos-points.ts";
import { counts, drawn, itSeeded, type Prng } from "../support/seed.ts";
import { OracleError } from "./oracle.ts";
import { type Qcow2HistoryOptions, Qcow2TablesError, qcow2History } from "./qcow2-history.ts";
import { withoutStacks } from "./without-stacks.ts";

/** Of many histories on a busy machine. */
const TIMEOUT_MS = 240_000;
/** Histories after which a mutant must have been caught. */
const MUTANT_HISTORIES_MAX = 20_000;
/** Where those are looked for that show in few histories of the usual kind. */
const WHERE: Readonly<Record<string, Qcow2HistoryOptions["odds"]>> = {
  "qcow2/table-unsynced": { stormy: 0.8, small: 1, empty: 0, tableFull: 1 },
  "qcow2/repair-unsynced": { dirty: 0.9, stormy: 0.6 },
  "qcow2/writes-not-drained": { crowded: 1, stormy: 0, empty: 1, dirty: 0 },
};
/** Histories that have failed, and what had been wrong. */
const ONCE_FAILED: readonly [seed: number, what: string][] = [
  [3_200_013_417, "the history took a kill for harmless during which a sync had failed"],
];

async function breathe(seed: number): Promise<void> {
  if (seed % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
}

itSeeded(
  "a qcow2 image loses nothing it acknowledged, whatever the crash, and a crash leaves lost space at most",
  async (rng) => {
    const first = rng.integer(1, 1e9);
    const count = counts({ local: 120, ci: 20_000 });
    const startedMs = performance.now();
    const seen = { requests: 0, leaks: 0, lives: 0, dirtied: 0, checks: 0 };
    for (let seed = first; seed < first + count; seed++) {
      const result = await withoutStacks(() => qcow2History(seed)).catch((error: unknown) => {
        throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
      });
      seen.requests += result.requests;
      seen.leaks += result.leaks;
      seen.dirtied += result.dirtied;
      seen.checks += result.checks;
      seen.lives += result.ends.length;
      await breathe(seed);
    }
    const perSecond = Math.round(count / ((performance.now() - startedMs) / 1000));
    console.info(`${count} histories from seed ${first}: ${JSON.stringify(seen)}, ${perSecond} histories/s`);
    expect(seen.requests).toBeGreaterThan(count);
    // The histories do get where it matters.
    expect(seen.leaks).toBeGreaterThan(count / 10);
    expect(seen.checks).toBeGreaterThan(count / 10);
  },
  TIMEOUT_MS,
);

for (const [seed, what] of ONCE_FAILED) {
  test(`history ${seed} passes, which had failed because ${what}`, async () => {
    await qcow2History(seed);
  });
}

itSeeded("a history is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < counts({ local: 10, ci: 30 }); round++) {
    const seed = rng.integer(1, 1e9);
    const once = await qcow2History(seed);
    expect(await qcow2History(seed)).toEqual(once);
  }
});

for (const [point, what] of drawn(Object.entries(QCOW2_CHAOS_POINTS), 3)) {
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

/** A mutant may leave a header that cannot be right. */
function isComplaint(error: unknown): error is Error {
  return error instanceof OracleError || error instanceof Qcow2TablesError || error instanceof ImageOpenError;
}

async function firstCaught(first: number, point: string): Promise<{ seed: number; how: string } | undefined> {
  for (let seed = first; seed < first + MUTANT_HISTORIES_MAX; seed++) {
    try {
      await qcow2History(seed, { chaos: new Set([point]), odds: WHERE[point] ?? {} });
    } catch (error) {
      if (!isComplaint(error)) throw error;
      return { seed, how: error.message.slice(0, 120) };
    }
    await breathe(seed);
  }
  return undefined;
}
