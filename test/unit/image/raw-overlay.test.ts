import { describe, expect, it } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { describeConformance } from "../../support/conformance.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/vm/disk.raw";
const UUID = Uint8Array.from({ length: 16 }, (_, index) => 200 + index);
const common = { path: PATH, uuid: UUID, begun: false, clusterBytes: 4096, complete: false };
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
    await using plain = await openRawOverlay({ files }, { ...common, sizeBytes, complete: true });
    const into = Buffer.alloc(50);
    await plain.read(100, into);
    expect(into.equals(pattern(100, 50, 2))).toBe(true);
  });
});
