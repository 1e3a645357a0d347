import { describe, expect, it } from "vitest";
import { createMap, openMap } from "../../../src/cor/map-file.ts";
import {
  decodePage,
  decodeSuperblock,
  encodePage,
  encodeSuperblock,
  PAGE_BITS_BYTES,
  PAGE_BYTES,
  PAGE_CLUSTERS,
  pageCount,
  SLOTS_OFFSET,
  type Superblock,
} from "../../../src/cor/map-format.ts";
import { addTo, runOf } from "../../../src/cor/parts.ts";
import { Presence } from "../../../src/cor/presence.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { world } from "./support.ts";

const FIELDS: Superblock = {
  state: "open",
  uuid: Uint8Array.from({ length: 16 }, (_, index) => index + 1),
  generation: 2 ** 40 + 5,
  sizeBytes: 2 ** 44 + 512,
  clusterBytes: 4096,
  sourceIdentity: "disk A",
  term: 3,
};
const OLD = new Uint8Array(PAGE_BITS_BYTES).fill(0x0f);
const NEW = new Uint8Array(PAGE_BITS_BYTES).fill(0x3f);
const PATH = "/vm/disk.raw.map";

describe("the bytes of a map", () => {
  it("gives a superblock back as it was", () => {
    expect(decodeSuperblock(encodeSuperblock(FIELDS))).toEqual(FIELDS);
  });

  it("refuses a superblock of which any byte was changed", () => {
    const good = encodeSuperblock(FIELDS);
    for (let at = 0; at < good.length; at++) {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] ?? 0) ^ 0x55;
      expect(decodeSuperblock(bad), `byte ${at}`).toBeUndefined();
    }
  });

  it("takes the other slot's sector, and invents no bit, when any byte of one slot was changed", () => {
    const slots = [encodePage(OLD, 3, 7), encodePage(NEW, 3, 8)] as const;
    expect(decodePage(slots, 3)).toMatchObject({ bits: NEW, slot: 1, torn: false });
    for (let at = 0; at < 2 * PAGE_BYTES; at++) {
      const bad = slots.map((slot) => Buffer.from(slot)) as [Buffer, Buffer];
      const [slot, within] = [at < PAGE_BYTES ? 0 : 1, at % PAGE_BYTES] as const;
      bad[slot][within] = (bad[slot][within] ?? 0) ^ 0x80;
      const loaded = decodePage(bad, 3);
      const expected = Buffer.from(NEW);
      const sector = Math.floor(within / 512) * 496;
      if (slot === 1) expected.set(OLD.subarray(sector, sector + 496), sector);
      expect(loaded?.torn).toBe(slot === 1);
      expect(Buffer.compare(loaded?.bits ?? Buffer.alloc(0), expected), `byte ${at}`).toBe(0);
    }
  });

  it("refuses a page of which both copies of a sector are bad, and sectors of another page", () => {
    expect(decodePage([Buffer.alloc(PAGE_BYTES, 1), Buffer.alloc(PAGE_BYTES, 2)], 0)).toBeUndefined();
    expect(decodePage([encodePage(OLD, 1, 1), encodePage(OLD, 1, 2)], 0)).toBeUndefined();
  });

  it("takes a page of zeroes for one without a bit", () => {
    const loaded = decodePage([Buffer.alloc(PAGE_BYTES), Buffer.alloc(PAGE_BYTES)], 9);
    expect(loaded).toEqual({ bits: new Uint8Array(PAGE_BITS_BYTES), slot: 0, generation: 0, torn: false });
  });
});

describe("a map file", () => {
  const make = async (sizeBytes: number) => {
    const files = new FakeFiles();
    const env = world(files);
    const { uuid, clusterBytes, sourceIdentity, term } = FIELDS;
    await createMap(env, PATH, { uuid, clusterBytes, sourceIdentity, term, sizeBytes });
    return { files, env };
  };

  it("falls back to the older superblock when the newer is torn, and is refused when both are", async () => {
    const { files, env } = await make(2 ** 20);
    const map = await openMap(env, PATH);
    await map.update({ state: "open", term: 9 });
    await map.close();
    const disk = files.disks.get(PATH);
    disk?.put(PAGE_BYTES + 100, new Uint8Array(8).fill(0xaa));
    const old = await openMap(env, PATH);
    expect(old.superblock).toMatchObject({ state: "new", term: 3 });
    await old.close();
    disk?.put(100, new Uint8Array(8).fill(0xaa));
    await expect(openMap(env, PATH)).rejects.toMatchObject({ code: "map-corrupt" });
  });

  it("is refused when both slots of a page are bad", async () => {
    const { files, env } = await make(2 ** 20);
    for (const slot of [0, 1]) files.disks.get(PATH)?.put(SLOTS_OFFSET + slot * PAGE_BYTES, new Uint8Array(16).fill(7));
    const map = await openMap(env, PATH);
    await expect(new Presence(map, 256).open(true)).rejects.toMatchObject({ code: "map-corrupt" });
  });

  it("never writes to the 4 KiB that hold what is durable", async () => {
    const { files, env } = await make(2 ** 20);
    const map = await openMap(env, PATH);
    const presence = new Presence(map, 256);
    await presence.open(false);
    const writes: string[] = [];
    for (let cluster = 0; cluster < 4; cluster++) {
      await addTo(presence, cluster, cluster);
      presence.seal();
      files.log.length = 0;
      await map.writePages(presence.sealed(false));
      for (const [page] of presence.sealed(false)) map.settle(page);
      presence.settle();
      writes.push(...files.log.filter((line) => line.startsWith("write")));
    }
    expect(writes).toEqual(["write 12288+4096", "write 8192+4096", "write 12288+4096", "write 8192+4096"]);
  });

  it("keeps few pages in memory at 16 TiB with every other cluster present, and none when all are", async () => {
    const { env } = await make(2 ** 44);
    const clusters = 2 ** 32;
    const map = await openMap(env, PATH);
    const presence = new Presence(map, clusters);
    await presence.open(false);
    expect(map.pages).toBe(pageCount(clusters));
    const last = pageCount(clusters) - 1;
    let [most, visited] = [0, 0];
    for (let page = 0; page < last; page += 20) {
      const first = page * PAGE_CLUSTERS;
      if (page % 40 === 0) await addTo(presence, first, first + PAGE_CLUSTERS - 1);
      else for (const cluster of [1, 3, 9]) await addTo(presence, first + cluster, first + cluster);
      visited += 1;
      most = Math.max(most, presence.pagesHeld);
      if (!presence.crowded) continue;
      presence.seal();
      await map.writePages(presence.sealed(false));
      for (const [number] of presence.sealed(false)) map.settle(number);
      presence.settle();
    }
    expect(visited).toBeGreaterThan(6000);
    expect(most).toBeLessThanOrEqual(4096);
    // Evicted ones are found again.
    expect(await runOf(presence, 20 * PAGE_CLUSTERS + 3, 20 * PAGE_CLUSTERS + 8)).toEqual({
      present: true,
      last: 20 * PAGE_CLUSTERS + 3,
    });
  }, 20_000);
});
