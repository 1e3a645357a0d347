import { expect } from "vitest";
import { counts, itSeeded, type Prng } from "../support/seed.ts";
import { FAULTS, migrateHistory, type Order, STORIES, type Story } from "./migrate-history.ts";
import { WHENS } from "./migrate-steps.ts";
import type { MigrateWorldOptions } from "./migrate-world.ts";

const TIMEOUT_MS = 120_000;

async function play(seed: number, order: Order, options: MigrateWorldOptions = {}): ReturnType<typeof migrateHistory> {
  try {
    return await migrateHistory(seed, order, options);
  } catch (error) {
    const how = JSON.stringify({ seed, order, options });
    throw new Error(`history ${how} failed: ${String(error)}`, { cause: error });
  }
}

/** Those that decide who owns the disks, and those that only prepare or follow. */
const DECISIVE: readonly Story[] = ["handover", "return", "cancel"];

/** Every step of a story, each with every fault at every instant: in an order that the seed decides. */
async function ordersOf(rng: Prng, story: Story): Promise<{ readonly seed: number; readonly orders: Order[] }> {
  let seed = 0;
  let steps: readonly unknown[] = [];
  // A story that is over before it has begun shows nothing.
  for (let tries = 0; steps.length <= 3; tries++) {
    expect(tries).toBeLessThan(20);
    seed = rng.integer(1, 1e9);
    ({ steps } = await play(seed, { story }));
  }
  const orders: Order[] = [];
  for (let step = 0; step < steps.length; step++) {
    for (const when of WHENS) for (const what of FAULTS) orders.push({ story, fault: { step, when, what } });
  }
  return { seed, orders: rng.shuffle(orders) };
}

for (const story of STORIES) {
  itSeeded(
    `whatever fails at whichever step of the ${story}, there is one owner in the end, never two, with all that was acknowledged`,
    async (rng) => {
      const { seed, orders } = await ordersOf(rng, story);
      const timeMs = counts({ local: 400, ci: DECISIVE.includes(story) ? 12_000 : 3000 });
      const startedMs = performance.now();
      let [count, fired] = [0, 0];
      for (const order of orders) {
        if (performance.now() - startedMs > timeMs) break;
        fired += (await play(seed, order)).fired ? 1 : 0;
        count += 1;
        if (count % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      console.info(`${story}: ${count} of ${orders.length} faults at seed ${seed}, ${fired} of which came about`);
      expect(fired).toBe(count);
    },
    TIMEOUT_MS,
  );
}

itSeeded("several disks change hands together, at every fault, in every mode", async (rng) => {
  const timeMs = counts({ local: 500, ci: 5000 });
  const startedMs = performance.now();
  let count = 0;
  for (; performance.now() - startedMs < timeMs; count++) {
    const story = rng.pick(STORIES);
    const fault = { step: rng.integer(0, 90), when: rng.pick(WHENS), what: rng.pick(FAULTS) };
    const mode = rng.pick(["hybrid", "postcopy", "precopy"] as const);
    await play(rng.integer(1, 1e9), { story, fault }, { mode, disks: rng.integer(2, 4) });
  }
  console.info(`${count} histories of two to four disks`);
});

itSeeded("a migration's history is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < 6; round++) {
    const seed = rng.integer(1, 1e9);
    const fault = { step: rng.integer(0, 20), when: rng.pick(WHENS), what: rng.pick(FAULTS) };
    const order: Order = { story: rng.pick(STORIES), fault };
    expect(await play(seed, order)).toEqual(await play(seed, order));
  }
});
