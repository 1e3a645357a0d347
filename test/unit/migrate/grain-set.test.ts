import { describe, expect, test } from "vitest";
import { clearBits, setBits } from "../../../src/cor/bits.ts";
import { checkGrain, GrainSet, grainBytesFor } from "../../../src/migrate/grain-set.ts";
import { itSeeded } from "../../support/seed.ts";

const GRAIN = 4096;
const KIB = 1024;

test("clearing bits tells how many of them were set, and touches no other", () => {
  for (let from = 0; from < 24; from++) {
    for (let to = from; to < 24; to++) {
      const bits = Uint8Array.of(0xff, 0x5a, 0xff);
      const expected = [...bits].map((byte, index) => {
        let left = byte;
        for (let bit = 0; bit < 8; bit++) if (index * 8 + bit >= from && index * 8 + bit <= to) left &= ~(1 << bit);
        return left;
      });
      const before = Uint8Array.from(bits);
      const removed = clearBits(bits, [from, to]);
      expect([...bits]).toEqual(expected);
      expect(setBits(before, [from, to])).toBe(to - from + 1 - removed);
    }
  }
});

describe("a set of grains", () => {
  test("takes in grains that lie within a range as a whole, the short last one too", () => {
    const set = new GrainSet(3 * GRAIN + 512, GRAIN);
    expect(set.grains).toBe(4);
    set.addWithin(1, 2 * GRAIN);
    expect([0, 1, 2, 3].map((grain) => set.has(grain))).toEqual([false, true, false, false]);
    set.addWithin(2 * GRAIN, GRAIN + 512);
    expect([0, 1, 2, 3].map((grain) => set.has(grain))).toEqual([false, true, true, true]);
    expect(set.count).toBe(3);
  });

  test("gives up every grain that a range touches", () => {
    const set = new GrainSet(8 * GRAIN, GRAIN);
    set.add(0, 7);
    set.removeTouched(2 * GRAIN - 1, 2);
    set.removeTouched(5 * GRAIN, 0);
    expect([...Array(8).keys()].filter((grain) => set.has(grain))).toEqual([0, 3, 4, 5, 6, 7]);
  });

  test("takes nothing in while it is sealed, and goes on giving up", () => {
    const set = new GrainSet(8 * GRAIN, GRAIN);
    set.addWithin(0, 2 * GRAIN);
    set.seal();
    set.addWithin(0, 8 * GRAIN);
    set.removeTouched(0, 1);
    expect(set.count).toBe(1);
    set.unseal();
    set.addWithin(0, 8 * GRAIN);
    expect(set.count).toBe(8);
  });

  test("is refused pages that are not of the disk", () => {
    const set = new GrainSet(5 * GRAIN, GRAIN);
    expect(() => set.putPage(0, new Uint8Array(64))).toThrow("not of this disk");
    expect(() => set.putPage(1, new Uint8Array(128))).toThrow("not of this disk");
    expect(() => set.putPage(0, new Uint8Array(128).fill(0x20, 0, 1))).toThrow("beyond the disk");
    set.putPage(0, new Uint8Array(128).fill(0x1f, 0, 1));
    expect(set.count).toBe(5);
  });

  test("never takes more than 8 MiB of bits", () => {
    expect(grainBytesFor(1)).toBe(16 * KIB);
    expect(grainBytesFor(2 ** 40)).toBe(16 * KIB);
    expect(grainBytesFor(2 ** 44)).toBe(256 * KIB);
    expect(() => checkGrain(2 ** 44, 4096)).toThrow("do not suit");
    expect(() => checkGrain(2 ** 30, 12_288)).toThrow("do not suit");
    checkGrain(2 ** 44, 256 * KIB);
  });
});

function note(plain: Set<number>, [first, last]: readonly [number, number], adds: boolean): void {
  for (let grain = first; grain <= last; grain++) {
    if (adds) plain.add(grain);
    else plain.delete(grain);
  }
}

function tell(set: GrainSet, copy: GrainSet, pages: number): void {
  for (const [page, bits] of set.takeChanged(pages)) copy.putPage(page, bits);
}

itSeeded("a copy that is told of each change ends as the set, checksum and all; both agree with a plain one", (rng) => {
  for (let round = 0; round < 50; round++) {
    const grains = rng.integer(1, 3000);
    const [set, copy] = [new GrainSet(grains * GRAIN, GRAIN), new GrainSet(grains * GRAIN, GRAIN)];
    const landed = new GrainSet(grains * GRAIN, GRAIN);
    const plain = new Set<number>();
    const plainLanded = new Set<number>();
    for (let step = 0; step < 60; step++) {
      const first = rng.integer(0, grains - 1);
      const last = rng.integer(first, Math.min(grains - 1, first + rng.pick([0, 5, 2000])));
      const adds = rng.chance(0.6);
      if (adds) set.addWithin(first * GRAIN, (last - first + 1) * GRAIN);
      else set.removeTouched(first * GRAIN, (last - first + 1) * GRAIN);
      note(plain, [first, last], adds);
      const at = rng.integer(0, grains - 1);
      landed.add(at, at);
      plainLanded.add(at);
      if (rng.chance(0.3)) tell(set, copy, rng.integer(1, 3));
    }
    tell(set, copy, 1000);
    expect(set.count).toBe(plain.size);
    expect([copy.count, copy.checksum()]).toEqual([set.count, set.checksum()]);
    const kept = [...plainLanded].filter((grain) => plain.has(grain));
    expect(landed.intersect(copy)).toBe(plainLanded.size - kept.length);
    expect([...Array(grains).keys()].filter((grain) => landed.has(grain))).toEqual(kept.toSorted((a, b) => a - b));
  }
});
