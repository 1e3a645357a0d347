/**
 * Many histories of an overlay within a time box. `BLOCKFERRY_SIM_SECONDS` sets the box, `BLOCKFERRY_HISTORY` runs one
 * seed alone.
 */
import { expect } from "vitest";
import { counts, itSeeded } from "../support/seed.ts";
import { overlayHistory } from "./overlay-history.ts";

const SECONDS = Number(process.env["BLOCKFERRY_SIM_SECONDS"] ?? counts({ local: 4, ci: 120 }));
const ONLY = process.env["BLOCKFERRY_HISTORY"];
/** Crashes that a slow machine simulates in a second, at least. Two files of 120 s make 100,000 of it. */
const CRASHES_PER_SECOND_MIN = counts({ local: 50, ci: 420 });

export function replayCommand(seed: number): string {
  return `BLOCKFERRY_HISTORY=${seed} npx vitest run --project sim test/sim/overlay-crashes-1`;
}

/** Errors without stack traces while `work` runs: capturing them takes half of the time of a history. */
export async function withoutStacks<T>(work: () => Promise<T>): Promise<T> {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 0;
  try {
    return await work();
  } finally {
    Error.stackTraceLimit = limit;
  }
}

interface Totals {
  histories: number;
  powerLosses: number;
  kills: number;
  requests: number;
}

/** Runs the history; a failure says how to repeat it. */
export async function runHistory(seed: number, totals: Totals): Promise<void> {
  try {
    const { powerLosses, kills, requests } = await overlayHistory(seed);
    totals.histories += 1;
    totals.powerLosses += powerLosses;
    totals.kills += kills;
    totals.requests += requests;
  } catch (error) {
    throw new Error(`history ${seed} failed: ${String(error)}; repeat with: ${replayCommand(seed)}`, { cause: error });
  }
}

/** Defines a test that fills the time box; several files do, so that several processes work. */
export function itSurvivesCrashes(part: number): void {
  itSeeded(
    `an overlay loses nothing it acknowledged and invents nothing, whatever the crash, part ${part}`,
    async (rng) => {
      const totals: Totals = { histories: 0, powerLosses: 0, kills: 0, requests: 0 };
      if (ONLY !== undefined) {
        await runHistory(Number(ONLY), totals);
        return;
      }
      const first = rng.integer(1, 1e9);
      const startedMs = performance.now();
      const elapsedSeconds = (): number => (performance.now() - startedMs) / 1000;
      while (elapsedSeconds() < SECONDS) {
        await withoutStacks(async () => {
          for (let round = 0; round < 50; round++) await runHistory(first + totals.histories, totals);
        });
        await new Promise((resolve) => setImmediate(resolve));
      }
      const crashes = totals.powerLosses + totals.kills;
      const perSecond = Math.round(totals.histories / elapsedSeconds());
      console.info(
        `${crashes} crashes (${totals.powerLosses} of the power, ${totals.kills} of the process) in ${totals.histories} ` +
          `histories of ${totals.requests} requests from seed ${first}: ${perSecond} histories/s`,
      );
      expect(totals.powerLosses).toBeGreaterThan(0);
      expect(totals.kills).toBeGreaterThan(0);
      expect(crashes).toBeGreaterThan(CRASHES_PER_SECOND_MIN * SECONDS);
    },
    (SECONDS + 60) * 1000,
  );
}
