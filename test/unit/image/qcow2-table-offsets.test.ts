/** The L1 table as it is held: in few bytes, and in more once a file is so large that it needs them. */
import { expect, test } from "vitest";
import { TableOffsets } from "../../../src/image/qcow2/table-offsets.ts";
import { itSeeded } from "../../support/seed.ts";

const LENGTH = 1000;

for (const clusterBytes of [512, 65_536, 2 ** 21]) {
  itSeeded(`what was put in is there, whatever its size, with clusters of ${clusterBytes}`, (rng) => {
    const table = new TableOffsets(LENGTH, clusterBytes);
    const model = new Float64Array(LENGTH);
    /** The last number of a cluster that four bytes have room for is 2^31 − 1, without the flag. */
    const clustersMax = Math.min(2 ** 31 - 1, Math.floor(2 ** 53 / clusterBytes) - 1);
    for (let round = 0; round < 5000; round++) {
      const index = rng.integer(0, LENGTH - 1);
      const cluster = rng.pick([1, clustersMax - 1, rng.integer(1, clustersMax - 1)]);
      const value = rng.pick([0, Number.NaN, cluster * clusterBytes, cluster * clusterBytes + 1]);
      model[index] = value;
      table.set(index, value);
    }
    const found = (): number[] => Array.from(model, (_, index) => table.get(index));
    expect(found()).toEqual([...model]);
    expect(table.heldBytes).toBe(4 * LENGTH);
  });
}

test("a table that four bytes cannot name makes all of them longer, and changes none", () => {
  const table = new TableOffsets(4, 512);
  const [last, beyond] = [(2 ** 31 - 1) * 512, 2 ** 31 * 512];
  table.set(0, last);
  table.set(1, Number.NaN);
  table.set(2, 512 * 7 + 1);
  expect([table.get(0), table.heldBytes]).toEqual([last, 16]);
  // With the flag, its number would be that of a wrong entry.
  table.set(3, last + 1);
  expect(table.heldBytes).toBe(24);
  expect([0, 1, 2, 3].map((index) => table.get(index))).toEqual([last, Number.NaN, 512 * 7 + 1, last + 1]);
  table.set(2, beyond + 1);
  table.set(1, 0);
  expect([0, 1, 2, 3].map((index) => table.get(index))).toEqual([last, 0, beyond + 1, last + 1]);
  expect(table.get(4)).toBe(0);
});
