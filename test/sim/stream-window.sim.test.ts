import { expect } from "vitest";
import { counts, itSeeded } from "../support/seed.ts";
import { SimHangError } from "./scheduler.ts";
import { StreamError } from "./stream-target.ts";
import { windowHistory } from "./stream-window-history.ts";

const MUTANT_HISTORIES_MAX = 12;

itSeeded("the window follows the line, keeps it full and its queue short, and nobody starves", async (rng) => {
  const first = rng.integer(1, 1e9);
  const count = counts({ local: 8, ci: 60 });
  let [demandReads, longestMs] = [0, 0];
  for (let seed = first; seed < first + count; seed++) {
    try {
      const result = await windowHistory(seed);
      demandReads += result.demandReads;
      longestMs = Math.max(longestMs, result.longestDemandMs);
    } catch (error) {
      throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
    }
  }
  console.info(`${count} histories from seed ${first}: ${demandReads} demand reads, the longest ${longestMs} ms`);
  expect(demandReads).toBeGreaterThan(count * 100);
});

const MUTANTS = [
  "stream/window-wake-up-lost",
  "stream/window-unbounded",
  "stream/hydration-before-read-ahead",
  "stream/pressure-ignored",
];

for (const mutant of MUTANTS) {
  itSeeded(`the histories of a shared line notice the mutant ${mutant}`, async (rng) => {
    const first = rng.integer(1, 1e9);
    let caught: number | undefined;
    for (let seed = first; seed < first + MUTANT_HISTORIES_MAX && caught === undefined; seed++) {
      try {
        await windowHistory(seed, mutant);
      } catch (error) {
        if (!(error instanceof StreamError || error instanceof SimHangError)) throw error;
        caught = seed;
        console.info(`${mutant}: caught at seed ${seed}, history ${seed - first + 1}: ${error.message}`);
      }
    }
    expect(caught, "no seed caught it").toBeDefined();
  });
}
