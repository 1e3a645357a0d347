/** Writing zeroes and discarding. */
import assert from "node:assert/strict";
import type { BlockDevice, ZeroOptions } from "../device.ts";
import { BlockError } from "../error.ts";
import {
  assertBytes,
  assertHolds,
  assertRefused,
  type ConformanceRule,
  makeFull,
  overlaid,
  pattern,
  readBytes,
  zeroes,
} from "./rule.ts";

const RANGES: readonly (readonly [number, number])[] = [
  [0, 1],
  [511, 2],
  [4096, 4096],
  [4000, 10_000],
  [65_536, 65_536],
  [65_000, 100_001],
];

/** Every combination of the three options. */
const OPTIONS: readonly ZeroOptions[] = Array.from({ length: 8 }, (_, bits) => ({
  fua: (bits & 1) !== 0,
  noHole: (bits & 2) !== 0,
  fastOnly: (bits & 4) !== 0,
}));

/** Whether the zeroes were written; false when they were refused as slow, which only `fastOnly` allows. */
async function tryZeroes(
  device: BlockDevice,
  range: readonly [number, number],
  options: ZeroOptions,
): Promise<boolean> {
  try {
    await device.writeZeroes(range[0], range[1], options);
    return true;
  } catch (error) {
    const refused = options.fastOnly === true && error instanceof BlockError && error.code === "not-supported";
    assert.ok(refused, `writeZeroes ${JSON.stringify(options)}: ${String(error)}`);
    return false;
  }
}

export const zeroRules: readonly ConformanceRule[] = [
  {
    title: "written zeroes read as zeroes under every option and at any alignment, and nothing else has changed",
    async run(target) {
      for (const options of OPTIONS) {
        await using device = await makeFull(target);
        let expected = pattern(0, device.sizeBytes);
        for (const range of RANGES) {
          if (await tryZeroes(device, range, options)) expected = overlaid(expected, range[0], zeroes(range[1]));
          else await device.cache(...range);
          await assertHolds(device, 0, expected);
        }
        await device.writeZeroes(0, device.sizeBytes, { noHole: options.noHole === true });
        await assertHolds(device, 0, zeroes(device.sizeBytes));
      }
    },
  },
  {
    title: "zeroes that are refused as slow have changed nothing",
    async run(target) {
      for (const noHole of [false, true]) {
        await using device = await makeFull(target);
        for (const range of RANGES) {
          const before = await readBytes(device, 0, device.sizeBytes);
          const written = await tryZeroes(device, range, { fastOnly: true, noHole });
          if (!written) await assertHolds(device, 0, before);
        }
      }
    },
  },
  {
    title: "a device without fast zeroes refuses them when only fast ones will do",
    async run(target) {
      await using device = await makeFull(target);
      if (device.capabilities.fastZero) return;
      for (const [offset, length] of RANGES) {
        await assertRefused(
          "slow zeroes",
          () => device.writeZeroes(offset, length, { fastOnly: true }),
          "not-supported",
        );
      }
    },
  },
  {
    title: "data written over zeroes or over what was discarded is there, in all of it or in parts",
    async run(target) {
      await using device = await makeFull(target);
      for (const [offset, length] of RANGES) {
        for (const zero of [true, false]) {
          await (zero ? device.writeZeroes(offset, length) : device.discard(offset, length));
          const middle = offset + Math.floor(length / 3);
          const count = Math.ceil(length / 3);
          const before = await readBytes(device, offset, length);
          await device.write(middle, pattern(middle, count, 8));
          await assertHolds(device, offset, overlaid(before, middle - offset, pattern(middle, count, 8)));
          await device.write(offset, pattern(offset, length, 0));
          await assertHolds(device, offset, pattern(offset, length, 0));
        }
      }
    },
  },
  {
    title: "a discarded range reads as zeroes or as what it held, byte by byte, and nothing else has changed",
    async run(target) {
      for (const fua of [false, true]) {
        await using device = await makeFull(target);
        const size = device.sizeBytes;
        let before = pattern(0, size);
        for (const [offset, length] of RANGES) {
          await device.discard(offset, length, { fua });
          const found = await readBytes(device, 0, size);
          const inside = found.subarray(offset, offset + length);
          const at = inside.findIndex((byte, index) => byte !== 0 && byte !== before[offset + index]);
          assert.equal(at, -1, `at offset ${offset + at}: ${inside[at]} after a discard`);
          assertBytes(found, overlaid(before, offset, inside));
          before = found;
        }
      }
    },
  },
];
