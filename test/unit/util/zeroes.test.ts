import { expect } from "vitest";
import { isZero, ZEROES, ZEROES_BYTES } from "../../../src/util/zeroes.ts";
import { itSeeded } from "../../support/seed.ts";

itSeeded("one byte that is not zero is found, wherever it is and whatever the length", (rng) => {
  for (const length of [1, 7, 4096, ZEROES_BYTES - 1, ZEROES_BYTES, ZEROES_BYTES + 1, 2 * ZEROES_BYTES + 5]) {
    const bytes = new Uint8Array(length + 3).subarray(3);
    expect(isZero(bytes)).toBe(true);
    for (const at of [0, length - 1, rng.integer(0, length - 1)]) {
      bytes[at] = rng.integer(1, 255);
      expect(isZero(bytes), `byte ${at} of ${length}`).toBe(false);
      bytes[at] = 0;
    }
  }
  expect(isZero(new Uint8Array(0))).toBe(true);
  expect(isZero(ZEROES)).toBe(true);
});
