import { describe, expect, test } from "vitest";
import type { Extent } from "../../../../src/block/extents.ts";
import {
  CMD,
  DIALECTS,
  FLAG,
  readData,
  request,
  type WireDialect,
  type WireRequest,
} from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 8 * MIB;
const BASE = "base:allocation";

/** 4096 extents in every answer: the longest reply to the shortest request. */
const stripes = (_offset: number, length: number, countMax: number): Extent[] =>
  Array.from({ length: Math.min(countMax, length / 512) }, (_, i) => ({ length: 512, hole: i % 2 === 1, zero: false }));

async function serve(dialect: WireDialect, limits = {}) {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE) });
  device.extentsAnswer = stripes;
  const rig = new ServerRig({ device, limits });
  const { client, far } = await rig.open({ dialect, contexts: dialect === "simple" ? [] : [BASE] });
  return { device, rig, client, far };
}

describe("a device that is slower than its client", () => {
  test("gets as many requests as the limit allows, and all of them are answered in the end", async () => {
    for (const dialect of DIALECTS) {
      const { device, client, rig } = await serve(dialect, { inFlightMax: 8 });
      device.quick = false;
      const release = device.hold("read");
      const cookies = Array.from({ length: 100 }, (_, i) =>
        client.begin({ command: CMD.READ, offset: i * 4096, length: 4096 }),
      );
      await settle();
      // The one that exceeds the limit is what stops the taking of more.
      expect(device.count("read")).toBe(9);
      expect(rig.server.heldBytes).toBeLessThanOrEqual(9 * 8300);
      release();
      for (const [i, cookie] of cookies.entries()) {
        expect(readData(await client.reply(cookie), i * 4096, 4096)).toEqual(pattern(i * 4096, 4096));
      }
      expect(device.count("read")).toBe(100);
    }
  });

  test("does not stop a client that keeps to the limit", async () => {
    const { device, client } = await serve("simple", { inFlightMax: 8 });
    const release = device.hold("flush");
    const cookies = Array.from({ length: 8 }, () => client.begin({ command: CMD.FLUSH }));
    await settle();
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    release();
    for (const cookie of cookies) expect((await client.reply(cookie)).error).toBe(0);
  });

  test("lets a payload that has begun come in whole, even at the limit", async () => {
    const { device, client } = await serve("simple", { inFlightMax: 2 });
    const release = device.hold("flush");
    const flushes = [client.begin({ command: CMD.FLUSH }), client.begin({ command: CMD.FLUSH })];
    const write = client.begin({ command: CMD.WRITE, payload: pattern(0, 3 * MIB, 7) });
    await settle(200);
    expect(device.count("write")).toBe(3);
    release();
    for (const cookie of [...flushes, write]) expect((await client.reply(cookie)).error).toBe(0);
  });

  test("thousands of requests at once are taken one after the other, and all are answered", async () => {
    const { client, device } = await serve("structured", { inFlightMax: 16 });
    device.quick = false;
    const cookies = Array.from({ length: 5000 }, (_, i) => BigInt(i));
    for (const cookie of cookies) client.begin({ command: CMD.CACHE, length: 512, cookie });
    for (const cookie of cookies) expect((await client.reply(cookie)).error).toBe(0);
    expect(device.count("cache")).toBe(5000);
  });
});

describe("a client that takes no replies", () => {
  const kinds: readonly [string, WireRequest][] = [
    ["short reads", { command: CMD.READ, length: 4096 }],
    ["long reads", { command: CMD.READ, length: 2 * MIB }],
    ["refused reads", { command: CMD.READ, offset: SIZE, length: 1 }],
    ["short writes", { command: CMD.WRITE, payload: Buffer.from([1]) }],
    ["short writes with FUA", { command: CMD.WRITE, payload: Buffer.from([1]), flags: FLAG.FUA }],
    ["refused writes", { command: CMD.WRITE, payload: Buffer.from([1]), offset: SIZE }],
    ["writes of nothing", { command: CMD.WRITE, payload: Buffer.alloc(0) }],
    ["questions for extents", { command: CMD.BLOCK_STATUS, length: SIZE }],
    ["flushes", { command: CMD.FLUSH }],
    ["unknown commands", { command: 99 }],
  ];
  for (const dialect of DIALECTS) {
    for (const quick of [true, false]) {
      test(`costs a bounded amount of memory (${dialect}, ${quick ? "cached" : "not cached"})`, async () => {
        for (const [kind, wanted] of kinds) {
          const { device, client, far, rig } = await serve(dialect);
          device.quick = quick;
          far.stall();
          const wide = dialect === "extended" && wanted.payload !== undefined ? FLAG.PAYLOAD_LEN : 0;
          const full = { ...wanted, flags: (wanted.flags ?? 0) | wide };
          const [bytes, count] = [request(full, dialect), 2500];
          client.send(...Array.from({ length: count }, () => bytes));
          await settle(30);
          const held = Math.max(far.pendingBytes, rig.server.heldBytes);
          // 96 MiB are for all; of those a client may hold what is not in reserve. Everything else is small.
          const bound = wanted.length === 2 * MIB ? 72 * MIB : 12 * MIB;
          expect([kind, held < bound]).toEqual([kind, true]);
          // Not all of them were taken from the stream.
          if (kind !== "questions for extents" || dialect !== "simple")
            expect([kind, far.pendingBytes > 0]).toEqual([kind, true]);
          client.reset();
          await settle(30);
          expect([kind, rig.server.heldBytes, rig.server.connections]).toEqual([kind, 0, 0]);
        }
      });
    }
  }

  test("gets all of them once it takes them", async () => {
    for (const dialect of DIALECTS) {
      for (const [kind, wanted] of kinds) {
        const { client, far } = await serve(dialect);
        far.stall();
        const wide = dialect === "extended" && wanted.payload !== undefined ? FLAG.PAYLOAD_LEN : 0;
        const cookies = Array.from({ length: 20 }, () =>
          client.begin({ ...wanted, flags: (wanted.flags ?? 0) | wide }),
        );
        await settle(10);
        far.unstall();
        const errors = new Set<number>();
        for (const cookie of cookies) errors.add((await client.reply(cookie)).error);
        expect([kind, errors.size]).toEqual([kind, 1]);
      }
    }
  });
});

describe("memory for payloads", () => {
  test("a WRITE waits until there is some, and then is carried out", async () => {
    const { device, client, rig } = await serve("simple", { payloadBytesMax: 2 * MIB });
    const release = device.hold("write");
    const cookie = client.begin({ command: CMD.WRITE, payload: pattern(0, 5 * MIB, 3) });
    await settle(300);
    expect(rig.server.heldBytes).toBeLessThanOrEqual(2 * MIB);
    const arrived = device.calls.map((call) => Number(call.split("+")[1])).reduce((sum, bytes) => sum + bytes, 0);
    expect(arrived).toBeGreaterThan(MIB);
    expect(arrived).toBeLessThan(2 * MIB);
    release();
    expect((await client.reply(cookie)).error).toBe(0);
    expect(device.contents(0, 5 * MIB).equals(pattern(0, 5 * MIB, 3))).toBe(true);
    expect(rig.server.heldBytes).toBe(0);
  });

  test("is needed for replies that are made at once, too; without it they are made more slowly", async () => {
    for (const dialect of DIALECTS) {
      const { rig } = await serve(dialect, { payloadBytesMax: 2 * MIB });
      const clients = await Promise.all(Array.from({ length: 12 }, () => rig.open({ dialect })));
      const length = 100 * KIB;
      const asked = clients.map(({ client, far }, i) => {
        far.stall();
        return [0, 1, 2, 3].map((n) => client.begin({ command: CMD.READ, offset: (4 * i + n) * length, length }));
      });
      await settle(20);
      expect(rig.server.heldBytes).toBeGreaterThan(MIB);
      expect(rig.server.heldBytes).toBeLessThanOrEqual(2 * MIB);
      // Nothing waits to be sent that nobody has paid for.
      const unsent = clients.reduce((sum, { far }) => sum + far.pendingBytes, 0);
      expect(unsent).toBeLessThanOrEqual(rig.server.heldBytes);
      for (const { far } of clients) far.unstall();
      for (const [i, { client }] of clients.entries()) {
        for (const [n, cookie] of (asked[i] ?? []).entries()) {
          const offset = (4 * i + n) * length;
          expect(readData(await client.reply(cookie), offset, length).equals(pattern(offset, length))).toBe(true);
        }
      }
      await settle();
      expect(rig.server.heldBytes).toBe(0);
    }
  });

  test("a READ larger than all of it is served when nobody else holds any", async () => {
    const { client, rig } = await serve("simple", { payloadBytesMax: MIB });
    expect(
      readData(await client.call({ command: CMD.READ, length: 5 * MIB }), 0, 5 * MIB).equals(pattern(0, 5 * MIB)),
    ).toBe(true);
    await settle();
    expect(rig.server.heldBytes).toBe(0);
  });

  test("a connection that goes away while it waits leaves nothing behind", async () => {
    const { device, client, rig } = await serve("simple", { payloadBytesMax: 2 * MIB });
    const release = device.hold("write");
    client.begin({ command: CMD.WRITE, payload: pattern(0, 5 * MIB, 3) });
    await settle(50);
    client.reset();
    await settle();
    expect(rig.server.connections).toBe(0);
    release();
    await settle();
    expect(rig.server.heldBytes).toBe(0);
    const { client: next } = await rig.open();
    expect((await next.call({ command: CMD.WRITE, payload: pattern(0, 3 * MIB) })).error).toBe(0);
  });
});

describe("a client that holds memory and does not move", () => {
  // A little more than four times a buffer for 1 MiB.
  const LIMITS = { payloadBytesMax: 4 * MIB + 1024, stalledMs: 15_000, lingerMs: 5000 };

  /** Lets time pass in the steps in which the server looks. */
  async function pass(rig: ServerRig, ms: number): Promise<void> {
    for (let left = ms; left > 0; left -= 5000) {
      rig.clock.advance(Math.min(left, 5000));
      await settle();
    }
  }

  /** Takes all there is of the memory, by reading and not taking the replies. */
  async function withStuckReader() {
    const { device, client, far, rig } = await serve("simple", LIMITS);
    far.stall();
    for (let i = 0; i < 4; i++) client.begin({ command: CMD.READ, offset: i * MIB, length: MIB - 16 });
    await settle(20);
    expect(rig.server.heldBytes).toBe(3 * (MIB + 64));
    return { device, rig, stuck: client, far };
  }

  test("is left alone while nobody waits for it", async () => {
    const { device, client, far, rig } = await serve("simple", LIMITS);
    far.stall();
    client.begin({ command: CMD.READ, length: MIB });
    await pass(rig, 600_000);
    expect([rig.server.connections, device.count("readNow")]).toEqual([1, 1]);
    far.unstall();
  });

  test("is closed when others wait, and they are served", async () => {
    const { rig, stuck } = await withStuckReader();
    const { client: good } = await rig.open();
    const cookie = good.begin({ command: CMD.READ, length: 3 * MIB });
    await settle();
    expect(good.bufferedBytes).toBe(0);
    await pass(rig, 20_000);
    expect(stuck.ended).toBe(true);
    expect(rig.logged("warn")).toEqual(["closing a connection"]);
    expect((await good.reply(cookie)).error).toBe(0);
    expect(rig.server.connections).toBe(1);
  });

  test("is not mistaken for one that takes its replies slowly", async () => {
    const { rig, stuck, far } = await withStuckReader();
    const { client: good } = await rig.open();
    good.begin({ command: CMD.READ, length: 3 * MIB });
    // Some bytes every ten seconds; the stall takes effect again after one piece.
    for (let round = 0; round < 6; round++) {
      far.unstall();
      await Promise.resolve();
      await Promise.resolve();
      far.stall();
      await pass(rig, 10_000);
      expect(stuck.ended).toBe(false);
    }
  });

  test("is closed for a payload that does not come, however many trickles of it do", async () => {
    const { rig, client: hoarder } = await serve("simple", LIMITS);
    const others = await Promise.all([rig.open(), rig.open(), rig.open()]);
    for (const client of [hoarder, ...others.map((other) => other.client)]) {
      client.send(request({ command: CMD.WRITE, length: MIB }, "simple"), Buffer.alloc(10));
    }
    await settle();
    const { client: good } = await rig.open();
    const cookie = good.begin({ command: CMD.READ, length: 3 * MIB });
    await settle(50);
    expect(good.bufferedBytes).toBe(0);
    for (let second = 0; second < 25; second++) {
      rig.clock.advance(1000);
      if (!hoarder.ended) hoarder.send(Buffer.alloc(1));
      await settle(1);
    }
    expect(hoarder.ended).toBe(true);
    expect((await good.reply(cookie)).error).toBe(0);
  });

  test("is not blamed for a slow device", async () => {
    const { device, client, rig } = await serve("simple", LIMITS);
    device.quick = false;
    const release = device.hold("write");
    const cookies = Array.from({ length: 8 }, (_, i) =>
      client.begin({ command: CMD.WRITE, offset: i * MIB, payload: pattern(i * MIB, MIB, 5) }),
    );
    await pass(rig, 120_000);
    expect(client.ended).toBe(false);
    release();
    for (const cookie of cookies) expect((await client.reply(cookie)).error).toBe(0);
  });
});

test("a READ from a cache that refuses is not blamed for later ones", async () => {
  const { device, client } = await serve("structured");
  device.quick = false;
  expect((await client.call({ command: CMD.READ, length: 4096 })).error).toBe(0);
  device.quick = true;
  expect((await client.call({ command: CMD.READ, length: 4096 })).error).toBe(0);
  expect(device.calls).toEqual(["read 0+4096", "readNow 0+4096"]);
});
