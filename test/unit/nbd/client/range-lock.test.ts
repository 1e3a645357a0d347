import { describe, expect, test } from "vitest";
import { type RangeHold, RangeLock } from "../../../../src/nbd/client/range-lock.ts";
import { itSeeded } from "../../../support/seed.ts";
import { settled } from "./scripted-client.ts";

/** Asks for a lock and keeps an eye on it. */
function ask(lock: RangeLock, start: number, end: number, alone: boolean): { hold: RangeHold | undefined } {
  const asked: { hold: RangeHold | undefined } = { hold: undefined };
  void lock.acquire(start, end, alone).then((hold) => {
    asked.hold = hold;
  });
  return asked;
}

describe("locks on ranges", () => {
  test("are shared unless somebody wants one alone, and only where ranges overlap", async () => {
    const lock = new RangeLock();
    const held = [ask(lock, 0, 10, false), ask(lock, 5, 15, false), ask(lock, 15, 20, true), ask(lock, 20, 30, true)];
    const waiting = [ask(lock, 9, 16, false), ask(lock, 0, 1, true)];
    await settled();
    expect(held.map(({ hold }) => hold !== undefined)).toEqual([true, true, true, true]);
    expect(waiting.map(({ hold }) => hold)).toEqual([undefined, undefined]);
    lock.release(held[0]?.hold as RangeHold);
    lock.release(held[2]?.hold as RangeHold);
    await settled();
    expect(waiting.map(({ hold }) => hold !== undefined)).toEqual([true, true]);
  });

  test("are granted in order: a stream of sharers does not starve one who wants a range alone", async () => {
    const lock = new RangeLock();
    const first = ask(lock, 0, 10, false);
    const alone = ask(lock, 0, 10, true);
    const later = ask(lock, 0, 10, false);
    await settled();
    expect(later.hold).toBeUndefined();
    lock.release(first.hold as RangeHold);
    await settled();
    expect([alone.hold !== undefined, later.hold !== undefined]).toEqual([true, false]);
    lock.release(alone.hold as RangeHold);
    await settled();
    expect(later.hold).toBeDefined();
  });

  itSeeded("never conflict, and are all granted in the end", async (rng) => {
    const lock = new RangeLock();
    const held = new Set<RangeHold>();
    let granted = 0;
    for (let step = 0; step < 3000; step++) {
      if (rng.chance(0.55) && step < 2000) {
        const start = rng.integer(0, 40);
        void lock.acquire(start, start + rng.integer(1, 10), rng.chance(0.4)).then((hold) => {
          for (const other of held) {
            const overlap = hold.start < other.end && other.start < hold.end;
            expect(overlap && (hold.alone || other.alone)).toBe(false);
          }
          held.add(hold);
          granted++;
        });
      } else if (held.size > 0) {
        const hold = rng.pick([...held]);
        held.delete(hold);
        lock.release(hold);
      }
      await settled();
    }
    while (held.size > 0) {
      for (const hold of [...held]) {
        held.delete(hold);
        lock.release(hold);
      }
      await settled();
    }
    expect(granted).toBeGreaterThan(800);
    // Nothing is left behind that could block anybody.
    expect(await lock.acquire(0, 100, true)).toMatchObject({ start: 0, end: 100 });
  });
});
