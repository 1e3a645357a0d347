import { describe, expect, it } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { Commit } from "../../../src/cor/commit.ts";
import { openIntentLog } from "../../../src/cor/intent-log.ts";
import { openMap } from "../../../src/cor/map-file.ts";
import { logPath, mapPath } from "../../../src/cor/overlay-files.ts";
import { addTo } from "../../../src/cor/parts.ts";
import { Presence } from "../../../src/cor/presence.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import {
  BACKING,
  begun,
  CLUSTER,
  create,
  holds,
  IMAGE,
  kill,
  losePower,
  memory,
  open,
  readAll,
  world,
} from "./support.ts";

const SIZE = BACKING.length;
/** Records in a half of the log. */
const HALF = 2;

describe("an overlay after its process was killed", () => {
  it("still has every acknowledged write, also when the log was full, and makes them durable as it opens", async () => {
    for (const mutant of [undefined, "cor/log-skipped"] as const) {
      const { files, env, backing, overlay } = await begun(HALF, ...(mutant === undefined ? [] : [mutant]));
      for (let cluster = 0; cluster < 7; cluster++) {
        await overlay.write(cluster * CLUSTER, pattern(cluster * CLUSTER, CLUSTER, 2));
      }
      kill(files);
      await open(env, { backing, logHalfRecords: HALF });
      losePower(files);
      await using again = await open(env, { backing, bootId: "boot 2", logHalfRecords: HALF });
      const found = await Promise.all([...Array(7).keys()].map((cluster) => holds(again, cluster * CLUSTER, 2)));
      expect(found.every(Boolean)).toBe(mutant === undefined);
    }
  });

  it("still has a write to a cluster that was fetched and not yet durable", async () => {
    const { files, env, backing, overlay } = await begun(HALF);
    await overlay.fetchBackground({ first: 0, count: 1 });
    expect(overlay.writeNow(0, pattern(0, CLUSTER, 2))).toBe(-1);
    await overlay.write(0, pattern(0, CLUSTER, 2));
    expect(overlay.writeNow(0, pattern(0, CLUSTER, 3))).toBe(CLUSTER);
    kill(files);
    await using again = await open(env, { backing, logHalfRecords: HALF });
    expect(await holds(again, 0, 3)).toBe(true);
  });

  it("ignores the log when the host has been down since", async () => {
    for (const mutant of [undefined, "cor/log-of-any-boot"] as const) {
      const { files, env, backing, overlay } = await begun(HALF, ...(mutant === undefined ? [] : [mutant]));
      await overlay.write(0, pattern(0, CLUSTER, 2));
      // The log reached the disk by chance, the data did not.
      files.disks.get(logPath(IMAGE))?.takeDirty()();
      losePower(files);
      await using again = await open(env, { backing, bootId: "boot 2", logHalfRecords: HALF });
      expect(await holds(again, 0, 1)).toBe(mutant === undefined);
    }
  });

  it("writes the map again before it acknowledges anything: the kernel may have failed to", async () => {
    for (const mutant of [undefined, "cor/rewrite-skipped"] as const) {
      const { files, env, backing, overlay } = await begun(HALF, ...(mutant === undefined ? [] : [mutant]));
      const map = files.disks.get(mapPath(IMAGE));
      const before = new Map(map?.durableBlocks);
      await overlay.write(0, pattern(0, CLUSTER, 2));
      await overlay.flush();
      // As if killed just before the sync of the map, whose write-back then failed unseen.
      if (map !== undefined) map.durableBlocks = before;
      kill(files);
      const again = await open(env, { backing, logHalfRecords: HALF, bootId: "boot 1" });
      await again.flush();
      losePower(files);
      await using last = await open(env, { backing, bootId: "boot 2", logHalfRecords: HALF });
      expect(await holds(last, 0, 2)).toBe(mutant === undefined);
    }
  });
});

describe("an overlay whose storage fails", () => {
  it("fails every write and flush after a sync that failed, and trusts no log afterwards", async () => {
    const { files, env, backing, overlay } = await begun(HALF);
    await overlay.write(0, pattern(0, CLUSTER, 2));
    files.inject({ operation: "dataSync", code: "ENOSPC", times: 1 });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await expect(overlay.write(0, pattern(0, 512, 3))).rejects.toMatchObject({ code: "io" });
    expect(await holds(overlay, CLUSTER, 1)).toBe(true);
    kill(files);
    await using again = await open(env, { backing, logHalfRecords: HALF });
    expect(await holds(again, 0, 1)).toBe(true);
  });

  it("tells nobody that data was lost before its log is of no more use", async () => {
    const { files, overlay } = await begun(HALF);
    await overlay.write(0, pattern(0, CLUSTER, 2));
    files.inject({ operation: "dataSync", code: "EIO", times: 1 });
    files.features = { ...files.features, readNow: false };
    const release = files.hold("write");
    const told: string[] = [];
    const tell = (what: string) => (error: unknown) => void told.push(`${what}: ${(error as BlockError).code}`);
    const flush = overlay.flush().catch(tell("flush"));
    for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    const write = overlay.write(0, pattern(0, 512, 3)).catch(tell("write"));
    expect(overlay.writeNow(0, pattern(0, 512, 3))).toBe(-1);
    for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    expect(told).toEqual([]);
    release();
    await Promise.all([flush, write]);
    expect(told.sort()).toEqual(["flush: io", "write: io"]);
    files.clearFaults();
    await overlay.close();
    const header = Buffer.alloc(512, 0xee);
    files.disks.get(logPath(IMAGE))?.get(0, header);
    expect(header.equals(Buffer.alloc(512))).toBe(true);
  });

  it("writes anew what its log tells of: the sync that was under way may have failed unseen", async () => {
    for (const mutant of [undefined, "cor/replay-not-rewritten"] as const) {
      const { files, env, backing, overlay } = await begun(HALF, ...(mutant === undefined ? [] : [mutant]));
      await overlay.write(CLUSTER, pattern(CLUSTER, CLUSTER, 2));
      await overlay.writeZeroes(4 * CLUSTER, CLUSTER);
      // Clean, as the kernel sees it, and not on the disk.
      files.disks.get(IMAGE)?.takeDirty();
      kill(files);
      const again = await open(env, { backing, logHalfRecords: HALF });
      await again.flush();
      losePower(files);
      await using last = await open(env, { backing, bootId: "boot 2", logHalfRecords: HALF });
      expect(await holds(last, CLUSTER, 2)).toBe(mutant === undefined);
      expect(Buffer.from(await readAll(last, 4 * CLUSTER, CLUSTER)).equals(Buffer.alloc(CLUSTER))).toBe(true);
    }
  });

  it("goes on after it ran out of space, in the image or in the map", async () => {
    for (const after of [0, 1]) {
      const { files, env, backing, overlay } = await begun(HALF);
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
    const { files, env, backing, overlay } = await begun(HALF);
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
    const { env, overlay } = await begun(HALF);
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
        await expect(create(env, SIZE)).rejects.toThrow(`ordered to fail (${operation})`);
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
    const { files, env, backing, overlay } = await begun(HALF);
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
