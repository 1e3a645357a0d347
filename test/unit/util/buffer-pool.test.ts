import { describe, expect, test } from "vitest";
import { BufferPool } from "../../../src/util/buffer-pool.ts";
import { itSeeded } from "../../support/seed.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

describe("a buffer pool", () => {
  test("gives at least what was asked for, never twice as much above the smallest class", () => {
    const pool = new BufferPool();
    for (const bytes of [
      1,
      4095,
      4096,
      4097,
      65_536,
      65_537,
      288 * KIB,
      MIB,
      MIB + 28,
      2 * MIB,
      2 * MIB + 1,
      9 * MIB,
    ]) {
      const { length } = pool.take(bytes);
      expect(length).toBeGreaterThanOrEqual(bytes);
      expect(length).toBeLessThan(Math.max(4161, 2 * bytes));
    }
  });

  test("gives a returned buffer out again, to one taker only", () => {
    const pool = new BufferPool();
    const first = pool.take(5000);
    pool.give(first);
    expect(pool.idleBytes).toBe(first.length);
    expect(pool.take(6000)).toBe(first);
    expect(pool.take(6000)).not.toBe(first);
    expect(pool.idleBytes).toBe(0);
  });

  test("keeps a power of two of data and its header in one class", () => {
    const pool = new BufferPool();
    for (const data of [4096, 65_536, 256 * KIB, MIB, 2 * MIB]) {
      expect(pool.sizeFor(data)).toBe(data + 64);
      expect(pool.sizeFor(data + 64)).toBe(data + 64);
      expect(pool.take(data + 40)).toHaveLength(pool.sizeFor(data + 40));
    }
    expect(pool.sizeFor(2 * MIB + 65)).toBe(2 * MIB + 65);
  });

  test("keeps no more than 16 MiB idle, nothing above 2 MiB, and frees the rest at once", () => {
    const pool = new BufferPool();
    const taken = Array.from({ length: 20 }, () => pool.take(MIB));
    for (const buffer of taken) pool.give(buffer);
    expect(pool.idleBytes).toBe(15 * (MIB + 64));
    expect(taken.map(({ buffer }) => buffer.byteLength > 0)).toEqual(taken.map((_, i) => i < 15));
    const large = pool.take(3 * MIB);
    pool.give(large);
    expect([pool.idleBytes, large.buffer.byteLength]).toEqual([15 * (MIB + 64), 0]);
  });

  test("keeps no more idle than there is room for, and frees what there is none for any more", () => {
    let roomBytes = 3 * MIB;
    const pool = new BufferPool(() => roomBytes);
    const taken = [MIB, MIB, MIB, 4096, 4096].map((bytes) => pool.take(bytes));
    for (const buffer of taken) pool.give(buffer);
    expect(taken.map(({ buffer }) => buffer.byteLength > 0)).toEqual([true, true, false, true, true]);
    roomBytes = MIB + 5000;
    expect(pool.take(4096)).toBe(taken[4]);
    expect(pool.idleBytes).toBe(2 * (MIB + 64) + 4160);
    pool.take(65_536);
    expect(pool.idleBytes).toBeLessThanOrEqual(roomBytes);
    roomBytes = -1;
    pool.take(65_536);
    expect(pool.idleBytes).toBe(0);
  });

  itSeeded("never hands out memory that somebody holds", (rng) => {
    const pool = new BufferPool();
    const held = new Map<Buffer, number>();
    for (let step = 0; step < 3000; step++) {
      if (held.size > 0 && rng.chance(0.48)) {
        const buffer = rng.pick([...held.keys()]);
        const mark = held.get(buffer) ?? 0;
        // Each holder's mark must still be all over its buffer.
        expect(buffer.readUInt32LE(0) === mark && buffer.readUInt32LE(buffer.length - 4) === mark).toBe(true);
        held.delete(buffer);
        pool.give(buffer);
      } else {
        const buffer = pool.take(rng.integer(1, 300_000));
        expect(held.has(buffer)).toBe(false);
        buffer.writeUInt32LE(step, 0);
        buffer.writeUInt32LE(step, buffer.length - 4);
        held.set(buffer, step);
      }
    }
  });
});
