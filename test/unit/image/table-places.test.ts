/** Where tables are: found whatever their order, their number and the size of the file; and put in order in turns. */
import { expect, test } from "vitest";
import { ImageFile } from "../../../src/image/tables/image-file.ts";
import { TablePlaces } from "../../../src/image/tables/table-places.ts";
import { Turns } from "../../../src/image/tables/turns.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { itSeeded, type Prng } from "../../support/seed.ts";

async function imageFile(): Promise<ImageFile> {
  const files = new FakeFiles();
  files.add("/a", Buffer.alloc(512));
  return new ImageFile(await files.open({ path: "/a", writable: false }), 512);
}

function named(clusters: ArrayLike<number>) {
  return { length: clusters.length, clusterAt: (index: number) => clusters[index] ?? 0 };
}

/** Clusters of a file of so many, as somebody might choose them. */
function chosen(rng: Prng, fileClusters: number, count: number): Float64Array {
  const far = () => Math.floor(rng.float() * (fileClusters - 1)) + 1;
  const base = far();
  const near = () => Math.min(fileClusters - 1, base + rng.integer(0, 1000));
  const pick = rng.pick([far, near, () => base, () => rng.pick([far, near])()]);
  return Float64Array.from({ length: count }, () => (rng.integer(0, 9) === 0 ? 0 : pick()));
}

itSeeded("tables are found where they are and nowhere else, whatever order they were named in", async (rng) => {
  const file = await imageFile();
  for (let round = 0; round < 40; round++) {
    const fileClusters = rng.pick([1, 2, 64, 5000, 2 ** 20, 2 ** 32 + 7, 2 ** 44]);
    const clusters = chosen(rng, fileClusters, rng.pick([0, 1, 50, 3000]));
    if (rng.integer(0, 3) === 0) clusters.sort();
    const split = rng.integer(0, clusters.length);
    const tables = [named(clusters.subarray(0, split)), named(clusters.subarray(split))];
    const places = await TablePlaces.of(tables, fileClusters, new Turns(file));
    const model = new Set(clusters);
    model.delete(0);
    const tableClusters = rng.pick([1, 4, 16]);
    for (let i = 0; i < 300; i++) {
      const near = (clusters[rng.integer(0, Math.max(0, clusters.length - 1))] ?? 0) + rng.integer(-20, 20);
      const cluster = Math.max(1, Math.min(fileClusters - 1, near));
      const covering = Array.from({ length: tableClusters }, (_, back) => cluster - back);
      expect([cluster, places.has(cluster)]).toEqual([cluster, model.has(cluster)]);
      expect([cluster, places.has(cluster, tableClusters)]).toEqual([cluster, covering.some((one) => model.has(one))]);
    }
  }
});

/** More than are sorted in one go lie in one bucket: far from each other, near, or all of one value. */
const CROWDS: Record<string, (rng: Prng, index: number) => number> = {
  "all over the file": (rng) => rng.integer(1, 2 ** 31),
  "in one place": (rng) => rng.integer(2 ** 20, 2 ** 20 + 50_000),
  "one and the same": () => 2 ** 20,
  "one behind the other, from behind": (_, index) => 2 ** 24 - index,
};
const CROWD = 2 ** 18;

for (const [what, at] of Object.entries(CROWDS)) {
  itSeeded(`hundreds of thousands of tables, ${what}, are put in order in turns`, async (rng) => {
    const clusters = Float64Array.from({ length: CROWD }, (_, index) => at(rng, index));
    const file = await imageFile();
    let turns = 0;
    file.pause = async () => {
      turns += 1;
    };
    const places = await TablePlaces.of([named(clusters)], 2 ** 31 + 1, new Turns(file));
    // They are looked at twice at least; a turn is 65,536 steps.
    expect(turns).toBeGreaterThanOrEqual((2 * CROWD) / 65_536);
    expect(places.heldBytes).toBeLessThan(4 * CROWD + 32_768);
    const model = new Set(clusters);
    for (let i = 0; i < 2000; i++) {
      const cluster = rng.pick([clusters[rng.integer(0, CROWD - 1)] ?? 0, rng.integer(1, 2 ** 31)]);
      expect([cluster, places.has(cluster)]).toEqual([cluster, model.has(cluster)]);
    }
  });
}

test("nothing is where no tables are", () => {
  expect([TablePlaces.none().has(0), TablePlaces.none().has(7, 16)]).toEqual([false, false]);
});
