import { describe, expect, it } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { CLUSTER, create, IMAGE, open, readAll, world } from "./support.ts";

const SIZE = 16 * CLUSTER;

async function rig(...mutants: CorChaosPoint[]) {
  const files = new FakeFiles();
  const env = world(files, ...mutants);
  const backing = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
  const background = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
  await create(env, SIZE);
  const overlay = await open(env, { backing, background, fetchUnitBytes: CLUSTER });
  return { files, env, backing, background, overlay };
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 200; turn++) await Promise.resolve();
}

/** A covering write that waits behind the store of a fetch reply; what the cluster holds at the end. */
async function writeBehindFetch(...mutants: CorChaosPoint[]): Promise<Uint8Array> {
  const { background, overlay, files } = await rig(...mutants);
  const release = background.hold("read");
  const fetching = overlay.fetchBackground({ first: 0, count: 2 });
  await turns();
  const letStore = files.hold("write");
  const neighbour = overlay.write(CLUSTER, pattern(CLUSTER, CLUSTER, 3));
  await turns();
  release();
  await turns();
  const writing = overlay.write(0, pattern(0, CLUSTER, 2));
  await turns();
  letStore();
  await Promise.all([fetching, neighbour, writing]);
  return readAll(overlay, 0, CLUSTER);
}

describe("an overlay whose fetches are on their way", () => {
  it("answers a covering write at once, and keeps it when the reply comes", async () => {
    for (const mutant of [undefined, "cor/fetch-overwrites-newer"] as const) {
      const { backing, background, overlay } = await rig(...(mutant === undefined ? [] : [mutant]));
      const [releaseDemand, releaseBackground] = [backing.hold("read"), background.hold("read")];
      const fetching = overlay.fetchBackground({ first: 0, count: 4 });
      const reading = readAll(overlay, 0, CLUSTER);
      await turns();
      await overlay.write(0, pattern(0, CLUSTER, 2));
      expect(await readAll(overlay, 0, CLUSTER)).toEqual(new Uint8Array(pattern(0, CLUSTER, 2)));
      releaseDemand();
      releaseBackground();
      await Promise.all([fetching, reading]);
      await turns();
      const found = Buffer.from(await readAll(overlay, 0, CLUSTER));
      expect(found.equals(pattern(0, CLUSTER, 2))).toBe(mutant === undefined);
      expect(Buffer.from(await readAll(overlay, CLUSTER, CLUSTER)).equals(pattern(CLUSTER, CLUSTER, 1))).toBe(true);
    }
  });

  it("lets the write win that comes between the check of the claim and the store of the reply", async () => {
    expect(Buffer.from(await writeBehindFetch()).equals(pattern(0, CLUSTER, 2))).toBe(true);
    const mutant = await writeBehindFetch("cor/check-without-lock");
    expect(Buffer.from(mutant).equals(pattern(0, CLUSTER, 2))).toBe(false);
  });

  it("asks again for a demand read when a background fetch of the cluster is held", async () => {
    const { background, overlay } = await rig();
    const release = background.hold("read");
    const fetching = overlay.fetchBackground({ first: 0, count: 2 });
    await turns();
    expect(Buffer.from(await readAll(overlay, 10, 100)).equals(pattern(10, 100, 1))).toBe(true);
    release();
    await fetching;
  });

  it("answers a demand read before its bytes are stored, and asks once for readers of one unit", async () => {
    const { backing, overlay, files } = await rig();
    const letStore = files.hold("write");
    const both = await Promise.all([readAll(overlay, 0, 512), readAll(overlay, 512, 512)]);
    expect(Buffer.concat(both).equals(pattern(0, 1024, 1))).toBe(true);
    expect(backing.count("read ")).toBe(1);
    letStore();
    await overlay.close();
  });

  it("merges a partial write with its neighbours and writes once", async () => {
    const { overlay, backing, files } = await rig();
    files.log.length = 0;
    await overlay.write(CLUSTER + 100, pattern(CLUSTER + 100, 50, 2));
    expect(backing.count("read ")).toBe(1);
    expect(files.log.filter((line) => line.startsWith("write "))).toEqual([`write ${CLUSTER}+${CLUSTER}`]);
    const expected = pattern(CLUSTER, CLUSTER, 1);
    pattern(CLUSTER + 100, 50, 2).copy(expected, 100);
    expect(Buffer.from(await readAll(overlay, CLUSTER, CLUSTER)).equals(expected)).toBe(true);
  });

  it("keeps the neighbours of a partial trim or zero, and fetches nothing for whole clusters", async () => {
    const { overlay, backing } = await rig();
    await overlay.discard(100, 3 * CLUSTER);
    expect(backing.count("read ")).toBe(0);
    await overlay.writeZeroes(5 * CLUSTER, 2 * CLUSTER);
    expect(backing.count("read ")).toBe(0);
    await overlay.writeZeroes(8 * CLUSTER + 512, 512);
    const found = Buffer.from(await readAll(overlay, 0, SIZE));
    const expected = pattern(0, SIZE, 1);
    expected.fill(0, CLUSTER, 3 * CLUSTER);
    expected.fill(0, 5 * CLUSTER, 7 * CLUSTER);
    expected.fill(0, 8 * CLUSTER + 512, 8 * CLUSTER + 1024);
    expect(found.equals(expected)).toBe(true);
  });

  it("removes what an earlier life left in the store under a missing cluster, before it reads as zeroes", async () => {
    for (const mutant of [undefined, "cor/zero-without-punch"] as const) {
      const { overlay, files } = await rig(...(mutant === undefined ? [] : [mutant]));
      files.disks.get(IMAGE)?.put(0, pattern(0, CLUSTER, 9));
      await overlay.writeZeroes(0, CLUSTER);
      const found = await readAll(overlay, 0, CLUSTER);
      expect(found.every((byte) => byte === 0)).toBe(mutant === undefined);
    }
  });

  it("calls no cluster local before its data is in the store", async () => {
    for (const mutant of [undefined, "cor/bit-at-request"] as const) {
      const { overlay, files } = await rig(...(mutant === undefined ? [] : [mutant]));
      const letStore = files.hold("write");
      const writing = overlay.write(0, pattern(0, CLUSTER, 2));
      await turns();
      expect(overlay.readNow(0, new Uint8Array(512))).toBe(mutant === undefined ? -1 : 512);
      letStore();
      await writing;
    }
  });

  it("passes the backing's error on, stores nothing, and succeeds when it is asked again", async () => {
    const { overlay, backing } = await rig();
    backing.fail("read", new BlockError("io", "the source cannot read this"));
    await expect(readAll(overlay, 0, 512)).rejects.toMatchObject({ code: "io" });
    await expect(overlay.write(10, pattern(10, 20, 2))).rejects.toMatchObject({ code: "io" });
    expect(overlay.localClusters).toBe(0);
    backing.heal("read");
    await overlay.write(10, pattern(10, 20, 2));
    await overlay.flush();
  });

  it("lists exactly what is missing, and completes when nothing is", async () => {
    const { overlay } = await rig();
    await overlay.write(2 * CLUSTER, pattern(0, CLUSTER, 2));
    const list = [];
    for await (const range of overlay.missing()) list.push(range);
    expect(list).toEqual([
      { first: 0, count: 2 },
      { first: 3, count: 13 },
    ]);
    await expect(overlay.complete()).rejects.toMatchObject({ code: "invalid" });
    await overlay.fetchBackground({ first: 0, count: 16 });
    await overlay.complete();
    expect(overlay.localClusters).toBe(16);
  });
});
