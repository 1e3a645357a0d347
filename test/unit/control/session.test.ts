/** Clients and a server together: requests, replies, events, limits, endings. */
import { describe, expect, test } from "vitest";
import { ControlClient } from "../../../src/control/client.ts";
import { ControlError, ControlProtocolError } from "../../../src/control/errors.ts";
import { encodeMessage } from "../../../src/control/frame.ts";
import {
  CONNECTIONS_MAX,
  EVENT_BACKLOG_BYTES_MAX,
  RECENT_EVENTS_MAX,
  REQUESTS_MAX,
  UNSENT_BYTES_MAX,
} from "../../../src/control/limits.ts";
import type { ControlEvent } from "../../../src/control/messages.ts";
import { byteByByte, streamPair } from "../../support/stream-pair.ts";
import { anything, ControlRig, settle } from "./rig.ts";

async function failure(promise: Promise<unknown>): Promise<ControlError> {
  const outcome = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(ControlError);
  return outcome as ControlError;
}

describe("requests", () => {
  test("the server says who it is and what it knows, before anything is asked", async () => {
    const client = await new ControlRig().connect({ clientCut: byteByByte, serverCut: byteByByte });
    expect(client.hello).toMatchObject({ protocol: "blockferry-control", version: 1, pid: 4711, role: "clone" });
    expect(client.hello.verbs).toEqual(["events", "quit", "wait"]);
    await expect(client.call("quit", {})).resolves.toEqual({});
  });

  test("several are under way at once, and each gets its own reply, in any order", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    const hydrated = client.call("wait", { for: "hydrated" }, { timeoutMs: null });
    const listening = client.call("wait", { for: "listening" }, { timeoutMs: null });
    await expect(client.call("quit", {})).resolves.toEqual({});
    rig.milestones.reach("listening");
    await expect(listening).resolves.toEqual({ reached: true });
    rig.milestones.reach("hydrated");
    await expect(hydrated).resolves.toEqual({ reached: true });
  });

  test("an unknown verb is refused with those that are known", async () => {
    const client = await new ControlRig().connect();
    const error = await failure(client.call("pause", {}));
    expect(error).toMatchObject({ code: "unknown-verb", hint: "it knows: events, quit, wait" });
  });

  test("bad parameters are refused by either side, and say what is wrong", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    expect(await failure(client.call("wait", { for: "rain" as never }))).toMatchObject({ code: "bad-params" });
    const peer = rig.raw();
    peer.send({ id: 1, verb: "wait", params: { for: "listening", timeoutMs: -1, more: 1 } });
    await settle();
    const { error } = peer.messages[1] as { error: { code: string; message: string } };
    expect(error.code).toBe("bad-params");
    expect(error.message).toMatch(/more[\s\S]*timeoutMs|timeoutMs[\s\S]*more/);
    expect(peer.closed).toBe(false);
  });

  test("a handler's refusal arrives with its hint; its bug arrives as one, and is logged", async () => {
    const rig = new ControlRig();
    rig.registry.register("pause", anything, () => {
      throw new ControlError("unavailable", "nothing to pause", "wait");
    });
    rig.registry.register("resume", anything, () => Promise.reject(new TypeError("secret of the inside")));
    const client = await rig.connect();
    expect(await failure(client.call("pause", {}))).toMatchObject({ code: "unavailable", hint: "wait" });
    const bug = await failure(client.call("resume", {}));
    expect(bug.code).toBe("bug");
    expect(bug.message).not.toContain("secret");
    expect(rig.logged.join()).toContain("secret of the inside");
  });

  test("a result that breaks its schema, or does not fit a message, is an error and not sent", async () => {
    const rig = new ControlRig();
    rig.registry.register("status", anything, () => ({ text: "x".repeat(70_000) }));
    rig.registry.register("set-speed", anything, () => ({ bytesPerSecond: "fast" }));
    const client = await rig.connect();
    expect((await failure(client.call("status", {}))).code).toBe("too-large");
    await expect(client.call("set-speed", { bytesPerSecond: 1 })).rejects.toBeInstanceOf(ControlProtocolError);
    await expect(client.call("quit", {})).resolves.toEqual({});
  });

  test("no answer in time is an error, and the late one is not taken for another's", async () => {
    const rig = new ControlRig();
    const { promise, resolve } = Promise.withResolvers<object>();
    rig.registry.register("pause", anything, () => promise as Promise<Record<string, unknown>>);
    const client = await rig.connect();
    const paused = failure(client.call("pause", {}, { timeoutMs: 5000 }));
    await settle();
    rig.clock.advance(5000);
    expect((await paused).code).toBe("timeout");
    resolve({ late: 1 });
    await expect(client.call("quit", {})).resolves.toEqual({});
    expect(rig.clock.timers).toBe(0);
  });

  test(`the request after ${REQUESTS_MAX} under way is refused, and the connection lives`, async () => {
    const rig = new ControlRig();
    const peer = rig.raw();
    for (let id = 0; id <= REQUESTS_MAX; id++) peer.send({ id, verb: "wait", params: { for: "listening" } });
    await settle();
    expect(peer.messages.slice(1)).toEqual([{ id: REQUESTS_MAX, error: expect.objectContaining({ code: "busy" }) }]);
    rig.milestones.reach("listening");
    await settle();
    expect(peer.messages).toHaveLength(2 + REQUESTS_MAX);
  });
});

describe("waiting", () => {
  test("ends with no when the time is up, at once for what was reached before, and never for what cannot be", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    const waiting = client.call("wait", { for: "hydrated", timeoutMs: 1000 }, { timeoutMs: null });
    await settle();
    rig.clock.advance(1000);
    await expect(waiting).resolves.toEqual({ reached: false });
    rig.milestones.reach("listening");
    rig.milestones.reach("listening");
    await expect(client.call("wait", { for: "listening", timeoutMs: 0 })).resolves.toEqual({ reached: true });
    expect(await failure(client.call("wait", { for: "active" }))).toMatchObject({ code: "never" });
    expect(rig.milestones.reached).toEqual(["listening"]);
    expect(rig.clock.timers).toBe(0);
  });

  test("a client that leaves takes its waiting with it", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    const waiting = failure(client.call("wait", { for: "hydrated", timeoutMs: 9000 }, { timeoutMs: null }));
    await settle();
    expect(rig.clock.timers).toBe(1);
    client.close();
    expect((await waiting).code).toBe("closed");
    await settle();
    expect(rig.clock.timers).toBe(0);
    expect(rig.server.connections).toBe(0);
  });
});

describe("events", () => {
  test("the newest are kept, numbered, within bounds", async () => {
    const rig = new ControlRig();
    for (let n = 1; n <= RECENT_EVENTS_MAX + 5; n++) rig.events.publish("tick", { n });
    const { recent } = await (await rig.connect()).call("events", {});
    expect(recent).toHaveLength(RECENT_EVENTS_MAX);
    expect(recent.at(-1)).toMatchObject({ event: "tick", n: RECENT_EVENTS_MAX + 5, seq: RECENT_EVENTS_MAX + 5 });
    for (let n = 0; n < RECENT_EVENTS_MAX; n++)
      rig.events.publish("long", { a: "ä".repeat(9999), b: "x".repeat(9999) });
    const kept = (await (await rig.connect()).call("events", {})).recent;
    expect(kept.length).toBeGreaterThan(10);
    expect(kept.at(-1)?.["a"]).toHaveLength(400);
  });

  test("a subscriber gets each one once, and after the reply with the older ones", async () => {
    const rig = new ControlRig();
    rig.events.publish("before");
    const peer = rig.raw({ serverCut: byteByByte });
    peer.send({ id: 5, verb: "events", params: { follow: true } });
    await settle();
    rig.events.publish("after", { disk: "vda" });
    await settle();
    expect(peer.messages.slice(1)).toEqual([
      { id: 5, result: { recent: [expect.objectContaining({ event: "before", seq: 1 })] } },
      { event: "after", seq: 2, time: expect.any(String), disk: "vda" },
    ]);
  });

  test("one that does not take them costs a bounded amount, and learns how many it missed", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    const seen: ControlEvent[] = [];
    client.onEvent = (event) => void seen.push(event);
    await client.call("events", { follow: true });
    const { client: near, server: far } = streamPair();
    rig.server.accept(far);
    const slow = await ControlClient.connect(near, rig.clock);
    const seenLate: ControlEvent[] = [];
    slow.onEvent = (event) => void seenLate.push(event);
    await slow.call("events", { follow: true });
    slow.pause();
    for (let n = 1; n <= 5000; n++) {
      rig.events.publish("tick", { n });
      if (n % 100 === 0) await settle();
    }
    expect(far.pendingBytes).toBeLessThan(EVENT_BACKLOG_BYTES_MAX + 4096);
    expect(seen).toHaveLength(5000);
    slow.resume();
    await settle();
    rig.events.publish("tick", { n: 5001 });
    await settle();
    const marker = seenLate.findIndex(({ event }) => event === "dropped");
    expect(marker).toBe(seenLate.length - 2);
    expect(seenLate[marker]).toMatchObject({ seq: 5000, count: 5000 - marker });
    expect(seenLate.slice(0, marker).map(({ seq }) => seq)).toEqual(Array.from({ length: marker }, (_, i) => i + 1));
    expect(seenLate.at(-1)).toMatchObject({ seq: 5001 });
  });
});

describe("peers that mean harm", () => {
  test.each<[string, Uint8Array]>([
    ["names a length of 4 GiB", Uint8Array.of(0xff, 0xff, 0xff, 0xff)],
    ["sends garbage", new Uint8Array(4096).fill(0x47)],
    ["speaks of something else", encodeMessage({ hello: "world" })],
    ["has an id that is none", encodeMessage({ id: -1, verb: "quit" })],
    ["has a verb without end", encodeMessage({ id: 1, verb: "x".repeat(65) })],
    ["sends parameters that are none", encodeMessage({ id: 1, verb: "quit", params: [1] })],
  ])("one that %s is dropped; another is served", async (_what, bytes) => {
    const rig = new ControlRig();
    const good = await rig.connect();
    const peer = rig.raw();
    await settle();
    peer.stream.write(bytes);
    await settle();
    expect(peer.closed).toBe(true);
    expect(peer.messages).toHaveLength(1);
    expect(rig.logged.join()).toContain("closing a control connection");
    await expect(good.call("quit", {})).resolves.toEqual({});
  });

  test("one that asks and never listens is not heard any more, until it listens", async () => {
    const rig = new ControlRig();
    let answered = 0;
    rig.registry.register("status", anything, () => {
      answered++;
      return { text: "x".repeat(60_000) };
    });
    const peer = rig.raw();
    await settle();
    peer.stream.pause();
    const requests = 2000;
    peer.stream.write(
      Buffer.concat(Array.from({ length: requests }, (_, id) => encodeMessage({ id, verb: "status" }))),
    );
    await settle();
    expect(answered).toBeLessThan(10);
    expect(peer.far.pendingBytes).toBeLessThan(UNSENT_BYTES_MAX + 70_000);
    peer.stream.resume();
    await expect.poll(() => peer.messages.length).toBe(1 + requests);
    expect(peer.messages.at(-1)).toMatchObject({ id: requests - 1 });
  });

  test(`of ${CONNECTIONS_MAX} the one that was quiet longest gives way, but never one that waits for something`, async () => {
    const rig = new ControlRig();
    const waiting = await rig.connect();
    const reached = waiting.call("wait", { for: "listening" }, { timeoutMs: null });
    const follower = await rig.connect();
    await follower.call("events", { follow: true });
    const idle = Array.from({ length: 200 }, () => rig.raw());
    await settle();
    expect(rig.server.connections).toBe(CONNECTIONS_MAX);
    const open = idle.filter(({ closed }) => !closed);
    expect(open).toEqual(idle.slice(-(CONNECTIONS_MAX - 2)));
    const late = await rig.connect();
    await expect(late.call("quit", {})).resolves.toEqual({});
    rig.milestones.reach("listening");
    await expect(reached).resolves.toEqual({ reached: true });
  });

  test("when all are in the middle of something, a newcomer is turned away", async () => {
    const rig = new ControlRig();
    for (let n = 0; n < CONNECTIONS_MAX; n++) rig.raw().send({ id: 1, verb: "wait", params: { for: "listening" } });
    await settle();
    expect((await failure(rig.connect())).code).toBe("closed");
    expect(rig.server.connections).toBe(CONNECTIONS_MAX);
  });
});

describe("endings", () => {
  test("closing answers what waits, and ends every connection", async () => {
    const rig = new ControlRig();
    const client = await rig.connect();
    const waiting = failure(client.call("wait", { for: "hydrated" }, { timeoutMs: null }));
    await settle();
    await rig.server.close();
    expect((await waiting).code).toBe("closing");
    await expect(client.closed).resolves.toBeUndefined();
    expect(rig.server.connections).toBe(0);
    expect(rig.clock.timers).toBe(0);
    expect((await failure(rig.connect())).code).toBe("closed");
  });

  test("a client that does not let go is closed when the grace is over", async () => {
    const rig = new ControlRig();
    const peer = rig.raw();
    await settle();
    const closing = rig.server.close({ graceMs: 1000 });
    await settle();
    expect(peer.closed).toBe(false);
    rig.clock.advance(1000);
    await closing;
    expect(rig.server.connections).toBe(0);
  });

  test("a client that has finished sending still gets its replies", async () => {
    const rig = new ControlRig();
    const peer = rig.raw();
    peer.send({ id: 1, verb: "wait", params: { for: "listening" } });
    peer.stream.end();
    await settle();
    rig.milestones.reach("listening");
    await settle();
    expect(peer.messages.at(-1)).toEqual({ id: 1, result: { reached: true } });
    expect(rig.server.connections).toBe(0);
  });

  test.each<[string, object | Uint8Array, RegExp]>([
    ["is something else", { protocol: "qmp" }, /not the control socket/],
    ["is of another version", { protocol: "blockferry-control", version: 9 }, /version 9/],
    ["sends garbage", new Uint8Array(100).fill(0x7b), /bytes/],
  ])("a client refuses a server that %s", async (_what, greeting, text) => {
    const { client, server } = streamPair();
    server.attach({ onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: () => {} });
    server.write(greeting instanceof Uint8Array ? greeting : encodeMessage(greeting));
    await expect(ControlClient.connect(client, new ControlRig().clock)).rejects.toThrow(text);
    expect(client.closed).toBe(true);
  });
});
