import { expect } from "vitest";
import { counts, itSeeded } from "../support/seed.ts";
import { linkHistory } from "./link-history.ts";

/** What a cut is tried at: each byte of so many. A connection's hellos, openings and first data are all within. */
const SWEPT_BYTES = 4096;

const turn = () => new Promise((resolve) => setImmediate(resolve));

itSeeded("a link loses no byte and doubles none, whatever happens to its connections", async (rng) => {
  const first = rng.integer(1, 1e9);
  const timeMs = counts({ local: 700, ci: 60_000 });
  const startedMs = performance.now();
  let [count, cuts, connections, bytes, restarts] = [0, 0, 0, 0, 0];
  for (let seed = first; count < 20 || performance.now() - startedMs < timeMs; seed++) {
    const result = await linkHistory(seed).catch((error: unknown) => {
      throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
    });
    count += 1;
    cuts += result.cuts;
    connections += result.connections;
    bytes += result.bytes;
    restarts += result.restarts;
    if (count % 20 === 0) await turn();
  }
  const told = `${cuts} cuts, ${restarts} restarts, ${connections} connections, ${bytes} bytes`;
  console.info(`${count} histories from seed ${first} in ${Math.round(performance.now() - startedMs)} ms: ${told}`);
  expect(connections).toBeGreaterThan(count);
});

for (const end of ["near", "far"] as const) {
  const which = end === "near" ? "the side that dialled" : "the side that was dialled";
  itSeeded(`a cut after any of the first bytes from ${which} costs nothing`, async (rng) => {
    const seed = rng.integer(1, 1e9);
    // Locally every so many bytes, from a random one on.
    const step = counts({ local: 32, ci: 1 });
    let cut = 0;
    for (let at = rng.integer(0, step - 1); at <= SWEPT_BYTES; at += step) {
      const { connections } = await linkHistory(seed + (at % 3), { quiet: true, cut: { [end]: at } }).catch((error) => {
        throw new Error(`history ${seed + (at % 3)}, cut at ${at}, failed: ${String(error)}`, { cause: error });
      });
      if (connections > 1) cut += 1;
      if (at % 100 < step) await turn();
    }
    console.info(`histories from seed ${seed}, ${cut} of them were cut`);
    // All but those that were cut before they had begun.
    expect(cut).toBeGreaterThan(0.9 * (SWEPT_BYTES / step));
  });
}

itSeeded("a history of a link is the same each time its seed is run", async (rng) => {
  for (let round = 0; round < 5; round++) {
    const seed = rng.integer(1, 1e9);
    const once = await linkHistory(seed);
    expect(await linkHistory(seed)).toEqual(once);
  }
});
