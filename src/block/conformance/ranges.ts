/** Sizes, ranges and their edges. */
import assert from "node:assert/strict";
import type { BlockDevice } from "../device.ts";
import {
  assertBytes,
  assertDeclined,
  assertHolds,
  assertRefused,
  type ConformanceRule,
  LARGE_SIZE_BYTES,
  makeFull,
  overlaid,
  pattern,
  readBytes,
  roundUp,
  usualSize,
  zeroes,
} from "./rule.ts";

type Ranged = (device: BlockDevice, offset: number, length: number) => Promise<unknown>;

/** Every operation that takes a range of any length without a buffer. */
const BUFFERLESS: Readonly<Record<string, Ranged>> = {
  writeZeroes: (device, offset, length) => device.writeZeroes(offset, length),
  discard: (device, offset, length) => device.discard(offset, length),
  cache: (device, offset, length) => device.cache(offset, length),
  extents: (device, offset, length) => device.extents(offset, length, 1),
};

const BUFFERED: Readonly<Record<string, Ranged>> = {
  read: (device, offset, length) => device.read(offset, new Uint8Array(length)),
  write: (device, offset, length) => device.write(offset, pattern(offset, length, 9)),
};

const OPERATIONS = { ...BUFFERED, ...BUFFERLESS };

/** No device of the usual size reaches any of these. Some are congruent to 0 modulo 2^32 or 2^53. */
const FAR = [2 ** 31, 2 ** 32, 2 ** 32 + 512, 2 ** 52, 2 ** 53 - 1, 2 ** 53, 2 ** 63, 2 ** 64, Infinity, Number.NaN];

export const rangeRules: readonly ConformanceRule[] = [
  {
    title: "a device has exactly the size it was made with, and keeps it",
    async run(target) {
      for (const size of [0, 1, 511, 512, 513, 4096, 65_537].map((bytes) => roundUp(bytes, target.sizeMultiple))) {
        await using device = await target.make({ sizeBytes: size });
        assert.equal(device.sizeBytes, size);
        if (size > 0) await device.write(size - 1, pattern(size - 1, 1));
        await device.flush();
        assert.equal(device.sizeBytes, size);
      }
    },
  },
  {
    title: "block sizes are powers of two within their limits",
    async run(target) {
      await using device = await makeFull(target);
      const { minimum, preferred } = device.capabilities.blockSizes;
      for (const size of [minimum, preferred])
        assert.ok(Number.isInteger(Math.log2(size)), `${size} is no power of two`);
      assert.ok(minimum >= 1 && minimum <= 65_536, `minimum ${minimum}`);
      assert.ok(preferred >= Math.max(minimum, 512), `preferred ${preferred} under minimum ${minimum}`);
    },
  },
  {
    title: "a range may end at the size and not one byte further",
    async run(target) {
      const size = usualSize(target);
      for (const [name, operation] of Object.entries(OPERATIONS)) {
        await using device = await makeFull(target);
        for (const length of [1, 511, 4096, size]) {
          await operation(device, size - length, length);
          await assertRefused(
            `${name} one byte past the end`,
            () => operation(device, size - length + 1, length),
            "out-of-range",
          );
          await assertRefused(`${name} just behind the end`, () => operation(device, size, length), "out-of-range");
        }
        await assertRefused(`${name} longer than the device`, () => operation(device, 0, size + 1), "out-of-range");
      }
    },
  },
  {
    title: "a refused range changes nothing",
    async run(target) {
      await using device = await makeFull(target);
      const size = device.sizeBytes;
      for (const [name, operation] of Object.entries(OPERATIONS)) {
        await assertRefused(`${name} across the end`, () => operation(device, size - 600, 1200), "out-of-range");
        await assertRefused(`${name} before the start`, () => operation(device, -600, 1200), "out-of-range");
      }
      await assertHolds(device, 0, pattern(0, size));
    },
  },
  {
    title: "offsets and lengths that overflow 32 or 53 bits, are negative or are no number, are out of range",
    async run(target) {
      await using device = await makeFull(target);
      const size = device.sizeBytes;
      for (const [name, operation] of Object.entries(OPERATIONS)) {
        for (const far of [...FAR, -1, -512, -(2 ** 32)]) {
          await assertRefused(`${name} at ${far}`, () => operation(device, far, 512), "out-of-range");
        }
      }
      for (const [name, operation] of Object.entries(BUFFERLESS)) {
        for (const far of [...FAR, -1, -512]) {
          await assertRefused(`${name} of ${far} bytes`, () => operation(device, 512, far), "out-of-range");
          await assertRefused(`${name} of ${far} bytes at ${far}`, () => operation(device, far, far), "out-of-range");
        }
        await assertRefused(`${name} up to 2^53`, () => operation(device, 2 ** 53 - size, size), "out-of-range");
      }
      await assertHolds(device, 0, pattern(0, size));
    },
  },
  {
    title: "readNow and writeNow decline bad ranges and leave device and buffer alone",
    async run(target) {
      await using device = await makeFull(target);
      const size = device.sizeBytes;
      for (const offset of [size, size - 511, -1, -512, ...FAR]) {
        const into = new Uint8Array(512).fill(0xee);
        assert.equal(device.readNow(offset, into), -1, `readNow at ${offset}`);
        assertBytes(into, new Uint8Array(512).fill(0xee));
        assertDeclined(`writeNow at ${offset}`, () => device.writeNow(offset, pattern(0, 512, 9)), "out-of-range");
      }
      await assertHolds(device, 0, pattern(0, size));
    },
  },
  {
    title: "zero length succeeds anywhere up to the size, fails behind it, and changes nothing",
    async run(target) {
      await using device = await makeFull(target);
      const size = device.sizeBytes;
      const operations = Object.entries(OPERATIONS).filter(([name]) => name !== "extents");
      for (const [name, operation] of operations) {
        for (const offset of [0, 1, 4096, size - 1, size]) await operation(device, offset, 0);
        await assertRefused(`${name} of nothing behind the end`, () => operation(device, size + 1, 0), "out-of-range");
        await assertRefused(`${name} of nothing before the start`, () => operation(device, -1, 0), "out-of-range");
      }
      for (const offset of [0, size]) {
        assert.ok([0, -1].includes(device.readNow(offset, zeroes(0))), "readNow of nothing");
        assert.ok([0, -1].includes(device.writeNow(offset, zeroes(0))), "writeNow of nothing");
      }
      await assertHolds(device, 0, pattern(0, size));
    },
  },
  {
    title: "every byte of a size that is no multiple of 512 can be read and written",
    needs: "anySize",
    async run(target) {
      for (const size of [1, 2, 511, 513, 4095, 4097, 65_535, 131_073]) {
        await using device = await target.make({ sizeBytes: size });
        await device.write(0, pattern(0, size));
        await assertHolds(device, 0, pattern(0, size));
        await device.write(size - 1, pattern(size - 1, 1, 3));
        await assertHolds(device, size - 1, pattern(size - 1, 1, 3));
        await device.writeZeroes(0, size);
        await assertHolds(device, 0, zeroes(size));
      }
    },
  },
  {
    title: "offsets of terabytes are not folded onto smaller ones",
    needs: "largeSize",
    async run(target) {
      const size = roundUp(LARGE_SIZE_BYTES, target.sizeMultiple);
      await using device = await target.make({ sizeBytes: size });
      const places = [0, 2 ** 31, 2 ** 32, 2 ** 33 + 1, 2 ** 40, 2 ** 41 + 2 ** 32, size - 700];
      for (const at of places) await device.write(at, pattern(at, 700));
      for (const at of places) assertBytes(await readBytes(device, at, 700), pattern(at, 700), at);
      for (const at of places) await assertHolds(device, at > 700 ? at - 700 : at + 700, zeroes(700));
      await device.writeZeroes(2 ** 40, 699);
      await assertHolds(device, 2 ** 40, overlaid(zeroes(700), 699, pattern(2 ** 40 + 699, 1)));
      for (const at of places) if (at !== 2 ** 40) await assertHolds(device, at, pattern(at, 700));
    },
  },
];
