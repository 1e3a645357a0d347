/** The machine's randomness. */
import { getRandomValues } from "node:crypto";
import type { Random } from "../env/random.ts";

/** `getRandomValues` refuses more than this at once. */
const FILL_BYTES_MAX = 65_536;

export const realRandom: Random = {
  next: () => Math.random(),
  fill(into) {
    for (let at = 0; at < into.length; at += FILL_BYTES_MAX) {
      getRandomValues(into.subarray(at, Math.min(at + FILL_BYTES_MAX, into.length)));
    }
  },
};
