import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { describeConformance } from "../../support/conformance.ts";
import { pattern } from "../../support/patterns.ts";

const MIB = 1024 * 1024;
const PAGE = 64 * 1024;

describeConformance("a device in memory", { make: async (wanted) => new MemoryDevice(wanted) });
describeConformance("a device in memory with pages of 512 bytes", {
  make: async (wanted) => new MemoryDevice({ ...wanted, pageBytes: 512 }),
});

const noSpace = expect.objectContaining({ constructor: BlockError, code: "no-space" });

test("a device in memory takes memory only for what was written, and gives it back", async () => {
  const device = new MemoryDevice({ sizeBytes: 2 ** 53 - 1 });
  expect(device.heldBytes).toBe(0);
  await device.write(2 ** 52, pattern(0, 100));
  expect(device.heldBytes).toBe(PAGE);
  await device.write(2 ** 30, pattern(0, PAGE));
  const neighbour = Buffer.alloc(PAGE);
  await device.writeZeroes(0, 2 ** 30 - 10);
  await device.read(2 ** 30, neighbour);
  expect(neighbour.equals(pattern(0, PAGE))).toBe(true);
  await device.writeZeroes(0, 2 ** 52);
  expect(device.heldBytes).toBe(PAGE);
  await device.writeZeroes(2 ** 52 + 50, 2 ** 52 - 100);
  const left = Buffer.alloc(100);
  expect(device.readNow(2 ** 52, left)).toBe(100);
  expect(left).toEqual(Buffer.concat([pattern(0, 50), Buffer.alloc(50)]));
  await device.discard(0, 2 ** 53 - 1);
  expect(device.heldBytes).toBe(0);
});

test("zeroes that must not be a hole are provisioned, others are not", async () => {
  const device = new MemoryDevice({ sizeBytes: 4 * MIB, heldBytesMax: MIB });
  await device.writeZeroes(0, MIB, { noHole: true });
  expect(device.heldBytes).toBe(MIB);
  expect(await device.extents(0, MIB, 10)).toEqual([{ length: MIB, hole: false, zero: false }]);
  // What is provisioned can be written, although nothing more fits.
  await expect(device.write(2 * MIB, pattern(0, 1))).rejects.toEqual(noSpace);
  await device.write(0, pattern(0, MIB));
  await device.writeZeroes(0, MIB);
  expect(device.heldBytes).toBe(0);
});

test("a device that holds all it may refuses more and changes nothing", async () => {
  const device = new MemoryDevice({ sizeBytes: 2 ** 50, heldBytesMax: 2 * PAGE });
  await device.write(0, pattern(0, PAGE));
  await expect(device.write(10 * PAGE, pattern(0, 2 * PAGE))).rejects.toEqual(noSpace);
  expect(() => device.writeNow(10 * PAGE, pattern(0, 2 * PAGE))).toThrow(BlockError);
  await expect(device.writeZeroes(0, 2 ** 50, { noHole: true })).rejects.toEqual(noSpace);
  expect(device.heldBytes).toBe(PAGE);
  await device.write(10 * PAGE, pattern(0, PAGE));
});

test("a device in memory has a whole, safe size, and content that fits", () => {
  for (const sizeBytes of [-1, 0.5, 2 ** 53, Number.NaN])
    expect(() => new MemoryDevice({ sizeBytes })).toThrow(RangeError);
  expect(() => new MemoryDevice({ sizeBytes: 10, content: pattern(0, 11) })).toThrow(BlockError);
});

test("one call walks no more than a bounded part of a huge hole", async () => {
  const device = new MemoryDevice({ sizeBytes: 2 ** 50 });
  const [extent] = await device.extents(0, 2 ** 50, 10);
  expect(extent).toMatchObject({ hole: true, zero: true });
  expect(extent?.length).toBe(65_536 * PAGE);
});
