/** How often clusters are referred to, counted window by window in little memory. */
import { expect, test } from "vitest";
import { COUNTS_BYTES_MAX, ReferenceCounts } from "../../../src/image/qcow2/reference-counts.ts";
import { References } from "../../../src/image/tables/references.ts";
import { Windows } from "../../../src/image/tables/windows.ts";
import { itSeeded } from "../../support/seed.ts";

itSeeded("every count is right, and told once, however little memory there is", (rng) => {
  let widened = 0;
  for (let round = 0; round < 300; round++) {
    const clusters = rng.integer(1, 200);
    const often = rng.pick([1, 5, 100, 400]);
    const marks = Array.from({ length: rng.integer(0, 60) }, () => rng.integer(0, clusters - 1)).flatMap((cluster) =>
      Array.from({ length: rng.integer(1, often) }, () => cluster),
    );
    const [neededFirst, neededCount] = [rng.integer(0, clusters - 1), rng.integer(0, 50)];
    const neededEnd = Math.min(clusters, neededFirst + neededCount);
    const model = new Map<number, number>();
    for (const cluster of marks) model.set(cluster, (model.get(cluster) ?? 0) + 1);
    for (let cluster = neededFirst; cluster < neededEnd; cluster++) model.set(cluster, model.get(cluster) ?? 0);
    const counts = new ReferenceCounts(clusters, { bytesMax: rng.integer(2, 30), largeMax: rng.integer(0, 3) });
    const found = new Map<number, number>();
    const markAll = (): void => {
      if (neededEnd > neededFirst) counts.need(neededFirst, neededEnd);
      for (const cluster of marks) counts.mark(cluster);
    };
    do {
      for (markAll(); counts.crowded; markAll()) {
        counts.widen();
        widened += 1;
      }
      for (let cluster = counts.first; cluster < Math.min(counts.end, clusters); cluster++) {
        expect(found.has(cluster)).toBe(false);
        found.set(cluster, counts.get(cluster));
      }
    } while (counts.nextWindow());
    for (const [cluster, count] of model) expect([cluster, found.get(cluster)]).toEqual([cluster, count]);
    for (const [cluster, count] of found) if (!model.has(cluster)) expect([cluster, count]).toEqual([cluster, 0]);
  }
  expect(widened).toBeGreaterThan(20);
});

test("the second mark of a cluster is told from the first, also where a count has no room", () => {
  const counts = new ReferenceCounts(100, { bytesMax: 4 });
  expect([counts.mark(3), counts.mark(3), counts.mark(90), counts.mark(90)]).toEqual([true, false, true, true]);
  for (let i = 0; i < 70_000; i++) counts.mark(5);
  expect([counts.get(3), counts.get(5), counts.end]).toEqual([2, 65_535, 16]);
  counts.set(5, 65_535);
  counts.set(3, 1);
  expect([counts.get(3), counts.get(5) === 1]).toEqual([1, false]);
});

test("a disk of 1 TiB in clusters of 64 KiB is one window, of whatever format", () => {
  const [clusters, tables] = [2 ** 24, 2 ** 13];
  const counts = new ReferenceCounts(2 ** 40);
  expect([COUNTS_BYTES_MAX, counts.end >= clusters + tables]).toEqual([8 * 2 ** 20, true]);
  const references = new References(2 ** 40);
  references.mark(clusters + tables);
  references.mark(0);
  expect([references.used, references.nextWindow()]).toEqual([2, false]);
});

test("windows follow one another as far as anything needs them", () => {
  const windows = new Windows(10);
  const seen: number[] = [];
  do {
    for (const cluster of [99, 5, 31, 37, 12]) windows.need(cluster, cluster + 1);
    windows.need(45, 60);
    seen.push(windows.first);
  } while (windows.advance());
  expect(seen).toEqual([0, 12, 31, 45, 55, 99]);
});
