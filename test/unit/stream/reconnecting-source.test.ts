import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import { SourceAnsweredError, SourceLostError } from "../../../src/stream/errors.ts";
import { ReconnectingSource } from "../../../src/stream/reconnecting-source.ts";
import { identifySource } from "../../../src/stream/source-identity.ts";
import { Scheduler, SimClock } from "../../sim/scheduler.ts";
import { pattern } from "../../support/patterns.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { ScriptedSession } from "./scripted-source.ts";

const SIZE_BYTES = 64 * 1024;
const CONTENT = pattern(0, SIZE_BYTES);

interface Setup {
  readonly onLoss?: "stall" | "eio";
  readonly lossDeadlineMs?: number;
}

/** A source whose attempts are answered from a queue; with an empty queue nobody can be reached. */
async function begun(setup: Setup = {}) {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const clock = new SimClock(scheduler, 0);
  const first = new ScriptedSession(CONTENT);
  const queue = [first];
  const attempts: number[] = [];
  const states: string[] = [];
  const connect = async (): Promise<ScriptedSession> => {
    attempts.push(clock.nowMs());
    const session = queue.shift();
    if (session === undefined) throw new Error("nobody listens");
    return session;
  };
  const source = new ReconnectingSource({
    ...{ clock, connect, chaos: NO_CHAOS, random: { next: () => 0, fill: () => undefined } },
    expected: { sizeBytes: SIZE_BYTES, identity: await identifySource(new ScriptedSession(CONTENT)) },
    ...{ onLoss: setup.onLoss ?? "stall", lossDeadlineMs: setup.lossDeadlineMs ?? 0 },
  });
  source.onState((state) => states.push(state));
  await scheduler.runFor(0);
  return { scheduler, clock, queue, attempts, states, source, first };
}

async function failure(work: Promise<unknown>): Promise<unknown> {
  return await work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

test("a read whose link is cut is asked again, and fills the whole buffer from the next session", async () => {
  const { scheduler, queue, source, first, states } = await begun();
  const release = first.hold("read");
  const into = Buffer.alloc(8192);
  const read = source.read(4096, into);
  await scheduler.runFor(10);
  const second = new ScriptedSession(CONTENT);
  queue.push(second);
  first.cut();
  await scheduler.complete(read);
  expect(into.equals(CONTENT.subarray(4096, 12_288))).toBe(true);
  expect(second.calls.filter((call) => call === "read 4096+8192")).toHaveLength(1);
  expect(states).toEqual(["connected", "disconnected", "connected"]);
  expect(source.status()).toMatchObject({ state: "connected", reconnects: 1, bytesRead: 8192, waiting: 0 });
  release();
  await scheduler.complete(source.close());
});

test("an error that the source answers is passed on at once, with its code, and is not asked again", async () => {
  const { scheduler, source, first, states } = await begun();
  first.fail("read", new BlockError("io", "a bad block"));
  const error = await failure(scheduler.complete(source.read(4096, Buffer.alloc(512))));
  expect(error).toBeInstanceOf(SourceAnsweredError);
  expect(error).toMatchObject({ code: "io", offset: 4096, length: 512 });
  expect(first.count("read 4096+512")).toBe(1);
  expect(states).toEqual(["connected"]);
  await scheduler.complete(source.close());
});

test("a lost source is looked for at once, and then after pauses that double up to five seconds", async () => {
  const { scheduler, clock, attempts, source, first } = await begun();
  await scheduler.runFor(6000);
  attempts.length = 0;
  const lostMs = clock.nowMs();
  first.cut();
  await scheduler.runFor(30_000);
  const times = attempts.map((atMs) => Math.round(atMs - lostMs));
  expect(times.slice(0, 9)).toEqual([0, 100, 300, 700, 1500, 3100, 6300, 11_300, 16_300]);
  expect(source.status()).toMatchObject({ state: "disconnected", lastError: "nobody listens" });
  await scheduler.complete(source.close());
});

test("sessions that are lost before they were of any use are not asked for without pause", async () => {
  const { scheduler, queue, attempts, source, first } = await begun();
  first.cut();
  for (let count = 0; count < 40; count++) queue.push(new ScriptedSession(CONTENT));
  source.onState((state) => {
    if (state === "connected") queueMicrotask(() => sessions.at(-1)?.cut());
  });
  const sessions: ScriptedSession[] = [];
  const shift = queue.shift.bind(queue);
  queue.shift = () => {
    const session = shift();
    if (session !== undefined) sessions.push(session);
    return session;
  };
  await scheduler.runFor(20_000);
  expect(attempts.length).toBeGreaterThan(5);
  expect(attempts.length).toBeLessThan(13);
  await scheduler.complete(source.close());
});

for (const [what, content] of [
  ["other contents", pattern(0, SIZE_BYTES, 2)],
  ["another size", pattern(0, SIZE_BYTES + 512)],
] as const) {
  test(`not a byte is read from a source with ${what}, and reads wait for the right one`, async () => {
    const { scheduler, queue, source, first, states } = await begun();
    const wrong = new ScriptedSession(content);
    queue.push(wrong);
    first.cut();
    const into = Buffer.alloc(512);
    const read = source.read(20_480, into);
    await scheduler.runFor(20_000);
    expect(source.state).toBe("mismatch");
    expect(wrong.calls).not.toContain("read 20480+512");
    expect(wrong.dropped).toBeDefined();
    queue.push(new ScriptedSession(CONTENT));
    await scheduler.complete(read);
    expect(into.equals(CONTENT.subarray(20_480, 20_992))).toBe(true);
    expect(states).toEqual(["connected", "disconnected", "mismatch", "connected"]);
    await scheduler.complete(source.close());
  });
}

test("with the policy eio reads wait until the deadline, fail at once after it, and succeed when the source is back", async () => {
  const { scheduler, clock, queue, source, first } = await begun({ onLoss: "eio", lossDeadlineMs: 20_000 });
  await scheduler.runFor(1000);
  first.cut();
  const lostMs = clock.nowMs();
  await scheduler.runFor(15_000);
  const waiting = await failure(scheduler.complete(source.read(0, Buffer.alloc(512))));
  expect(waiting).toBeInstanceOf(SourceLostError);
  expect(waiting).toMatchObject({ code: "io" });
  // From the loss on, not from the read.
  expect(Math.round(clock.nowMs() - lostMs)).toBe(20_000);
  expect(await failure(scheduler.complete(source.read(0, Buffer.alloc(512)), 0))).toBeInstanceOf(SourceLostError);
  queue.push(new ScriptedSession(CONTENT));
  await scheduler.runFor(6000);
  await scheduler.complete(source.read(0, Buffer.alloc(512)), 0);
  await scheduler.complete(source.close());
});

test("close fails the reads that wait, and leaves no timer", async () => {
  for (const onLoss of ["stall", "eio"] as const) {
    const { scheduler, clock, source, first, states } = await begun({ onLoss, lossDeadlineMs: 60_000 });
    first.cut();
    const read = failure(source.read(0, Buffer.alloc(512)));
    await scheduler.runFor(1000);
    await scheduler.complete(source.close(), 0);
    expect(await read).toMatchObject({ code: "shutting-down" });
    expect(await failure(source.read(0, Buffer.alloc(512)))).toMatchObject({ code: "shutting-down" });
    expect(clock.timers).toBe(0);
    expect(states.at(-1)).toBe("closed");
  }
});

test("close breaks the link when what is under way does not finish in two seconds", async () => {
  const { scheduler, clock, source, first } = await begun();
  first.hold("read");
  const read = failure(source.read(0, Buffer.alloc(512)));
  first.close = () => new Promise((resolve) => void first.onLost(() => resolve()));
  await scheduler.complete(source.close(), 2000);
  expect(await read).toMatchObject({ code: "shutting-down" });
  expect(clock.timers).toBe(0);
});

test("a session that comes about while the source is being closed is dropped, in whichever turn that is", async () => {
  for (let turns = 0; turns < 60; turns++) {
    const { scheduler, queue, source, first } = await begun();
    const late = new ScriptedSession(CONTENT);
    queue.push(late);
    // A session that was of use is followed by the next one without a pause.
    await scheduler.runFor(6000);
    let closed = false;
    late.close = async () => {
      closed = true;
    };
    first.cut();
    for (let turn = 0; turn < turns; turn++) await Promise.resolve();
    await scheduler.complete(source.close());
    expect(closed || late.dropped !== undefined || queue.includes(late), `after ${turns} turns`).toBe(true);
  }
});

test("writes are refused, and ranges outside the disk too", async () => {
  const { scheduler, source } = await begun();
  expect(await failure(source.write(0, Buffer.alloc(512)))).toMatchObject({ code: "read-only" });
  expect(await failure(source.read(SIZE_BYTES, Buffer.alloc(1)))).toMatchObject({ code: "out-of-range" });
  await scheduler.complete(source.close());
});

test("a source that is known by other means is asked for them instead of its contents", async () => {
  const scheduler = new Scheduler(new Prng(runSeed(), "order"));
  const verdicts = ["not this one", undefined];
  const sessions: ScriptedSession[] = [];
  const source = new ReconnectingSource({
    ...{ clock: new SimClock(scheduler, 0), chaos: NO_CHAOS, random: { next: () => 0, fill: () => undefined } },
    connect: async () => {
      const session = new ScriptedSession(CONTENT);
      sessions.push(session);
      return session;
    },
    expected: { sizeBytes: SIZE_BYTES, identity: "" },
    verify: async () => {
      const verdict = verdicts.shift();
      if (verdict !== undefined) throw new Error(verdict);
    },
    onLoss: "stall",
  });
  const into = Buffer.alloc(4096);
  await scheduler.complete(source.read(0, into));
  expect(into.equals(Buffer.from(CONTENT.subarray(0, 4096)))).toBe(true);
  expect([sessions.length, sessions[0]?.dropped]).toEqual([2, "not this one"]);
  await scheduler.complete(source.close());
});
