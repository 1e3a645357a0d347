import { describe, expect, it } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import { Commit } from "../../../src/cor/commit.ts";
import { openIntentLog } from "../../../src/cor/intent-log.ts";
import { openMap } from "../../../src/cor/map-file.ts";
import { logPath, mapPath } from "../../../src/cor/overlay-files.ts";
import { addTo } from "../../../src/cor/parts.ts";
import { Presence } from "../../../src/cor/presence.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { CLUSTER, create, IMAGE, memory, open, readAll, world } from "./support.ts";

const SIZE = 16 * CLUSTER;
const BACKING = pattern(0, SIZE, 1);

async function rig(...mutants: CorChaosPoint[]) {
  const files = new FakeFiles();
  const env = world(files, ...mutants);
  await create(env, SIZE);
  const backing = memory(BACKING);
  const overlay = await open(env, { backing, logHalfRecords: 2 });
  return { files, env, backing, overlay };
}

/** The process is gone: its locks are, and the page cache is not. */
function kill(files: FakeFiles): void {
  for (const disk of files.disks.values()) disk.holders.clear();
}

function losePower(files: FakeFiles): void {
  for (const disk of files.disks.values()) disk.losePower();
}

async function holds(device: { read(offset: number, into: Uint8Array): Promise<void> }, offset: number, salt: number) {
  const into = Buffer.alloc(CLUSTER);
  await device.read(offset, into);
  return into.equals(pattern(offset, CLUSTER, salt));
}

describe("an overlay after its process was killed", () => {
  it("still has every acknowledged write, also when the log was full, and makes them durable as it opens", async () => {
    for (const mutant of [undefined, "cor/log-skipped"] as const) {
      const { files, env, backing, overlay } = await rig(...(mutant === undefined ? [] : [mutant]));
      for (let cluster = 0; cluster < 7; cluster++) {
        await overlay.write(cluster * CLUSTER, pattern(cluster * CLUSTER, CLUSTER, 2));
      }
      kill(files);
      await open(env, { backing, logHalfRecords: 2 });
      losePower(files);
      await using again = await open(env, { backing, bootId: "boot 2", logHalfRecords: 2 });
      const found = await Promise.all([...Array(7).keys()].map((cluster) => holds(again, cluster * CLUSTER, 2)));
      expect(found.every(Boolean)).toBe(mutant === undefined);
    }
  });

  it("still has a write to a cluster that was fetched and not yet durable", async () => {
    const { files, env, backing, overlay } = await rig();
    await overlay.fetchBackground({ first: 0, count: 1 });
    expect(overlay.writeNow(0, pattern(0, CLUSTER, 2))).toBe(-1);
    await overlay.write(0, pattern(0, CLUSTER, 2));
    expect(overlay.writeNow(0, pattern(0, CLUSTER, 3))).toBe(CLUSTER);
    kill(files);
    await using again = await open(env, { backing, logHalfRecords: 2 });
    expect(await holds(again, 0, 3)).toBe(true);
  });

  it("ignores the log when the host has been down since", async () => {
    for (const mutant of [undefined, "cor/log-of-any-boot"] as const) {
      const { files, env, backing, overlay } = await rig(...(mutant === undefined ? [] : [mutant]));
      await overlay.write(0, pattern(0, CLUSTER, 2));
      // The log reached the disk by chance, the data did not.
      files.disks.get(logPath(IMAGE))?.takeDirty()();
      losePower(files);
      await using again = await open(env, { backing, bootId: "boot 2", logHalfRecords: 2 });
      expect(await holds(again, 0, 1)).toBe(mutant === undefined);
    }
  });

  it("writes the map again before it acknowledges anything: the kernel may have failed to", async () => {
    for (const mutant of [undefined, "cor/rewrite-skipped"] as const) {
      const { files, env, backing, overlay } = await rig(...(mutant === undefined ? [] : [mutant]));
      const map = files.disks.get(mapPath(IMAGE));
      const before = new Map(map?.durableBlocks);
      await overlay.write(0, pattern(0, CLUSTER, 2));
      await overlay.flush();
      // As if killed just before the sync of the map, whose write-back then failed unseen.
      if (map !== undefined) map.durableBlocks = before;
      kill(files);
      const again = await open(env, { backing, logHalfRecords: 2, bootId: "boot 1" });
      await again.flush();
      losePower(files);
      await using last = await open(env, { backing, bootId: "boot 2", logHalfRecords: 2 });
      expect(await holds(last, 0, 2)).toBe(mutant === undefined);
    }
  });
});

describe("an overlay whose storage fails", () => {
  it("fails every write and flush after a sync that failed, and trusts no log afterwards", async () => {
    const { files, env, backing, overlay } = await rig();
    await overlay.write(0, pattern(0, CLUSTER, 2));
    files.inject({ operation: "dataSync", code: "ENOSPC", times: 1 });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await expect(overlay.write(0, pattern(0, 512, 3))).rejects.toMatchObject({ code: "io" });
    expect(await holds(overlay, CLUSTER, 1)).toBe(true);
    kill(files);
    await using again = await open(env, { backing, logHalfRecords: 2 });
    expect(await holds(again, 0, 1)).toBe(true);
  });

  it("goes on after it ran out of space, in the image or in the map", async () => {
    for (const after of [0, 1]) {
      const { files, env, backing, overlay } = await rig();
      files.inject({ operation: "write", code: "ENOSPC", times: 1, after });
      const write = overlay.write(0, pattern(0, CLUSTER, 2));
      if (after === 0) await expect(write).rejects.toMatchObject({ code: "no-space" });
      await write.catch(() => undefined);
      if (after === 1) await expect(overlay.flush()).rejects.toMatchObject({ code: "no-space" });
      await overlay.write(0, pattern(0, CLUSTER, 2));
      await overlay.flush();
      losePower(files);
      await using again = await open(env, { backing, bootId: "boot 2" });
      expect(await holds(again, 0, 2)).toBe(true);
    }
  });

  it("does not try a sync again that failed", async () => {
    for (const mutant of [undefined, "cor/retry-sync"] as const) {
      const files = new FakeFiles();
      const env = world(files, ...(mutant === undefined ? [] : [mutant]));
      await create(env, SIZE);
      const map = await openMap(env, mapPath(IMAGE));
      const presence = new Presence(map, 16);
      const { uuid } = map.superblock;
      const { log } = await openIntentLog(env, { path: logPath(IMAGE), uuid, bootId: "boot 1", halfRecords: 2 });
      let syncs = 0;
      const store = {
        commit: () => (++syncs === 1 ? Promise.reject(new BlockError("io", "lost")) : Promise.resolve()),
      };
      const commit = new Commit({ store, map, presence, log, clock: env.clock, chaos: env.chaos });
      await addTo(presence, 0, 0);
      await expect(commit.flush()).rejects.toMatchObject({ code: "io" });
      const second = await commit.flush().then(
        () => "acknowledged",
        () => "failed",
      );
      expect([second, syncs]).toEqual(mutant === undefined ? ["failed", 1] : ["acknowledged", 2]);
    }
  });
});

describe("opening an overlay", () => {
  it("refuses an image without its map, a map without its image, and one of another disk", async () => {
    const { files, env, backing, overlay } = await rig();
    await overlay.close();
    const image = files.disks.get(IMAGE);
    const map = files.disks.get(mapPath(IMAGE));
    if (image === undefined || map === undefined) throw new Error("files are missing");
    files.disks.delete(mapPath(IMAGE));
    await expect(open(env, { backing })).rejects.toMatchObject({ code: "map-missing" });
    files.disks.set(mapPath(IMAGE), map);
    files.disks.delete(IMAGE);
    await expect(open(env, { backing })).rejects.toMatchObject({ code: "not-found" });
    files.add(IMAGE, SIZE + 512);
    await expect(open(env, { backing })).rejects.toMatchObject({ code: "not-an-image" });
    files.disks.set(IMAGE, image);
    await expect(open(env, { backing: memory(BACKING.subarray(0, CLUSTER)) })).rejects.toMatchObject({
      code: "mismatch",
    });
    await using again = await open(env, { backing });
    await expect(open(env, { backing })).rejects.toMatchObject({ code: "io" });
    expect(await readAll(again, 0, SIZE)).toEqual(new Uint8Array(BACKING));
  });

  it("leaves other people's files alone", async () => {
    for (const content of [pattern(0, CLUSTER, 5), 0]) {
      const files = new FakeFiles();
      files.add(IMAGE, content);
      await expect(create(world(files), SIZE)).rejects.toMatchObject({ code: "exists" });
      expect([...files.disks.keys()]).toEqual([IMAGE]);
    }
    const { env, overlay } = await rig();
    await overlay.close();
    await expect(create(env, SIZE)).rejects.toMatchObject({ code: "exists" });
  });

  it("is refused before its creation was finished, and possible after it was tried again", async () => {
    // The third sync is that of the map's publication, which by then can be read: such an overlay opens.
    for (const [operation, count] of [
      ["dataSync", 2],
      ["write", 3],
    ] as const) {
      for (let after = 0; after < count; after++) {
        const files = new FakeFiles();
        const env = world(files);
        files.inject({ operation, code: "EIO", after, times: 1 });
        await expect(create(env, SIZE)).rejects.toThrow();
        files.clearFaults();
        kill(files);
        await expect(open(env, { backing: memory(BACKING) })).rejects.toMatchObject({ code: "map-missing" });
        await create(env, SIZE);
        await using overlay = await open(env, { backing: memory(BACKING) });
        expect(await holds(overlay, 0, 1)).toBe(true);
      }
    }
  });

  it("is a plain image of the disk's size once it is complete, and opens again", async () => {
    const { files, env, backing, overlay } = await rig();
    await overlay.write(100, pattern(100, 50, 2));
    await overlay.fetchBackground({ first: 0, count: overlay.clusters });
    await overlay.complete();
    await overlay.close();
    losePower(files);
    expect(files.disks.get(IMAGE)?.size).toBe(SIZE);
    await using again = await open(env, { backing, bootId: "boot 2" });
    expect(again.localClusters).toBe(16);
    const expected = Buffer.from(BACKING);
    pattern(100, 50, 2).copy(expected, 100);
    expect(Buffer.from(await readAll(again, 0, SIZE)).equals(expected)).toBe(true);
  });
});
