import { expect, test } from "vitest";
import { RateLimiter } from "../../../src/stream/rate-limit.ts";
import { Throughput } from "../../../src/stream/throughput.ts";
import { Scheduler, SimClock } from "../../sim/scheduler.ts";
import { itSeeded, Prng, runSeed } from "../../support/seed.ts";

function begun(rate?: number) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const clock = new SimClock(scheduler, 0);
  return { scheduler, clock, limiter: new RateLimiter(clock, rate) };
}

itSeeded("over a long time the rate is exact, whatever the requests' sizes", async (rng) => {
  for (const rate of [1000, 1_000_000, 2_500_000_000]) {
    const { scheduler, clock, limiter } = begun(rate);
    let bytes = 0;
    const work = async (): Promise<void> => {
      while (clock.nowMs() < 60_000) {
        const request = rng.integer(1, Math.ceil(rate / 3));
        await limiter.take(request);
        bytes += request;
      }
    };
    await scheduler.complete(Promise.all([work(), work(), work()]));
    // Each of the three may have overdrawn once.
    const seconds = clock.nowMs() / 1000;
    expect(bytes / seconds).toBeGreaterThan(rate * 0.97);
    expect(bytes - rate * 0.1 - rate / 3).toBeLessThanOrEqual(rate * seconds + 10);
    expect(clock.timers).toBe(0);
  }
});

test("after a rest no more than a tenth of a second's bytes, and one request, pass at once", async () => {
  const { scheduler, limiter } = begun(100_000);
  await scheduler.runFor(60_000);
  let passed = 0;
  for (let count = 0; count < 100; count++) void limiter.take(1000).then(() => passed++);
  await scheduler.runFor(0);
  expect(passed).toBe(11);
  await scheduler.runFor(2000);
  expect(passed).toBe(100);
});

test("a new rate holds at once for those who wait, and they pass in their order", async () => {
  const { scheduler, clock, limiter } = begun(1);
  const order: number[] = [];
  for (let request = 0; request < 20; request++) void limiter.take(1000).then(() => order.push(request));
  await scheduler.runFor(1000);
  expect(order).toEqual([0]);
  limiter.setRate(1_000_000);
  await scheduler.runFor(5);
  expect(order.length).toBeGreaterThan(2);
  limiter.setRate(undefined);
  await scheduler.runFor(0);
  expect(order).toEqual(Array.from({ length: 20 }, (_, request) => request));
  expect(clock.timers).toBe(0);
});

test("a request that is given up takes nothing and lets the next one pass", async () => {
  const { scheduler, clock, limiter } = begun(1000);
  await limiter.take(1000);
  const abort = new AbortController();
  const given = limiter.take(1_000_000, abort.signal);
  let passedMs: number | undefined;
  void limiter.take(10).then(() => {
    passedMs = clock.nowMs();
  });
  abort.abort(new Error("given up"));
  await expect(given).rejects.toThrow("given up");
  await scheduler.runFor(5000);
  expect(passedMs).toBeLessThanOrEqual(1001);
  expect(clock.timers).toBe(0);
});

test("a rate of nothing is refused", () => {
  const { limiter } = begun();
  for (const rate of [0, -1, Number.NaN]) expect(() => limiter.setRate(rate)).toThrow(RangeError);
});

test("throughput is right from the first seconds on, follows a change, and comes down to zero", () => {
  const meter = new Throughput(0);
  let nowMs = 0;
  const run = (seconds: number, bytesPerSecond: number): number => {
    for (let step = 0; step < seconds * 100; step++) {
      nowMs += 10;
      meter.add(bytesPerSecond / 100, nowMs);
    }
    return meter.bytesPerSecond(nowMs);
  };
  expect(run(1, 1e6) / 1e6).toBeCloseTo(1, 1);
  expect(run(20, 1e6) / 1e6).toBeCloseTo(1, 1);
  expect(run(20, 5e6) / 5e6).toBeCloseTo(1, 0);
  expect(meter.bytesPerSecond(nowMs + 300_000)).toBe(0);
});
