import { describe, expect, test } from "vitest";
import { type BudgetAccount, PayloadBudget } from "../../../src/util/payload-budget.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";

const TOTAL = 1000;

/** Whether a promise has resolved, once every microtask has run. */
async function isDone(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  void promise.then(() => {
    done = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  return done;
}

/** Opens `count` accounts. */
function accounts(budget: PayloadBudget, count: number): BudgetAccount[] {
  return Array.from({ length: count }, () => budget.openAccount());
}

describe("a payload budget", () => {
  test("counts what is taken and given back", () => {
    const budget = new PayloadBudget(TOTAL);
    const account = budget.openAccount();
    expect(account.tryTake(200)).toBe(true);
    expect([budget.heldBytes, account.heldBytes, account.returnedBytes]).toEqual([200, 200, 0]);
    account.giveBack(150);
    expect([budget.heldBytes, account.heldBytes, account.returnedBytes]).toEqual([50, 50, 150]);
  });

  test("is never exceeded, save by one request that is larger than all of it", async () => {
    const budget = new PayloadBudget(TOTAL);
    const [a, b] = accounts(budget, 2);
    expect(a?.tryTake(700)).toBe(true);
    expect(b?.tryTake(301)).toBe(false);
    const huge = b?.take(5000);
    expect(await isDone(huge as Promise<void>)).toBe(false);
    a?.giveBack(700);
    expect(await isDone(huge as Promise<void>)).toBe(true);
    expect(a?.tryTake(1)).toBe(false);
    b?.giveBack(5000);
    expect(budget.heldBytes).toBe(0);
  });

  test("keeps a quarter free of accounts that are above their share, and an eighth of all that ask for more than a little", () => {
    const budget = new PayloadBudget(TOTAL);
    const [greedy, modest, ...humble] = accounts(budget, 50) as [BudgetAccount, BudgetAccount, ...BudgetAccount[]];
    let taken = 0;
    while (greedy.tryTake(10)) taken += 10;
    expect(taken).toBe(750);
    expect(modest.tryTake(20)).toBe(true);
    let within = 20;
    for (const account of humble) if (account.tryTake(20)) within += 20;
    expect(within).toBe(120);
    expect(humble[10]?.tryTake(5)).toBe(true);
    // Next to nothing is always to be had, once each.
    for (const account of humble.slice(20)) expect([account.tryTake(1), account.tryTake(1)]).toEqual([true, false]);
  });

  test("a greedy account cannot keep others from their shares, however much it asks for", async () => {
    const budget = new PayloadBudget(TOTAL);
    const all = accounts(budget, 10);
    const greedy = all[0] as BudgetAccount;
    const queue = Array.from({ length: 200 }, () => greedy.take(10));
    expect(greedy.heldBytes).toBe(750);
    // The others get what is below their shares until only the floor is left, and the rest as soon as something comes back.
    const rest = all.slice(1).map((account) => account.take(80));
    expect(await Promise.all(rest.map(isDone))).toEqual([true, ...Array(8).fill(false)]);
    greedy.giveBack(700);
    expect(await Promise.all(rest.map(isDone))).toEqual(Array(9).fill(true));
    expect(await isDone(queue[74] as Promise<void>)).toBe(true);
    expect(await isDone(queue[199] as Promise<void>)).toBe(false);
    expect(budget.heldBytes).toBeLessThanOrEqual(TOTAL);
  });

  test("waiters are served in order, but one that cannot be served does not hold up the next", async () => {
    const budget = new PayloadBudget(TOTAL);
    const [holder, large, small, other] = accounts(budget, 4) as [
      BudgetAccount,
      BudgetAccount,
      BudgetAccount,
      BudgetAccount,
    ];
    holder.tryTake(750);
    other.tryTake(100);
    const second = large.take(800);
    const third = small.take(200);
    expect([await isDone(second), await isDone(third)]).toEqual([false, false]);
    holder.giveBack(200);
    expect([await isDone(second), await isDone(third)]).toEqual([false, true]);
    holder.giveBack(550);
    small.giveBack(200);
    other.giveBack(100);
    expect(await isDone(second)).toBe(true);
  });

  test("closing an account forgets its waiters, and what it holds comes back later", async () => {
    const budget = new PayloadBudget(TOTAL);
    const [a, b] = accounts(budget, 2) as [BudgetAccount, BudgetAccount];
    a.tryTake(750);
    const mine = b.take(600);
    expect(budget.waiting).toBe(1);
    b.close();
    b.close();
    expect(budget.waiting).toBe(0);
    a.close();
    a.giveBack(750);
    expect(budget.heldBytes).toBe(0);
    expect(await isDone(mine)).toBe(false);
    expect(await isDone(b.take(1))).toBe(false);
    expect([budget.heldBytes, budget.waiting]).toEqual([0, 0]);
  });

  test("shares are reckoned anew when accounts come and go", () => {
    const budget = new PayloadBudget(TOTAL);
    const all = accounts(budget, 10);
    all[0]?.tryTake(750);
    expect(all[1]?.tryTake(101)).toBe(false);
    for (const account of all.slice(4)) account.close();
    expect(all[1]?.tryTake(101)).toBe(true);
  });
});

describe("a large request among small ones", () => {
  /**
   * Others take and give back without end, so that there is never enough free at once. Returns after how many of their
   * turns the large request was served.
   */
  async function turnsUntilServed(largeBytes: number, smallBytes: number): Promise<number> {
    const budget = new PayloadBudget(TOTAL);
    const [patient, ...others] = accounts(budget, 6) as [BudgetAccount, ...BudgetAccount[]];
    const held: { account: BudgetAccount; bytes: number }[] = [];
    const fill = () => {
      for (const account of others) {
        while (account.tryTake(smallBytes)) held.push({ account, bytes: smallBytes });
      }
    };
    fill();
    let served = false;
    void patient.take(largeBytes).then(() => {
      served = true;
    });
    for (let turn = 1; turn < 1000; turn++) {
      const oldest = held.shift();
      if (oldest === undefined) throw new Error("the others hold nothing any more, and nobody is served");
      oldest.account.giveBack(oldest.bytes);
      // A grant resolves a promise; `heldBytes` tells at once.
      if (patient.heldBytes === largeBytes) {
        expect(await isDone(Promise.resolve())).toBe(true);
        expect(served).toBe(true);
        return turn;
      }
      fill();
    }
    return Infinity;
  }

  test("is served after a bounded wait: a turn of the whole budget, and what was held then", async () => {
    for (const large of [300, 500, 700, 750, 900, 1000, 4000]) {
      for (const small of [10, 50, 100]) {
        const turns = await turnsUntilServed(large, small);
        expect([large, small, turns <= (3 * TOTAL) / small]).toEqual([large, small, true]);
      }
    }
  });

  test("does not stop the others, who go on with the reserve", async () => {
    const budget = new PayloadBudget(TOTAL);
    const [patient, stuck, busy] = accounts(budget, 3) as [BudgetAccount, BudgetAccount, BudgetAccount];
    expect(stuck.tryTake(400)).toBe(true);
    const large = patient.take(700);
    // Long after the large request is due, and while it cannot be served, small ones still are.
    for (let turn = 0; turn < 500; turn++) {
      expect(busy.tryTake(100)).toBe(true);
      busy.giveBack(100);
    }
    expect(await isDone(large)).toBe(false);
    // But not beyond their share.
    expect(busy.tryTake(251)).toBe(false);
    stuck.giveBack(400);
    expect(await isDone(large)).toBe(true);
  });

  test("gives way when its account closes", () => {
    const budget = new PayloadBudget(TOTAL);
    const [patient, stuck, busy] = accounts(budget, 3) as [BudgetAccount, BudgetAccount, BudgetAccount];
    stuck.tryTake(400);
    void patient.take(700);
    for (let turn = 0; turn < 20; turn++) {
      busy.tryTake(100);
      busy.giveBack(100);
    }
    expect(busy.tryTake(350)).toBe(false);
    patient.close();
    expect(busy.tryTake(350)).toBe(true);
  });
});

/** Accounts that take at random and give everything back after a while: everybody must be served in the end. */
async function randomLife(rng: Prng): Promise<void> {
  const budget = new PayloadBudget(TOTAL);
  const all = accounts(budget, rng.integer(1, 8));
  const wish = all.map(() => rng.integer(1, rng.chance(0.2) ? 2 * TOTAL : 200));
  let outstanding = 0;
  let largest = 0;
  const held: (() => void)[] = [];
  for (let step = 0; step < 400; step++) {
    if (rng.chance(0.5)) {
      const index = rng.integer(0, all.length - 1);
      const account = all[index] as BudgetAccount;
      const bytes = rng.integer(1, wish[index] as number);
      outstanding++;
      largest = Math.max(largest, bytes);
      void account.take(bytes).then(() => {
        outstanding--;
        held.push(() => account.giveBack(bytes));
      });
    } else if (held.length > 0) {
      held.splice(rng.integer(0, held.length - 1), 1)[0]?.();
    }
    await Promise.resolve();
    expect(budget.heldBytes).toBeLessThanOrEqual(Math.max(TOTAL, largest));
    expect(all.reduce((sum, { heldBytes }) => sum + heldBytes, 0)).toBe(budget.heldBytes);
  }
  for (let turn = 0; turn < 2000 && (held.length > 0 || outstanding > 0); turn++) {
    held.shift()?.();
    await Promise.resolve();
    await Promise.resolve();
  }
  expect([outstanding, budget.waiting, budget.heldBytes]).toEqual([0, 0, 0]);
}

itSeeded("whoever waits is served in the end, whatever the others do", async (rng) => {
  for (let life = 0; life < counts({ local: 100, ci: 2000 }); life++) await randomLife(rng);
});
