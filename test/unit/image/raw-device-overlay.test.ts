/** A raw image on a block device as the store of an overlay: what is on the device, and what is not, until it is complete. */
import { describe, expect, it } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { createRawDeviceOverlay, openRawDeviceOverlay } from "../../../src/image/raw-device-overlay.ts";
import { describeConformance } from "../../support/conformance.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/dev/vda";
const HEAD = "/var/vda.head";
const UUID = Uint8Array.from({ length: 16 }, (_, index) => 100 + index);
const HEAD_BYTES = 8192;
const common = { path: PATH, uuid: UUID, head: HEAD, headBytes: HEAD_BYTES, clusterBytes: 4096 };
const SIZE = 20_000;
const DEVICE_BYTES = 24_576;
const filesOf = new WeakMap<BlockDevice, FakeFiles>();

function hostWith(device: Uint8Array | number): FakeFiles {
  const files = new FakeFiles();
  files.features = { ...files.features, extents: false };
  files.add(PATH, device, "block-device");
  return files;
}

async function made(): Promise<FakeFiles> {
  const files = hostWith(pattern(0, DEVICE_BYTES, 7));
  await createRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE });
  return files;
}

/** Conformance is asked of small disks too. */
const SMALL = { ...common, headBytes: 512 };

describeConformance("a raw image on a device in an overlay", {
  async make({ sizeBytes, content }) {
    const files = hostWith(sizeBytes);
    // There is no smaller mark: such a disk can only be complete.
    const state = sizeBytes < 512 ? "complete" : "new";
    if (state === "new") await createRawDeviceOverlay({ files }, { ...SMALL, sizeBytes });
    const opened = await openRawDeviceOverlay({ files }, { ...SMALL, sizeBytes, state });
    if (content !== undefined) await opened.write(0, content);
    await opened.flush();
    filesOf.set(opened, files);
    return opened;
  },
  alwaysWritable: true,
  failNextSync: (device) => filesOf.get(device)?.inject({ operation: "dataSync", code: "EIO", times: 1 }),
  async afterPowerLoss(device) {
    const files = filesOf.get(device) ?? new FakeFiles();
    for (const disk of files.disks.values()) disk.losePower();
    return await openRawDeviceOverlay({ files }, { ...SMALL, sizeBytes: device.sizeBytes, state: "open" });
  },
});

describe("a raw image on a device in an overlay", () => {
  it("begins with a mark, and leaves the device's end alone", async () => {
    const files = await made();
    const found = Buffer.alloc(DEVICE_BYTES);
    files.disks.get(PATH)?.losePower();
    files.disks.get(PATH)?.get(0, found);
    expect(found.toString("latin1", 0, 8)).toBe("BFERRYIM");
    expect(found.subarray(512, HEAD_BYTES).equals(Buffer.alloc(HEAD_BYTES - 512))).toBe(true);
    expect(found.subarray(HEAD_BYTES).equals(pattern(HEAD_BYTES, DEVICE_BYTES - HEAD_BYTES, 7))).toBe(true);
    const disk = pattern(0, SIZE, 3);
    const store = await openRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE, state: "new" });
    await store.putWritten(0, disk);
    await store.commit();
    files.disks.get(PATH)?.get(0, found);
    expect(found.toString("latin1", 0, 8)).toBe("BFERRYIM");
    await store.complete();
    await store.complete();
    await store.close();
    files.disks.get(PATH)?.losePower();
    files.disks.get(PATH)?.get(0, found);
    expect(found.subarray(0, SIZE).equals(disk)).toBe(true);
    expect(found.subarray(SIZE).equals(pattern(SIZE, DEVICE_BYTES - SIZE, 7))).toBe(true);
    expect(files.disks.has(HEAD)).toBe(false);
    await using plain = await openRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE, state: "complete" });
    await plain.complete();
  });

  it("is refused without its mark, without its head, and where either belongs to another map", async () => {
    const open = (files: FakeFiles, uuid = UUID) =>
      openRawDeviceOverlay({ files }, { ...common, uuid, sizeBytes: SIZE, state: "open" });
    const overwritten = await made();
    overwritten.disks.get(PATH)?.put(0, pattern(0, 4096, 8));
    const [headless, good] = [await made(), await made()];
    await headless.unlink(HEAD);
    for (const opening of [open(overwritten), open(headless), open(good, UUID.slice().reverse())]) {
      await expect(opening).rejects.toMatchObject({ code: "not-an-image" });
    }
    await (await open(good)).close();
  });

  it("wants a device that is large enough, and a device", async () => {
    const small = hostWith(SIZE - 1);
    const create = (files: FakeFiles, sizeBytes = SIZE) => createRawDeviceOverlay({ files }, { ...common, sizeBytes });
    await expect(create(small)).rejects.toMatchObject({ code: "bad-geometry", doing: "create" });
    await expect(create(hostWith(SIZE), HEAD_BYTES - 1)).rejects.toMatchObject({ code: "bad-geometry" });
    const file = new FakeFiles();
    file.add(PATH, SIZE);
    await expect(create(file)).rejects.toMatchObject({ code: "not-an-image" });
    expect([small, file].map((files) => files.disks.has(HEAD))).toEqual([false, false]);
  });

  it("holds up whoever uses the head while it lands, and nobody else", async () => {
    const files = await made();
    const store = await openRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE, state: "new" });
    await store.putWritten(0, pattern(0, SIZE, 3));
    await store.commit();
    const letGo = files.hold("write");
    const order: string[] = [];
    const completing = store.complete().then(() => order.push("complete"));
    await expect.poll(() => files.log.at(-1), { timeout: 20_000 }).toBe(`write 0+${HEAD_BYTES}`);
    expect(store.readNow(100, Buffer.alloc(100))).toBe(-1);
    expect(store.writeNow(100, Buffer.alloc(100))).toBe(-1);
    expect(store.readNow(HEAD_BYTES, Buffer.alloc(100))).toBe(100);
    const writing = store.putWritten(100, pattern(100, 50, 4)).then(() => order.push("written"));
    letGo();
    await Promise.all([completing, writing]);
    expect(order).toEqual(["complete", "written"]);
    const into = Buffer.alloc(50);
    files.disks.get(PATH)?.get(100, into);
    expect(into.equals(pattern(100, 50, 4))).toBe(true);
    await store.close();
  });

  it("writes and flushes nothing any more once its head has failed to land", async () => {
    const files = await made();
    const store = await openRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE, state: "new" });
    await store.putWritten(0, pattern(0, SIZE, 3));
    await store.commit();
    // The head's file once more, the device behind the mark, then the mark.
    files.inject({ operation: "write", code: "EIO", after: 2, times: 1 });
    await expect(store.complete()).rejects.toMatchObject({ code: "io" });
    for (const attempt of [store.write(0, Buffer.alloc(512)), store.flush(), store.complete()]) {
      await expect(attempt).rejects.toMatchObject({ code: "io" });
    }
    await store.close();
    // It is what it was: another life brings it to its end.
    const again = await openRawDeviceOverlay({ files }, { ...common, sizeBytes: SIZE, state: "complete" });
    await again.complete();
    await again.close();
    const found = Buffer.alloc(SIZE);
    files.disks.get(PATH)?.get(0, found);
    expect(found.equals(pattern(0, SIZE, 3))).toBe(true);
  });
});
