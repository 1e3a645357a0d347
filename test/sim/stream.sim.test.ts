import { expect } from "vitest";
import { STREAM_CHAOS_POINTS } from "../../src/stream/chaos-points.ts";
import { counts, drawn, itSeeded } from "../support/seed.ts";
import { SimHangError } from "./scheduler.ts";
import { streamHistory } from "./stream-history.ts";
import { StreamError } from "./stream-target.ts";

const MUTANT_HISTORIES_MAX = 300;

itSeeded(
  "whatever happens to the source, hydration ends with the source's bytes, and no read is answered wrong",
  async (rng) => {
    const first = rng.integer(1, 1e9);
    const count = counts({ local: 80, ci: 600 });
    const startedMs = performance.now();
    let [reconnects, virtualMs, failedReads] = [0, 0, 0];
    for (let seed = first; seed < first + count; seed++) {
      try {
        const result = await streamHistory(seed);
        reconnects += result.reconnects;
        virtualMs += result.virtualMs;
        failedReads += result.failedReads;
      } catch (error) {
        throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
      }
      if (seed % 20 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
    console.info(
      `${count} histories from seed ${first} in ${seconds} s: ${reconnects} reconnects, ${failedReads} reads failed as they should, ${Math.round(virtualMs / 1000)} virtual seconds`,
    );
    expect(reconnects).toBeGreaterThan(count / 2);
  },
);

itSeeded("a history is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < 5; round++) {
    const seed = rng.integer(1, 1e9);
    expect(await streamHistory(seed)).toEqual(await streamHistory(seed));
  }
});

/** Of bandwidth and order: the histories of a shared line notice them. */
const OF_THE_LINE = ["stream/window-unbounded", "stream/hydration-before-read-ahead", "stream/pressure-ignored"];

for (const [mutant, meaning] of drawn(Object.entries(STREAM_CHAOS_POINTS), 5)) {
  if (OF_THE_LINE.includes(mutant)) continue;
  itSeeded(`the histories notice when ${meaning}`, async (rng) => {
    const first = rng.integer(1, 1e9);
    const caught = await firstCaught(first, mutant);
    expect(caught, "no seed caught it").toBeDefined();
    console.info(`${mutant}: caught at seed ${caught}, history ${(caught ?? 0) - first + 1}`);
  });
}

async function firstCaught(first: number, mutant: string): Promise<number | undefined> {
  for (let seed = first; seed < first + MUTANT_HISTORIES_MAX; seed++) {
    try {
      await streamHistory(seed, mutant);
    } catch (error) {
      if (error instanceof StreamError || error instanceof SimHangError) return seed;
      throw error;
    }
  }
  return undefined;
}
