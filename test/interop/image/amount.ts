/** How much of the tests beside QEMU is run: a drawn part while developing, all in CI, more on request. */
import { counts, drawn } from "../../support/seed.ts";

/** Of every test of rounds, instead of its own number. */
const ROUNDS = process.env["BLOCKFERRY_IMAGE_ROUNDS"];

/** As `drawn`; all of them too when a number of rounds is asked for. */
export function drawnShapes<T>(shapes: readonly T[], local: number): readonly T[] {
  return ROUNDS === undefined ? drawn(shapes, local) : shapes;
}

export function rounds(count: { local: number; ci: number }): number {
  return ROUNDS === undefined ? counts(count) : Number(ROUNDS);
}

/** For a test of so many rounds. */
export function roundsTimeoutMs(count: number): number {
  return 60_000 + count * 20_000;
}
