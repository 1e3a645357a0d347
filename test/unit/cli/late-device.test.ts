/** A disk whose image its guest's own QEMU has open until it has moved. */
import { expect, test } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { LateDevice } from "../../../src/cli/source/late-device.ts";

const SIZE = 64 * 1024;

class Image {
  readonly device = new MemoryDevice({ sizeBytes: SIZE });
  opens = 0;
  closes = 0;
  isLocked = true;

  open = async (): Promise<{ device: BlockDevice; close: () => Promise<void> }> => {
    if (this.isLocked) throw new Error("somebody has it");
    this.opens += 1;
    const close = async (): Promise<void> => {
      this.closes += 1;
    };
    return { device: this.device, close };
  };
}

test("has its size from the start, is read while it is open, and is never changed", async () => {
  const image = new Image();
  await image.device.write(4096, Buffer.alloc(512, 7));
  await using late = new LateDevice(SIZE, image.open);
  const into = Buffer.alloc(512);
  expect(late.sizeBytes).toBe(SIZE);
  expect(late.readNow(4096, into)).toBe(-1);
  await expect(late.read(4096, into)).rejects.toMatchObject({ code: "io" });
  await expect(late.extents(0, 512, 1)).rejects.toMatchObject({ code: "io" });
  await expect(late.read(SIZE, into)).rejects.toMatchObject({ code: "out-of-range" });
  await expect(late.open()).rejects.toThrow("somebody has it");

  image.isLocked = false;
  await late.open();
  await late.open();
  expect(image.opens).toBe(1);
  await late.read(4096, into);
  expect(into).toEqual(Buffer.alloc(512, 7));
  for (const change of [() => late.write(), () => late.writeZeroes(), () => late.discard()]) {
    await expect(change()).rejects.toMatchObject({ code: "read-only" });
  }

  await late.shut();
  await expect(late.read(4096, into)).rejects.toMatchObject({ code: "io" });
  await late.open();
  expect([image.opens, image.closes]).toEqual([2, 1]);
});

test("an image of another size is not opened, and not kept", async () => {
  const image = new Image();
  image.isLocked = false;
  await using late = new LateDevice(SIZE - 512, image.open);
  await expect(late.open()).rejects.toThrow(`from ${SIZE - 512} to ${SIZE} bytes`);
  expect(image.closes).toBe(1);
  await expect(late.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "io" });
});

test("the image is closed when the last read is done, and not before", async () => {
  const image = new Image();
  image.isLocked = false;
  const gate = Promise.withResolvers<void>();
  image.device.read = async () => await gate.promise;
  await using late = new LateDevice(SIZE, image.open);
  await late.open();
  const reading = late.read(0, Buffer.alloc(512));
  const shutting = late.shut();
  await new Promise((resolve) => setImmediate(resolve));
  expect(image.closes).toBe(0);
  gate.resolve();
  await Promise.all([reading, shutting]);
  expect(image.closes).toBe(1);
});

test("what is asked for while it is being opened comes afterwards: nothing stays open that was to be let go of", async () => {
  const image = new Image();
  image.isLocked = false;
  const gate = Promise.withResolvers<void>();
  await using late = new LateDevice(SIZE, async () => {
    await gate.promise;
    return await image.open();
  });
  const opening = late.open();
  const again = late.open();
  let isShut = false;
  const shutting = Promise.all([late.shut(), late.shut()]).then(() => {
    isShut = true;
    expect([image.opens, image.closes]).toEqual([1, 1]);
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(isShut).toBe(false);
  gate.resolve();
  await Promise.all([opening, again, shutting]);
  await expect(late.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "io" });
  await late.close();
  await expect(late.open()).rejects.toMatchObject({ code: "shutting-down" });
  expect(image.opens).toBe(1);
});
