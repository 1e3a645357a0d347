/**
 * Many histories of an overlay within a time box. `BLOCKFERRY_SIM_SECONDS` sets the box, `BLOCKFERRY_HISTORY` runs one
 * seed alone.
 */
import { expect } from "vitest";
import { counts, itSeeded } from "../support/seed.ts";
import { overlayHistory } from "./overlay-history.ts";
import { withoutStacks } from "./without-stacks.ts";

const SECONDS = Number(process.env["BLOCKFERRY_SIM_SECONDS"] ?? counts({ local: 1, ci: 120 }));
const ONLY = process.env["BLOCKFERRY_HISTORY"];
/** Crashes that a slow machine simulates in a second, at least. Two files of 120 s make 100,000 of it. */
const CRASHES_PER_SECOND_MIN = counts({ local: 50, ci: 420 });

/** Overlays of one format. */
export interface OverlayBulk {
  /** Of the format. */
  readonly name: string;
  /** Where its test is. */
  readonly file: string;
  readonly seconds: number;
  readonly crashesPerSecondMin: number;
}

const RAW: OverlayBulk = {
  name: "raw",
  file: "overlay-crashes-1",
  seconds: SECONDS,
  crashesPerSecondMin: CRASHES_PER_SECOND_MIN,
};

/** Histories have files of several times the size, and every image is checked after every crash. */
export function tableOverlays(name: string): OverlayBulk {
  const seconds = Math.min(SECONDS, 45);
  return { name, file: `${name}-overlay`, seconds, crashesPerSecondMin: counts({ local: 20, ci: 80 }) };
}

export function replayCommand(seed: number, { file }: OverlayBulk = RAW): string {
  return `BLOCKFERRY_HISTORY=${seed} npx vitest run --project sim test/sim/${file}`;
}

interface Totals {
  histories: number;
  powerLosses: number;
  kills: number;
  requests: number;
}

/** Runs the history; a failure says how to repeat it. */
export async function runHistory(seed: number, totals: Totals, format: OverlayBulk = RAW): Promise<void> {
  try {
    const { powerLosses, kills, requests } = await overlayHistory(seed, [], format.name);
    totals.histories += 1;
    totals.powerLosses += powerLosses;
    totals.kills += kills;
    totals.requests += requests;
  } catch (error) {
    throw new Error(`history ${seed} failed: ${String(error)}; repeat with: ${replayCommand(seed, format)}`, {
      cause: error,
    });
  }
}

/** Defines a test that fills the time box; several files do, so that several processes work. */
export function itSurvivesCrashes(part: number, format: OverlayBulk = RAW): void {
  const { name, seconds, crashesPerSecondMin } = format;
  const what = name === "raw" ? "an overlay" : `a ${name} overlay`;
  itSeeded(
    `${what} loses nothing it acknowledged and invents nothing, whatever the crash, part ${part}`,
    async (rng) => {
      const totals: Totals = { histories: 0, powerLosses: 0, kills: 0, requests: 0 };
      if (ONLY !== undefined) {
        await runHistory(Number(ONLY), totals, format);
        return;
      }
      const first = rng.integer(1, 1e9);
      const startedMs = performance.now();
      const elapsedSeconds = (): number => (performance.now() - startedMs) / 1000;
      while (elapsedSeconds() < seconds) {
        await withoutStacks(async () => {
          for (let round = 0; round < 50; round++) await runHistory(first + totals.histories, totals, format);
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
      expect(crashes).toBeGreaterThan(crashesPerSecondMin * seconds);
    },
    (seconds + 60) * 1000,
  );
}

const MUTANT_HISTORIES_MAX = 30_000;

/** Defines a test that a mutant must not survive; `failingLives`: for one that only failed syncs bring to light. */
export function itCatches(format: OverlayBulk, point: string, what: string, failingLives?: number): void {
  const history = (seed: number, mutants: readonly string[]) =>
    overlayHistory(seed, mutants, format.name, failingLives);
  itSeeded(
    `histories of a ${format.name} overlay show it when ${what}`,
    async (rng) => {
      const first = rng.integer(1, 1e9);
      const death = await withoutStacks(() => firstDeath(first, (seed) => history(seed, [point])));
      expect(death, "no history showed it").toBeDefined();
      if (death === undefined) return;
      // It is the mutant that is wrong, not the seed.
      await history(death.seed, []);
      console.info(
        `${point}: died at seed ${death.seed}, history ${death.seed - first + 1}: ${death.why.slice(0, 90)}`,
      );
    },
    240_000,
  );
}

async function firstDeath(
  first: number,
  history: (seed: number) => Promise<unknown>,
): Promise<{ seed: number; why: string } | undefined> {
  for (let seed = first; seed < first + MUTANT_HISTORIES_MAX; seed++) {
    if (seed % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
    try {
      await history(seed);
    } catch (error) {
      return { seed, why: String(error) };
    }
  }
  return undefined;
}
