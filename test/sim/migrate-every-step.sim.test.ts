/** Small disks, and every step of what decides whose they are: nothing is drawn that could leave one out. */
import { expect } from "vitest";
import { counts, itSeeded, type Prng } from "../support/seed.ts";
import { type Fault, migrateHistory, type Order, type Story } from "./migrate-history.ts";
import type { StepKind, When } from "./migrate-steps.ts";
import type { MigrateWorldOptions } from "./migrate-world.ts";

const TIMEOUT_MS = 300_000;
const MODES = ["postcopy", "hybrid", "precopy"] as const;
const TOLD: readonly Story[] = ["handover", "return", "contest", "cancel", "release"];

const LOSSES: readonly Fault[] = ["kill source", "kill dest", "power source", "power dest"];
/** Of those that come of two losses each. */
const DOUBLE: readonly Fault[] = ["power both", "twice source", "twice dest"];

/** What can happen at a step, and when. To a line that is cut it is all the same what a file has come to. */
const POSSIBLE: Readonly<Record<StepKind, readonly (readonly [When, readonly Fault[]])[]>> = {
  file: [
    ["before", [...LOSSES, "cut"]],
    ["after", [...LOSSES, ...DOUBLE]],
    ["later", LOSSES],
  ],
  send: [
    ["before", [...LOSSES, "cut"]],
    ["after", [...LOSSES, "cut"]],
  ],
};

async function play(seed: number, order: Order, options: MigrateWorldOptions): ReturnType<typeof migrateHistory> {
  try {
    return await migrateHistory(seed, order, options);
  } catch (error) {
    const how = JSON.stringify({ seed, order, options });
    throw new Error(`history ${how} failed: ${String(error)}`, { cause: error });
  }
}

function ordersOf(story: Story, steps: readonly StepKind[]): Order[] {
  return steps.flatMap((kind, step) =>
    POSSIBLE[kind].flatMap(([when, faults]) => faults.map((what): Order => ({ story, fault: { step, when, what } }))),
  );
}

/** All of them in CI; elsewhere a few, anywhere. */
function chosen(rng: Prng, orders: readonly Order[]): readonly Order[] {
  return rng.shuffle(orders).slice(0, counts({ local: 30, ci: orders.length }));
}

for (const story of TOLD) {
  for (const mode of MODES) {
    itSeeded(
      `a fault at each step of the ${story}, of either side, leaves one owner who has everything (${mode})`,
      async (rng) => {
        const world = { mode, disks: 1, grains: rng.integer(2, 4), requests: 2, countsSends: true };
        const seed = rng.integer(1, 1e9);
        const { steps } = await play(seed, { story }, world);
        const all = ordersOf(story, steps);
        const orders = chosen(rng, all);
        const struck = new Set<number | undefined>();
        let fired = 0;
        for (const [index, order] of orders.entries()) {
          if ((await play(seed, order, world)).fired) {
            struck.add(order.fault?.step);
            fired += 1;
          }
          if (index % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
        }
        console.info(`${story}, ${mode}: ${fired} of ${all.length} faults at ${struck.size} of ${steps.length} steps`);
        expect(fired).toBe(orders.length);
        if (orders.length === all.length) expect(struck.size).toBe(steps.length);
      },
      TIMEOUT_MS,
    );
  }
}
