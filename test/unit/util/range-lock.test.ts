import { expect, it } from "vitest";
import { RangeLock } from "../../../src/util/range-lock.ts";
import { itSeeded } from "../../support/seed.ts";

it("grants overlapping ranges in the order of asking, and others at once", async () => {
  const lock = new RangeLock();
  const order: string[] = [];
  const take = (name: string, first: number, last: number) =>
    lock.take(first, last).then((unlock) => {
      order.push(name);
      return unlock;
    });
  const first = await take("a", 0, 4);
  const [second, third, fourth] = [take("b", 4, 8), take("c", 8, 9), take("d", 20, 20)];
  (await fourth)();
  expect(order).toEqual(["a", "d"]);
  expect([lock.isFree(9, 9), lock.isFree(10, 19), lock.isFree(20, 20)]).toEqual([false, true, true]);
  first();
  (await second)();
  (await third)();
  expect(order).toEqual(["a", "d", "b", "c"]);
  expect(lock.isFree(0, 100)).toBe(true);
});

itSeeded("never lets two hold the same number, and serves everybody", async (rng) => {
  const lock = new RangeLock();
  const held = new Set<number>();
  let served = 0;
  const jobs = Array.from({ length: 300 }, async () => {
    const first = rng.integer(0, 30);
    const last = first + rng.integer(0, 5);
    const turns = rng.integer(0, 9);
    const unlock = await lock.take(first, last);
    for (let at = first; at <= last; at++) expect(held.has(at)).toBe(false);
    for (let at = first; at <= last; at++) held.add(at);
    for (let turn = 0; turn < turns; turn++) await Promise.resolve();
    for (let at = first; at <= last; at++) held.delete(at);
    unlock();
    served += 1;
  });
  await Promise.all(jobs);
  expect(served).toBe(300);
});
