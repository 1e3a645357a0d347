/** Reading and writing: what is seen, whose buffers are whose, what runs side by side. */
import assert from "node:assert/strict";
import type { BlockDevice } from "../device.ts";
import {
  assertBytes,
  assertHolds,
  type ConformanceRule,
  makeFull,
  overlaid,
  pattern,
  readBytes,
  roundUp,
  usualSize,
  zeroes,
} from "./rule.ts";

/** Offset and length: single bytes, sectors, ranges across the borders of sectors, pages and clusters. */
const PLACES: readonly (readonly [number, number])[] = [
  [0, 1],
  [511, 2],
  [512, 512],
  [1, 4096],
  [4095, 1],
  [4090, 13],
  [8192, 4096],
  [65_535, 2],
  [65_000, 70_001],
  [131_071, 4099],
];

const GUARD_BYTES = 64;

export const dataRules: readonly ConformanceRule[] = [
  {
    title: "a fresh device holds what it was made with, and zeroes where that was nothing",
    async run(target) {
      await using full = await makeFull(target);
      await assertHolds(full, 0, pattern(0, full.sizeBytes));
      await using empty = await target.make({ sizeBytes: usualSize(target) });
      await assertHolds(empty, 0, zeroes(empty.sizeBytes));
    },
  },
  {
    title: "a read sees what was written before it, at any alignment, and nothing else has changed",
    async run(target) {
      await using device = await makeFull(target);
      let expected = pattern(0, device.sizeBytes);
      for (const [turn, [offset, length]] of PLACES.entries()) {
        const bytes = pattern(offset, length, turn + 1);
        await device.write(offset, bytes);
        expected = overlaid(expected, offset, bytes);
        await assertHolds(device, offset, bytes);
        await assertHolds(device, 0, expected);
      }
      for (const [offset, length] of PLACES)
        await assertHolds(device, offset, expected.subarray(offset, offset + length));
    },
  },
  {
    title: "a request of several megabytes is answered whole",
    async run(target) {
      const size = roundUp(5 * 1024 * 1024 + 3, target.sizeMultiple);
      await using device = await target.make({ sizeBytes: size });
      const bytes = pattern(1, size - 1);
      await device.write(1, bytes);
      await assertHolds(device, 0, overlaid(zeroes(size), 1, bytes));
    },
  },
  {
    title: "a write keeps nothing of the caller's buffer once it has resolved",
    async run(target) {
      await using device = await makeFull(target);
      let expected = pattern(0, device.sizeBytes);
      for (const [turn, [offset, length]] of PLACES.entries()) {
        const bytes = pattern(offset, length, turn + 1);
        expected = overlaid(expected, offset, bytes);
        const lent = bytes.slice();
        if (device.writeNow(offset, lent) === -1) await device.write(offset, lent);
        lent.fill(0xdd);
        const lentToo = bytes.slice();
        await device.write(offset, lentToo);
        lentToo.fill(0xdd);
      }
      await device.flush();
      await assertHolds(device, 0, expected);
    },
  },
  {
    title: "a write takes exactly the view it is given and leaves its bytes as they are",
    async run(target) {
      await using device = await makeFull(target);
      for (const [offset, length] of PLACES) {
        const around = pattern(offset, length + 2 * GUARD_BYTES, 5);
        const copy = around.slice();
        const view = around.subarray(GUARD_BYTES, GUARD_BYTES + length);
        await device.write(offset, view);
        assertBytes(around, copy);
        await assertHolds(device, offset, copy.subarray(GUARD_BYTES, GUARD_BYTES + length));
        await device.writeZeroes(offset, length);
        if (device.writeNow(offset, view) === -1) await device.write(offset, view);
        assertBytes(around, copy);
        await assertHolds(device, offset, copy.subarray(GUARD_BYTES, GUARD_BYTES + length));
      }
    },
  },
  {
    title: "a read fills exactly the view it is given and never touches it afterwards",
    async run(target) {
      await using device = await makeFull(target);
      const lent: Uint8Array[] = [];
      for (const [offset, length] of PLACES) {
        const around = new Uint8Array(length + 2 * GUARD_BYTES).fill(0xee);
        const view = around.subarray(GUARD_BYTES, GUARD_BYTES + length);
        const expected = overlaid(around, GUARD_BYTES, pattern(offset, length));
        await device.read(offset, view);
        assertBytes(around, expected);
        if (device.readNow(offset, view) !== -1) assertBytes(around, expected);
        around.fill(0x77);
        lent.push(around);
      }
      await device.write(0, pattern(0, device.sizeBytes, 2));
      await device.flush();
      await readBytes(device, 0, device.sizeBytes);
      for (const around of lent) assertBytes(around, new Uint8Array(around.length).fill(0x77));
    },
  },
  {
    title: "writes to neighbouring ranges that are under way together do not lose each other",
    async run(target) {
      // Pieces of 100 bytes share sectors, pages and clusters: whoever reads, merges and writes back has to take turns.
      await using device = await makeFull(target);
      const size = device.sizeBytes;
      let expected = pattern(0, size);
      const writes: Promise<void>[] = [];
      for (let offset = 3, turn = 0; offset + 100 <= 20_000; offset += 100, turn++) {
        const bytes = turn % 5 === 4 ? zeroes(100) : pattern(offset, 100, 6);
        expected = overlaid(expected, offset, bytes);
        writes.push(turn % 5 === 4 ? device.writeZeroes(offset, 100) : device.write(offset, bytes));
      }
      await Promise.all(writes);
      await assertHolds(device, 0, expected);
    },
  },
  {
    title: "operations on disjoint ranges that are under way together do not disturb each other",
    run: disjointOperations,
  },
  {
    title: "where overlapping writes are under way together, every byte is one of theirs",
    async run(target) {
      await using device = await makeFull(target);
      const [offset, length, count] = [1000, 10_000, 8];
      const writes = Array.from({ length: count }, (_, turn) => pattern(offset, length, turn + 1));
      await Promise.all(writes.map((bytes) => device.write(offset, bytes)));
      const found = await readBytes(device, offset, length);
      for (const [at, byte] of found.entries()) {
        assert.ok(
          writes.some((bytes) => bytes[at] === byte),
          `at offset ${offset + at}: ${byte}, which nobody wrote`,
        );
      }
      await assertHolds(device, 0, pattern(0, offset));
      await assertHolds(device, offset + length, pattern(offset + length, device.sizeBytes - offset - length));
    },
  },
  {
    title: "readNow gives all bytes that read gives, or −1",
    async run(target) {
      await using device = await makeFull(target);
      for (const [turn, [offset, length]] of PLACES.entries()) {
        assertNow(device, offset, pattern(offset, length, 0));
        const later = pattern(offset, length, turn + 1);
        await device.write(offset, later);
        assertNow(device, offset, later);
        await device.writeZeroes(offset, length);
        assertNow(device, offset, zeroes(length));
        await device.write(offset, pattern(offset, length, 0));
        assertNow(device, offset, pattern(offset, length, 0));
      }
    },
  },
  {
    title: "writeNow stores all that write would store, at once, or returns −1 and stores nothing",
    async run(target) {
      await using device = await makeFull(target);
      let expected = pattern(0, device.sizeBytes);
      for (const [turn, [offset, length]] of PLACES.entries()) {
        const bytes = pattern(offset, length, turn + 1);
        const stored = device.writeNow(offset, bytes);
        assert.ok(stored === -1 || stored === length, `writeNow of ${length} bytes returned ${stored}`);
        if (stored !== -1) {
          expected = overlaid(expected, offset, bytes);
          assertNow(device, offset, bytes);
        }
        await assertHolds(device, 0, expected);
      }
    },
  },
];

function assertNow(device: BlockDevice, offset: number, expected: Uint8Array): void {
  const into = new Uint8Array(expected.length).fill(0xee);
  const count = device.readNow(offset, into);
  assert.ok(count === -1 || count === expected.length, `readNow of ${expected.length} bytes returned ${count}`);
  if (count !== -1) assertBytes(into, expected, offset);
}

async function disjointOperations(target: Parameters<ConformanceRule["run"]>[0]): Promise<void> {
  await using device = await makeFull(target);
  const size = device.sizeBytes;
  const span = 1777;
  const read: { offset: number; bytes: Promise<Uint8Array> }[] = [];
  const discarded: number[] = [];
  const work: Promise<unknown>[] = [];
  let expected = pattern(0, size);
  for (let offset = 0, turn = 0; offset + span <= size; offset += span, turn++) {
    const kind = turn % 4;
    if (kind === 0) read.push({ offset, bytes: readBytes(device, offset, span) });
    if (kind === 1) work.push(device.write(offset, pattern(offset, span, 4)));
    if (kind === 1) expected = overlaid(expected, offset, pattern(offset, span, 4));
    if (kind === 2) work.push(device.writeZeroes(offset, span));
    if (kind === 2) expected = overlaid(expected, offset, zeroes(span));
    if (kind === 3) work.push(device.discard(offset, span), device.flush());
    if (kind === 3) discarded.push(offset);
  }
  await Promise.all(work);
  for (const { offset, bytes } of read) assertBytes(await bytes, pattern(offset, span), offset);
  const found = await readBytes(device, 0, size);
  for (const offset of discarded) expected = overlaid(expected, offset, found.subarray(offset, offset + span));
  assertBytes(found, expected);
}
