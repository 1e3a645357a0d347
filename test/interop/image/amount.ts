/** How much of the tests beside QEMU is run: a drawn part while developing, all in CI, more on request. */
import { join } from "node:path";
import { counts, Prng, runSeed } from "../../support/seed.ts";

/** Of every test of rounds, instead of its own number. */
const ROUNDS = process.env["BLOCKFERRY_IMAGE_ROUNDS"];

/** In CI all of them, otherwise `local`, as the seed draws them. */
export function drawn<T>(shapes: readonly T[], local: number): readonly T[] {
  if (counts({ local: 0, ci: 1 }) === 1 || ROUNDS !== undefined) return shapes;
  const rng = new Prng(runSeed(), "shapes");
  const left = [...shapes];
  return Array.from({ length: Math.min(local, left.length) }, () =>
    left.splice(rng.integer(0, left.length - 1), 1),
  ).flat();
}

export function rounds(count: { local: number; ci: number }): number {
  return ROUNDS === undefined ? counts(count) : Number(ROUNDS);
}

/** For a test of so many rounds. */
export function roundsTimeoutMs(count: number): number {
  return 60_000 + count * 20_000;
}

/** Every `blockferry` that this process starts takes half the time to start: what Node has compiled is kept. */
export function startQuickly(): void {
  process.env["NODE_COMPILE_CACHE"] ??= join(import.meta.dirname, "../../../node_modules/.cache/compile");
}
