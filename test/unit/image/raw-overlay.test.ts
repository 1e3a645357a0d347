import { describe, expect, it } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { describeConformance } from "../../support/conformance.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/vm/disk.raw";
const UUID = Uint8Array.from({ length: 16 }, (_, index) => 200 + index);
const common = { path: PATH, uuid: UUID, begun: false, clusterBytes: 4096, state: "clean" as const };
const filesOf = new WeakMap<BlockDevice, FakeFiles>();

async function open(files: FakeFiles, sizeBytes: number): Promise<BlockDevice> {
  const device = await openRawOverlay({ files }, { ...common, sizeBytes });
  filesOf.set(device, files);
  return device;
}

describeConformance("a raw image in an overlay", {
  async make({ sizeBytes, content }) {
    const files = new FakeFiles();
    await createRawOverlay({ files }, { ...common, sizeBytes });
    if (content !== undefined) files.disks.get(PATH)?.put(0, content);
    return open(files, sizeBytes);
  },
  alwaysWritable: true,
  afterPowerLoss(device) {
    const files = filesOf.get(device);
    files?.disks.get(PATH)?.losePower();
    return open(files ?? new FakeFiles(), device.sizeBytes);
  },
});

describe("a raw image in an overlay", () => {
  it("is bound to its map by a trailer, until it is complete and has exactly the disk's size", async () => {
    const files = new FakeFiles();
    const sizeBytes = 10_000;
    await createRawOverlay({ files }, { ...common, sizeBytes });
    const other = { ...common, sizeBytes, uuid: UUID.slice().reverse() };
    await expect(openRawOverlay({ files }, other)).rejects.toMatchObject({ code: "not-an-image" });
    const store = await openRawOverlay({ files }, { ...common, sizeBytes });
    await store.putFetched(2, pattern(8192, 1808, 1));
    await store.zero(2);
    await store.putWritten(100, pattern(100, 50, 2));
    await store.complete();
    await store.complete();
    await store.close();
    files.disks.get(PATH)?.losePower();
    expect(files.disks.get(PATH)?.size).toBe(sizeBytes);
    await expect(openRawOverlay({ files }, { ...common, sizeBytes })).rejects.toMatchObject({ code: "not-an-image" });
    await using plain = await openRawOverlay({ files }, { ...common, sizeBytes, state: "complete" });
    const into = Buffer.alloc(50);
    await plain.read(100, into);
    expect(into.equals(pattern(100, 50, 2))).toBe(true);
  });

  it("is finished where power went before the trailer was on the disk, and nobody else's image is touched", async () => {
    const sizeBytes = 20_000;
    const begun = { ...common, sizeBytes, begun: true };
    const whole = new FakeFiles();
    await createRawOverlay({ files: whole }, { ...begun, uuid: UUID.slice().reverse() });
    await expect(createRawOverlay({ files: whole }, begun)).rejects.toMatchObject({ code: "exists" });
    const size = whole.disks.get(PATH)?.size ?? 0;
    const empty = new FakeFiles();
    empty.add(PATH, size);
    await expect(createRawOverlay({ files: empty }, { ...begun, begun: false })).rejects.toMatchObject({
      code: "exists",
    });
    await createRawOverlay({ files: empty }, begun);
    await (await openRawOverlay({ files: empty }, begun)).close();
    const full = new FakeFiles();
    full.add(PATH, pattern(0, size, 3));
    await expect(createRawOverlay({ files: full }, begun)).rejects.toMatchObject({ code: "exists" });
  });

  it("opens when it is complete and power went while its trailer was going", async () => {
    const files = new FakeFiles();
    const sizeBytes = 20_000;
    await createRawOverlay({ files }, { ...common, sizeBytes });
    const disk = files.disks.get(PATH);
    disk?.put(disk.size - 512, new Uint8Array(512));
    await expect(openRawOverlay({ files }, { ...common, sizeBytes })).rejects.toMatchObject({ code: "not-an-image" });
    const store = await openRawOverlay({ files }, { ...common, sizeBytes, state: "complete" });
    await store.complete();
    await store.close();
    expect(disk?.size).toBe(sizeBytes);
  });

  it("after a kill does not take zeroes in the page cache for zeroes on the disk, where holes cannot be told", async () => {
    const old = pattern(0, 4096, 9);
    for (const state of ["open", "clean"] as const) {
      const files = new FakeFiles();
      files.features = { ...files.features, extents: false };
      await createRawOverlay({ files }, { ...common, sizeBytes: 8192 });
      const disk = files.disks.get(PATH);
      disk?.put(0, old);
      disk?.takeDirty()();
      // A sync that fails, with nobody left to be told: the kernel counts as clean what the disk has not got.
      disk?.put(0, new Uint8Array(4096));
      disk?.takeDirty();
      const store = await openRawOverlay({ files }, { ...common, sizeBytes: 8192, state });
      await store.zero(0);
      await store.commit();
      await store.close();
      disk?.losePower();
      const into = Buffer.alloc(4096);
      disk?.get(0, into);
      // An overlay that was closed in order leaves no such pages; one that says so wrongly shows what they would do.
      expect(into.equals(state === "open" ? Buffer.alloc(4096) : old)).toBe(true);
    }
  });
});
