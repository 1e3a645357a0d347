import { expect, test } from "vitest";
import { WindowControl } from "../../../src/stream/window-control.ts";
import { Scheduler } from "../../sim/scheduler.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { ModelledPath, type PathShape } from "./modelled-path.ts";

const GIGABIT = 125_000;

interface Measured {
  /** Of what the path could have carried. */
  readonly full: number;
  readonly queueMs: number;
}

/** Somebody who always has more to ask for than the window lets through. */
function begin(shape: PathShape) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const path = new ModelledPath(scheduler, shape);
  const control = new WindowControl(scheduler.nowMs);
  const pump = (): void => {
    while (control.admits(control.unitBytes)) {
      const sent = control.sent(scheduler.nowMs, control.unitBytes, true);
      void path.request(sent.bytes).then(() => {
        control.received(scheduler.nowMs, sent);
        pump();
      });
    }
  };
  pump();
  const measure = async (ms: number): Promise<Measured> => {
    const before = path.deliveredBytes;
    let queueMs = 0;
    for (let step = 0; step < 100; step++) {
      await scheduler.runFor(ms / 100);
      queueMs += path.queueMs / 100;
    }
    return { full: (path.deliveredBytes - before) / ms / path.shape.bytesPerMs, queueMs };
  };
  return { scheduler, path, control, measure };
}

for (const { rttMs, least } of [
  { rttMs: 0.2, least: 0.95 },
  { rttMs: 1, least: 0.95 },
  { rttMs: 10, least: 0.95 },
  { rttMs: 50, least: 0.9 },
]) {
  test(`a gigabit line of ${rttMs} ms is kept at least ${least * 100} % full, and its queue below 8 ms`, async () => {
    const { scheduler, measure, control } = begin({ rttMs, bytesPerMs: GIGABIT });
    await scheduler.runFor(2000);
    const { full, queueMs } = await measure(5000);
    expect(full).toBeGreaterThan(least);
    expect(queueMs).toBeLessThan(8);
    expect(control.minRttMs).toBeGreaterThan(rttMs);
    expect(control.minRttMs).toBeLessThan(rttMs + 3);
  });
}

test("memory to memory, the window holds several long units", async () => {
  const { scheduler, measure, control } = begin({ rttMs: 0.05, bytesPerMs: 2_000_000 });
  await scheduler.runFor(500);
  expect((await measure(500)).full).toBeGreaterThan(0.97);
  expect(control.unitBytes).toBe(1024 * 1024);
  expect(control.windowBytes).toBeGreaterThan(4 * 1024 * 1024);
});

for (const [from, to] of [
  [
    { rttMs: 10, bytesPerMs: GIGABIT },
    { rttMs: 50, bytesPerMs: GIGABIT },
  ],
  [
    { rttMs: 50, bytesPerMs: GIGABIT },
    { rttMs: 10, bytesPerMs: GIGABIT },
  ],
  [
    { rttMs: 10, bytesPerMs: GIGABIT },
    { rttMs: 10, bytesPerMs: GIGABIT / 10 },
  ],
  [
    { rttMs: 10, bytesPerMs: GIGABIT / 10 },
    { rttMs: 10, bytesPerMs: GIGABIT },
  ],
] as const) {
  const name = ({ rttMs, bytesPerMs }: PathShape): string => `${rttMs} ms and ${bytesPerMs / 125} Mb/s`;
  test(`a change from ${name(from)} to ${name(to)} is followed within 3 seconds`, async () => {
    const { scheduler, path, measure } = begin(from);
    await scheduler.runFor(3000);
    path.shape = to;
    await scheduler.runFor(3000);
    const { full, queueMs } = await measure(2000);
    expect(full).toBeGreaterThan(0.85);
    expect(queueMs).toBeLessThan(10);
  });
}

test("hiccups of the host are not taken for a queue", async () => {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const rng = new Prng(runSeed(), "hiccups");
  const path = new ModelledPath(scheduler, { rttMs: 10, bytesPerMs: GIGABIT });
  const control = new WindowControl(scheduler.nowMs);
  let stalledUntilMs = 0;
  const pump = (): void => {
    while (control.admits(control.unitBytes)) {
      const sent = control.sent(scheduler.nowMs, control.unitBytes, true);
      void path.request(sent.bytes).then(() => {
        if (rng.chance(0.002)) stalledUntilMs = scheduler.nowMs + 15;
        const lateMs = Math.max(0, stalledUntilMs - scheduler.nowMs) + rng.float();
        scheduler.after(lateMs, "noticed", () => {
          control.received(scheduler.nowMs, sent);
          pump();
        });
      });
    }
  };
  pump();
  await scheduler.runFor(3000);
  const before = path.deliveredBytes;
  await scheduler.runFor(5000);
  expect((path.deliveredBytes - before) / 5000 / GIGABIT).toBeGreaterThan(0.9);
});

test("a window that nobody waits for does not grow", async () => {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const path = new ModelledPath(scheduler, { rttMs: 10, bytesPerMs: GIGABIT });
  const control = new WindowControl(scheduler.nowMs);
  const before = control.windowBytes;
  for (let request = 0; request < 500; request++) {
    const sent = control.sent(scheduler.nowMs, control.unitBytes, false);
    await scheduler.complete(path.request(sent.bytes));
    control.received(scheduler.nowMs, sent);
  }
  expect(control.windowBytes).toBe(before);
});

test("a fixed window stays as it is, and what is under way within it", async () => {
  const { scheduler, control } = begin({ rttMs: 10, bytesPerMs: GIGABIT });
  await scheduler.runFor(1000);
  control.fix(300_000);
  await scheduler.runFor(1000);
  for (let step = 0; step < 100; step++) {
    await scheduler.runFor(10);
    expect(control.inFlightBytes).toBeLessThanOrEqual(300_000 + control.unitBytes / 2);
  }
  control.fix(undefined);
  await scheduler.runFor(2000);
  expect(control.windowBytes).toBeGreaterThan(1_000_000);
});

test("no round trip is told to take less than no time, whatever the clock does", () => {
  const control = new WindowControl(1000);
  for (const [sentMs, receivedMs] of [
    [1000, 1010],
    [1020, 1015],
    [1030, 1029],
  ] as const) {
    control.received(receivedMs, control.sent(sentMs, control.unitBytes, true));
    const { rttMs = -1, minRttMs = -1 } = control.status();
    expect(Math.min(rttMs, minRttMs)).toBeGreaterThanOrEqual(0);
  }
  expect(control.minRttMs).toBe(0);
});
