/** QED and qcow2 images as the stores of overlays. */
import { describe, expect, it } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import type { OverlayStore } from "../../../src/block/overlay-store.ts";
import { chooseFormat, openImage } from "../../../src/image/format.ts";
import { unfinishedMark } from "../../../src/image/tables/unfinished-mark.ts";
import { describeConformance } from "../../support/conformance.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const UUID = Uint8Array.from({ length: 16 }, (_, index) => 200 + index);
const OTHER_UUID = UUID.slice().reverse();
const MIB = 1024 * 1024;
const CLUSTER_BYTES = 4096;

interface Overlays {
  readonly name: string;
  readonly path: string;
  readonly imageClusterBytes: number;
  create(files: FakeFiles, options: { sizeBytes: number; begun?: boolean; uuid?: Uint8Array }): Promise<void>;
  open(files: FakeFiles, options: { sizeBytes: number; state?: "open" | "clean" | "complete" }): Promise<OverlayStore>;
  check(files: FakeFiles): Promise<{ corruptions: number; leaks: number }>;
}

function overlays(name: "qed" | "qcow2", imageClusterBytes = CLUSTER_BYTES): Overlays {
  const path = `/vm/disk.${name}`;
  const { overlay, check } = chooseFormat(path).format;
  if (overlay === undefined || check === undefined) throw new Error(`${name} has no overlays`);
  const common = { path, uuid: UUID, clusterBytes: CLUSTER_BYTES };
  return {
    name,
    path,
    imageClusterBytes,
    create: (files, options) => overlay.create({ files }, { ...common, begun: false, imageClusterBytes, ...options }),
    open: (files, options) => overlay.open({ files }, { ...common, state: "open", ...options }),
    check: async (files) => {
      const { corruptions, leaks } = await check({ files }, { path });
      return { corruptions, leaks };
    },
  };
}

async function read(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await device.read(offset, into);
  return into;
}

function same(found: Buffer, wanted: Uint8Array): boolean {
  return found.equals(wanted);
}

for (const { name, imageClusterBytes } of [
  { name: "qed", imageClusterBytes: 4096 },
  { name: "qcow2", imageClusterBytes: 512 },
  { name: "qcow2", imageClusterBytes: 65_536 },
] as const) {
  const format = overlays(name, imageClusterBytes);
  const filesOf = new WeakMap<BlockDevice, FakeFiles>();
  const open = async (files: FakeFiles, sizeBytes: number): Promise<OverlayStore> => {
    const store = await format.open(files, { sizeBytes });
    filesOf.set(store, files);
    return store;
  };
  describeConformance(`a ${name} image with clusters of ${imageClusterBytes} in an overlay`, {
    sizeMultiple: 512,
    sizeMaxBytes: (imageClusterBytes / 8) * imageClusterBytes * (name === "qed" ? 2048 : 2 ** 22),
    async make({ sizeBytes, content }) {
      const files = new FakeFiles();
      await format.create(files, { sizeBytes });
      const store = await open(files, sizeBytes);
      if (content === undefined) return store;
      await store.putFetched(0, content);
      await store.commit();
      return store;
    },
    alwaysWritable: true,
    afterPowerLoss(device) {
      const files = filesOf.get(device) ?? new FakeFiles();
      files.disks.get(format.path)?.losePower();
      return open(files, device.sizeBytes);
    },
  });
}

for (const format of [overlays("qed"), overlays("qcow2")]) {
  const { name, path } = format;
  describe(`a ${name} image in an overlay`, () => {
    it("cannot be opened as an image until it is complete, and stands alone then", async () => {
      const files = new FakeFiles();
      const sizeBytes = 3 * MIB;
      await format.create(files, { sizeBytes });
      const store = await format.open(files, { sizeBytes });
      await store.putFetched(2, pattern(8192, 60_000, 1));
      await store.putWritten(100, pattern(100, 50, 2));
      await store.zero(3);
      await store.commit();
      await store.close();
      const plain = { path, readOnly: true };
      await expect(openImage({ files }, plain)).rejects.toMatchObject({ code: "backing" });
      const again = await format.open(files, { sizeBytes });
      await again.complete();
      await again.complete();
      // It goes on being written, as before.
      await again.putWritten(2 * MIB, pattern(2 * MIB, 5000, 3));
      await again.commit();
      files.disks.get(path)?.losePower();
      const found = await openImage({ files }, plain);
      await using image = found.image;
      expect(image.backingReference).toBeUndefined();
      expect(image.dirty).toBe(false);
      expect(same(await read(image, 100, 50), pattern(100, 50, 2))).toBe(true);
      expect(same(await read(image, 12_288, 4096), Buffer.alloc(4096))).toBe(true);
      expect(same(await read(image, 16_384, 50_000), pattern(16_384, 50_000, 1))).toBe(true);
      expect(same(await read(image, 2 * MIB, 5000), pattern(2 * MIB, 5000, 3))).toBe(true);
      expect(await format.check(files)).toMatchObject({ corruptions: 0 });
    });

    it("is bound to its map: another one, and one that stands alone too early, are refused", async () => {
      const files = new FakeFiles();
      const sizeBytes = MIB;
      await format.create(files, { sizeBytes, uuid: OTHER_UUID });
      for (const state of ["open", "clean", "complete"] as const) {
        await expect(format.open(files, { sizeBytes, state })).rejects.toMatchObject({ code: "not-an-image" });
      }
      const alone = new FakeFiles();
      await chooseFormat(path).format.create?.({ files: alone }, { path, sizeBytes });
      for (const state of ["open", "clean"] as const) {
        await expect(format.open(alone, { sizeBytes, state })).rejects.toMatchObject({ code: "not-an-image" });
      }
      await (await format.open(alone, { sizeBytes, state: "complete" })).close();
    });

    it("is finished wherever making it was cut short, and nobody else's file is touched", async () => {
      const sizeBytes = MIB;
      const whole = new FakeFiles();
      await format.create(whole, { sizeBytes });
      const disk = whole.disks.get(path);
      if (disk === undefined) throw new Error("there is no file");
      const bytes = Buffer.alloc(disk.size);
      await (await whole.open({ path, writable: false })).read(0, bytes);
      await expect(format.create(whole, { sizeBytes })).rejects.toMatchObject({ code: "exists" });
      // Any sector may be lost, and any part of the length.
      for (const size of [0, 512, 1000, 70_000, bytes.length]) {
        for (const lost of [0, 512, 4096]) {
          const files = new FakeFiles();
          const left = Buffer.from(bytes.subarray(0, size));
          if (lost > 0) left.fill(0, 0, Math.min(lost, left.length));
          files.add(path, left);
          await format.create(files, { sizeBytes, begun: true });
          await (await format.open(files, { sizeBytes })).close();
          expect(await format.check(files)).toEqual({ corruptions: 0, leaks: 0 });
        }
      }
      for (const [size, at] of [
        [bytes.length, 0],
        [bytes.length, bytes.length - 1],
        [bytes.length + 1, bytes.length],
      ] as const) {
        const files = new FakeFiles();
        const foreign = Buffer.concat([bytes, Buffer.alloc(1)]).subarray(0, size);
        foreign[at] = 0xaa;
        files.add(path, foreign);
        await expect(format.create(files, { sizeBytes, begun: true })).rejects.toMatchObject({ code: "exists" });
        const kept = Buffer.alloc(size);
        await (await files.open({ path, writable: false })).read(0, kept);
        expect(same(kept, foreign)).toBe(true);
      }
    });

    it("uses the space again that a kill has left unused", async () => {
      const files = new FakeFiles();
      const sizeBytes = 8 * MIB;
      await format.create(files, { sizeBytes });
      let size = 0;
      for (let life = 0; life < 6; life++) {
        // Not closed: what was reserved is lost.
        const store = await format.open(files, { sizeBytes });
        await store.putWritten(life * MIB, pattern(life * MIB, 3 * CLUSTER_BYTES, 1));
        await store.commit();
        files.disks.get(path)?.losePower();
        expect((await format.check(files)).corruptions).toBe(0);
        const now = files.disks.get(path)?.size ?? 0;
        if (life > 0 && name === "qed") expect(now - size).toBeLessThanOrEqual(64 * CLUSTER_BYTES);
        size = now;
      }
      const last = await format.open(files, { sizeBytes });
      for (let life = 0; life < 6; life++) {
        const at = life * MIB;
        expect(same(await read(last, at, 3 * CLUSTER_BYTES), pattern(at, 3 * CLUSTER_BYTES, 1))).toBe(true);
      }
      await last.complete();
      await last.close();
      expect(await format.check(files)).toEqual({ corruptions: 0, leaks: 0 });
    });

    it("gives a use to space that could not be used where it was taken", async () => {
      const files = new FakeFiles();
      const sizeBytes = 8 * MIB;
      await format.create(files, { sizeBytes });
      const store = await format.open(files, { sizeBytes });
      await store.putWritten(0, pattern(0, CLUSTER_BYTES, 1));
      // A place that is taken, and not used: the guest zeroes the range instead.
      files.inject({ operation: "write", code: "ENOSPC", times: 1 });
      await expect(store.putWritten(MIB, pattern(MIB, 2 * CLUSTER_BYTES, 1))).rejects.toMatchObject({
        code: "no-space",
      });
      await store.putWritten(2 * MIB, pattern(2 * MIB, CLUSTER_BYTES, 1));
      await store.complete();
      await store.close();
      expect(await format.check(files)).toEqual({ corruptions: 0, leaks: 0 });
      const { image } = await openImage({ files }, { path, readOnly: true });
      expect(same(await read(image, 2 * MIB, CLUSTER_BYTES), pattern(2 * MIB, CLUSTER_BYTES, 1))).toBe(true);
      expect(same(await read(image, MIB, MIB), Buffer.alloc(MIB))).toBe(true);
      await image.close();
    });
  });
}

it("the mark of an unfinished copy names its map, and a protocol that QEMU does not know", () => {
  expect(unfinishedMark(UUID)).toBe(`blockferry-unfinished:${Buffer.from(UUID).toString("hex")}`);
});
