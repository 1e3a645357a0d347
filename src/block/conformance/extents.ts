/** What a device says about its own contents. */
import assert from "node:assert/strict";
import { isZero } from "../../util/zeroes.ts";
import type { BlockDevice } from "../device.ts";
import type { Extent } from "../extents.ts";
import {
  assertHolds,
  assertRefused,
  type ConformanceRule,
  type ConformanceTarget,
  makeFull,
  pattern,
  readBytes,
  roundUp,
} from "./rule.ts";

interface Placed extends Extent {
  readonly offset: number;
}

/** Asks once, and checks the form of the answer. */
async function ask(device: BlockDevice, offset: number, length: number, countMax: number): Promise<Placed[]> {
  const answer = await device.extents(offset, length, countMax);
  const what = `extents(${offset}, ${length}, ${countMax})`;
  assert.ok(answer.length >= 1, `${what}: none`);
  assert.ok(answer.length <= countMax, `${what}: ${answer.length} of them`);
  let at = offset;
  const placed: Placed[] = [];
  for (const extent of answer) {
    assert.ok(Number.isSafeInteger(extent.length) && extent.length >= 1, `${what}: one of ${extent.length} bytes`);
    placed.push({ ...extent, offset: at });
    at += extent.length;
  }
  assert.ok(at <= offset + length, `${what}: ${at - offset} bytes`);
  return placed;
}

/** Asks again and again until everything is told. */
async function walk(device: BlockDevice, offset: number, end: number, countMax: number): Promise<Placed[]> {
  const all: Placed[] = [];
  for (let at = offset; at < end; ) {
    const some = await ask(device, at, end - at, countMax);
    all.push(...some);
    at = all.reduce((last, extent) => Math.max(last, extent.offset + extent.length), at);
  }
  return all;
}

/** Data, holes, zeroes and discarded ranges of many sizes, none of them aligned to anything. */
async function makeMixed(target: ConformanceTarget): Promise<BlockDevice> {
  const device = await target.make({ sizeBytes: roundUp(1_000_003, target.sizeMultiple) });
  for (let offset = 100, turn = 0; offset + 30_000 < device.sizeBytes; offset += 41_111, turn++) {
    await device.write(offset, pattern(offset, 30_000));
    if (turn % 4 === 1) await device.writeZeroes(offset + 5000, 20_000);
    if (turn % 4 === 2) await device.discard(offset, 30_000);
    if (turn % 4 === 3) await device.writeZeroes(offset, 29_000, { noHole: true });
  }
  return device;
}

async function assertNeverEmpty(device: BlockDevice, offset: number, length: number): Promise<void> {
  for (const extent of await walk(device, offset, offset + length, 16)) {
    assert.ok(
      !extent.hole && !extent.zero,
      `data written at ${extent.offset}+${extent.length} is said to be a hole or zero`,
    );
  }
}

export const extentRules: readonly ConformanceRule[] = [
  {
    title: "extents are at least one, at most as many and as long as asked for, and none is empty",
    async run(target) {
      await using device = await makeMixed(target);
      const size = device.sizeBytes;
      for (const offset of [0, 1, 511, 4096, 65_535, 300_001, size - 1]) {
        for (const length of [1, 2, 4095, 65_536, 400_000, size]) {
          const within = Math.min(length, size - offset);
          for (const countMax of [1, 2, 3, 1000]) await ask(device, offset, within, countMax);
        }
      }
    },
  },
  {
    title: "one extent at a time or many, a walk tells the same",
    async run(target) {
      await using device = await makeMixed(target);
      const many = join(await walk(device, 0, device.sizeBytes, 1000));
      const few = join(await walk(device, 0, device.sizeBytes, 1));
      assert.deepEqual(few, many);
      assert.equal(
        many.reduce((sum, extent) => sum + extent.length, 0),
        device.sizeBytes,
      );
    },
  },
  {
    title: "what is said to be zero reads as zeroes",
    async run(target) {
      await using device = await makeMixed(target);
      for (const { offset, length, zero } of await walk(device, 0, device.sizeBytes, 4)) {
        if (zero) assert.ok(isZero(await readBytes(device, offset, length)), `${offset}+${length} is not zero`);
      }
      await using full = await makeFull(target);
      const said = await walk(full, 0, full.sizeBytes, 4);
      assert.ok(!said.some((extent) => extent.zero), "a device full of data is said to hold zeroes");
    },
  },
  {
    title: "data is never said to be a hole or zero once its write has resolved",
    async run(target) {
      await using device = await target.make({ sizeBytes: roundUp(1_000_003, target.sizeMultiple) });
      for (const [offset, length] of [
        [0, 1],
        [70_001, 3],
        [262_143, 2],
        [300_000, 300_000],
        [device.sizeBytes - 1, 1],
      ] as const) {
        // Asked before as well: an answer that was remembered would now be wrong.
        await walk(device, 0, device.sizeBytes, 16);
        await device.write(offset, pattern(offset, length));
        await assertNeverEmpty(device, offset, length);
        await device.writeZeroes(offset, length);
        await walk(device, offset, offset + length, 16);
        if (device.writeNow(offset, pattern(offset, length, 1)) === -1)
          await device.write(offset, pattern(offset, length, 1));
        await assertNeverEmpty(device, offset, length);
        await assertHolds(device, offset, pattern(offset, length, 1));
      }
    },
  },
  {
    title: "a device that cannot tell says that everything is data",
    async run(target) {
      await using device = await makeMixed(target);
      if (device.capabilities.extents) return;
      const said = await walk(device, 0, device.sizeBytes, 16);
      assert.ok(!said.some((extent) => extent.hole || extent.zero), "a hole from a device that cannot tell holes");
    },
  },
  {
    title: "asking for no extents, or about no bytes, is invalid",
    async run(target) {
      await using device = await makeFull(target);
      await assertRefused("extents of no bytes", () => device.extents(0, 0, 1), "invalid");
      await assertRefused("no extents", () => device.extents(0, 512, 0), "invalid");
    },
  },
];

/** Neighbours of one kind made one. */
function join(extents: readonly Placed[]): Placed[] {
  const joined: Placed[] = [];
  for (const extent of extents) {
    const last = joined.at(-1);
    if (last === undefined || last.hole !== extent.hole || last.zero !== extent.zero) joined.push(extent);
    else joined[joined.length - 1] = { ...last, length: last.length + extent.length };
  }
  return joined;
}
