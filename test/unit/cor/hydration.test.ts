import { describe, expect, it } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { openMap } from "../../../src/cor/map-file.ts";
import { encodePage, PAGE_BITS_BYTES, SLOTS_OFFSET } from "../../../src/cor/map-format.ts";
import { mapPath } from "../../../src/cor/overlay-files.ts";
import { Unsynced } from "../../../src/cor/unsynced.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { CLUSTER, create, HandClock, IMAGE, open, readAll, world } from "./support.ts";

const SIZE = 16 * CLUSTER - 1000;
const MiB = 2 ** 20;

async function rig() {
  const files = new FakeFiles();
  const env = world(files);
  const backing = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
  await create(env, SIZE);
  const overlay = await open(env, { backing, fetchUnitBytes: CLUSTER });
  return { files, env, clock: env.clock as HandClock, backing, overlay };
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 200; turn++) await Promise.resolve();
}

describe("an overlay that is being filled", () => {
  it("tells what is local in bytes and in runs, of which the last cluster may be short", async () => {
    const { overlay } = await rig();
    await overlay.fetchBackground({ first: 2, count: 3 });
    expect(overlay.localBytes).toBe(3 * CLUSTER);
    expect(await overlay.presenceExtents(100, SIZE - 100, 8)).toEqual([
      { length: 2 * CLUSTER - 100, local: false },
      { length: 3 * CLUSTER, local: true },
      { length: SIZE - 5 * CLUSTER, local: false },
    ]);
    expect(await overlay.presenceExtents(0, SIZE, 2)).toHaveLength(2);
    await overlay.fetchBackground({ first: 15, count: 1 });
    expect(overlay.localBytes).toBe(4 * CLUSTER - 1000);
    await overlay.flush();
    await overlay.fetchBackground({ first: 0, count: 16 });
    expect(overlay.localBytes).toBe(SIZE);
    await overlay.close();
  });

  it("still knows that its short last cluster is local when it is opened again", async () => {
    const { overlay, env, backing } = await rig();
    await overlay.fetchBackground({ first: 15, count: 1 });
    await overlay.commit();
    await overlay.close();
    await using again = await open(env, { backing });
    expect(again.localBytes).toBe(CLUSTER - 1000);
  });

  it("makes what was fetched durable within a second, and has no timer when there is nothing to do", async () => {
    const { overlay, clock, files, env, backing } = await rig();
    expect(clock.timers).toBe(0);
    await overlay.fetchBackground({ first: 0, count: 4 });
    expect(clock.timers).toBe(1);
    clock.pass(1000);
    await turns();
    expect(clock.timers).toBe(0);
    for (const disk of files.disks.values()) disk.losePower();
    await using again = await open(env, { backing, bootId: "boot 2" });
    expect(again.localClusters).toBe(4);
  });

  it("leaves no timer behind when it is closed", async () => {
    const { overlay, clock } = await rig();
    await overlay.fetchBackground({ first: 0, count: 4 });
    await overlay.close();
    expect(clock.timers).toBe(0);
  });

  it("says that there is no space, sets no bit, and goes on when there is some", async () => {
    const { overlay, files } = await rig();
    files.inject({ operation: "write", code: "ENOSPC" });
    files.inject({ operation: "writeNow", code: "ENOSPC" });
    await expect(overlay.fetchBackground({ first: 0, count: 4 })).rejects.toMatchObject({ code: "no-space" });
    await expect(overlay.write(0, pattern(0, CLUSTER, 2))).rejects.toMatchObject({ code: "no-space" });
    expect(overlay.localClusters).toBe(0);
    expect(Buffer.from(await readAll(overlay, 0, 100)).equals(pattern(0, 100, 1))).toBe(true);
    files.clearFaults();
    await overlay.fetchBackground({ first: 0, count: 16 });
    await overlay.complete();
    await overlay.close();
  });

  it("closes once its backing has been closed, which ends the reads that were never answered", async () => {
    const { overlay, backing } = await rig();
    const release = backing.hold("read");
    backing.fail("read", new BlockError("shutting-down", "closed"), 2);
    const reading = overlay.read(0, new Uint8Array(512)).catch((error: unknown) => error);
    const fetching = overlay.fetchBackground({ first: 8, count: 8 }).catch((error: unknown) => error);
    await turns();
    let closed = false;
    const closing = overlay.close().then(() => {
      closed = true;
    });
    await turns();
    expect(closed).toBe(false);
    release();
    await Promise.all([reading, fetching, closing]);
  });

  it("asks the store to punch nothing where nothing was ever written, in one step however long the run", async () => {
    const { overlay, files, backing } = await rig();
    files.log.length = 0;
    await overlay.zeroBackground({ first: 0, count: 15 });
    expect(files.log.filter((line) => line.startsWith("punchHole"))).toEqual([]);
    expect(overlay.localClusters).toBe(15);
    expect(backing.count("read ")).toBe(0);
    files.disks.get(IMAGE)?.put(15 * CLUSTER, pattern(0, 100, 9));
    await overlay.zeroBackground({ first: 15, count: 1 });
    expect((await readAll(overlay, 15 * CLUSTER, 100)).every((byte) => byte === 0)).toBe(true);
    await overlay.close();
  });
});

describe("the superblocks of an overlay", () => {
  it("both have the term once it is set", async () => {
    const { overlay, files, env } = await rig();
    await overlay.setTerm(7);
    expect(overlay.term).toBe(7);
    await overlay.close();
    for (const slot of [0, 1]) {
      const copy = Buffer.alloc(512);
      files.disks.get(mapPath(IMAGE))?.get(slot * 4096, copy);
      files.disks.get(mapPath(IMAGE))?.put(slot * 4096, new Uint8Array(512).fill(1));
      const map = await openMap(env, mapPath(IMAGE));
      expect(map.superblock.term).toBe(7);
      await map.close();
      files.disks.get(mapPath(IMAGE))?.put(slot * 4096, copy);
    }
  });

  it("say complete for good, also when whoever wrote that was killed before it was synced", async () => {
    const { overlay, files, env, backing } = await rig();
    await overlay.fetchBackground({ first: 0, count: 16 });
    await overlay.commit();
    const map = files.disks.get(mapPath(IMAGE));
    const before = new Map(map?.durableBlocks);
    await overlay.complete();
    // As if killed before the last sync of the map.
    if (map !== undefined) map.durableBlocks = before;
    for (const disk of files.disks.values()) disk.holders.clear();
    const again = await open(env, { backing });
    await again.complete();
    await again.close();
    for (const disk of files.disks.values()) disk.losePower();
    await using last = await open(env, { backing, bootId: "boot 2" });
    expect(last.localClusters).toBe(16);
  });
});

describe("making an overlay", () => {
  it("begins anew when power went before the map was whole and there is no image", async () => {
    for (const content of [0, pattern(0, 100, 3), new Uint8Array(20_000)]) {
      const files = new FakeFiles();
      const env = world(files);
      files.add(mapPath(IMAGE), content);
      await create(env, SIZE);
      const backing = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
      await using overlay = await open(env, { backing });
      expect(overlay.localClusters).toBe(0);
    }
  });

  it("takes no bit from what lies behind blank superblocks", async () => {
    const files = new FakeFiles();
    const env = world(files);
    files.add(mapPath(IMAGE), SLOTS_OFFSET);
    files.disks.get(mapPath(IMAGE))?.put(SLOTS_OFFSET, encodePage(new Uint8Array(PAGE_BITS_BYTES).fill(0xff), 0, 5));
    await create(env, SIZE);
    const backing = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
    await using overlay = await open(env, { backing });
    expect(overlay.localClusters).toBe(0);
  });

  it("leaves a map alone that cannot be read beside an image", async () => {
    const files = new FakeFiles();
    files.add(mapPath(IMAGE), pattern(0, 20_000, 3));
    files.add(IMAGE, pattern(0, SIZE, 1));
    await expect(create(world(files), SIZE)).rejects.toMatchObject({ code: "map-corrupt" });
    expect(files.disks.size).toBe(2);
  });
});

describe("what is fetched and not durable yet", () => {
  it("stays below what the disk was seen to sync in a fifth of a second, and below 64 MiB", () => {
    const clock = new HandClock();
    const unsynced = new Unsynced(clock, () => undefined);
    for (const [bytesPerMs, limit] of [
      [1_000_000, 64 * MiB],
      [100 * 1024, 100 * 1024 * 200],
      [10, 4 * MiB],
    ] as const) {
      for (let commit = 0; commit < 40; commit++) {
        unsynced.added(8 * MiB);
        const sealedAt = unsynced.sealed();
        clock.pass((8 * MiB) / bytesPerMs);
        unsynced.synced(sealedAt);
      }
      expect(Math.abs(unsynced.limitBytes - limit)).toBeLessThan(MiB);
    }
    unsynced.added(4 * MiB);
    unsynced.added(MiB);
    expect(unsynced.full).toBe(true);
    unsynced.close();
    expect(clock.timers).toBe(0);
  });

  it("counts again, and waits for another second, when a commit has failed", () => {
    const clock = new HandClock();
    let commits = 0;
    const unsynced = new Unsynced(clock, () => {
      commits += 1;
    });
    unsynced.added(16 * MiB);
    unsynced.sealed();
    expect(unsynced.full).toBe(false);
    unsynced.failed(true);
    expect(unsynced.full).toBe(true);
    clock.pass(1000);
    expect(commits).toBe(1);
  });
});
