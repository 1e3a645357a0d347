import { expect, it } from "vitest";
import { setBits } from "../../../src/cor/bits.ts";
import { openMap } from "../../../src/cor/map-file.ts";
import { PAGE_CLUSTERS } from "../../../src/cor/map-format.ts";
import { publishMap } from "../../../src/cor/map-publish.ts";
import { mapPath, openOverlay } from "../../../src/cor/overlay-files.ts";
import { Presence } from "../../../src/cor/presence.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { IMAGE, kill, memory, world } from "./support.ts";

const CLUSTERS = 2 * PAGE_CLUSTERS + 100;
const FIELDS = {
  image: IMAGE,
  uuid: Uint8Array.from({ length: 16 }, (_, index) => index + 1),
  sizeBytes: CLUSTERS * 512 - 5,
  clusterBytes: 512,
  sourceIdentity: "disk A",
  term: 7,
};

/** The last of the first page, all of the second, and the short last cluster of the disk. */
function fill(bits: Uint8Array, first: number, count: number): void {
  const from = first === 0 ? PAGE_CLUSTERS - 1 : first === PAGE_CLUSTERS ? 0 : count - 1;
  setBits(bits, [from, count - 1]);
}

it("publishes a map that says what is local, with its term in both superblocks, and replaces one that was there", async () => {
  const files = new FakeFiles();
  const env = world(files);
  await publishMap(env, { ...FIELDS, term: 6, fill: () => undefined });
  await publishMap(env, { ...FIELDS, fill });
  expect(await files.exists(`${mapPath(IMAGE)}.new`)).toBe(false);
  for (const lost of [undefined, 0, 4096]) {
    if (lost !== undefined) {
      await using file = await files.open({ path: mapPath(IMAGE), writable: true });
      const good = Buffer.alloc(512);
      await file.read(lost, good);
      await file.write(lost, Buffer.alloc(512, 0xee));
      const map = await openMap(env, mapPath(IMAGE));
      expect(map.superblock).toMatchObject({ term: 7, state: "open", sourceIdentity: "disk A" });
      await map.close();
      await file.write(lost, good);
    }
    const map = await openMap(env, mapPath(IMAGE));
    const presence = new Presence(map, CLUSTERS);
    await presence.open(false);
    expect(presence.presentCount).toBe(1 + PAGE_CLUSTERS + 1);
    for (const [cluster, local] of [
      [0, false],
      [PAGE_CLUSTERS - 2, false],
      [PAGE_CLUSTERS - 1, true],
      [PAGE_CLUSTERS, true],
      [2 * PAGE_CLUSTERS - 1, true],
      [2 * PAGE_CLUSTERS, false],
      [CLUSTERS - 1, true],
    ] as const) {
      await presence.load(cluster);
      expect(presence.has(cluster), `cluster ${cluster}`).toBe(local);
    }
    expect(presence.lastPresent).toBe(true);
    await map.close();
  }
});

it("leaves the map that was there as it was when the new one cannot be written", async () => {
  const files = new FakeFiles();
  const env = world(files);
  await publishMap(env, { ...FIELDS, term: 6, fill: () => undefined });
  const fill = (): void => {
    throw new Error("no");
  };
  await expect(publishMap(env, { ...FIELDS, fill })).rejects.toThrow("no");
  const map = await openMap(env, mapPath(IMAGE));
  expect(map.superblock.term).toBe(6);
  await map.close();
  await publishMap(env, { ...FIELDS, fill: () => undefined });
});

it("is used by whoever has published it without being made durable once more, and by nobody else", async () => {
  const files = new FakeFiles();
  const env = world(files);
  const { uuid, sizeBytes } = FIELDS;
  await createRawOverlay(env, { path: IMAGE, sizeBytes, uuid, begun: false });
  await publishMap(env, { ...FIELDS, fill });
  const syncs = async (published: boolean): Promise<number> => {
    const before = files.count("dataSync");
    const overlay = await openOverlay(env, {
      ...{ path: IMAGE, backing: memory(new Uint8Array(sizeBytes)), bootId: "boot 1", published },
      openStore: ({ clusterBytes, state }) =>
        openRawOverlay(env, { path: IMAGE, sizeBytes, uuid, clusterBytes, state }),
    });
    const done = files.count("dataSync") - before;
    expect(overlay.localBytes).toBeGreaterThan(0);
    // As after a kill: closed in order, it would be clean.
    kill(files);
    return done;
  };
  expect(await syncs(true)).toBe(0);
  expect(await syncs(false)).toBeGreaterThan(0);
});
