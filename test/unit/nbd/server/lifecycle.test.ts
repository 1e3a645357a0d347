import { describe, expect, test } from "vitest";
import { BlockError } from "../../../../src/block/error.ts";
import { CONNECTION_EDGES, type ConnectionState } from "../../../../src/nbd/server/connection.ts";
import { CMD, clientFlags, infoData, OPT, option, REP, readData, request } from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { type RigOptions, ServerRig, settle } from "../../../support/server-rig.ts";
import { cutAt, streamPair } from "../../../support/stream-pair.ts";

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

function rigOf(options: RigOptions = {}) {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE) });
  return { device, rig: new ServerRig({ device, ...options }) };
}

test("the states of a connection can only follow each other as the table says", () => {
  expect(CONNECTION_EDGES).toEqual({
    handshake: ["tls", "transmission", "leaving", "closed"],
    tls: ["handshake", "closed"],
    transmission: ["leaving", "closed"],
    leaving: ["closed"],
    closed: [],
  } satisfies Record<ConnectionState, ConnectionState[]>);
});

test("whoever counts clients is told when one enters transmission, and when it leaves it in whatever way", async () => {
  const told: number[] = [];
  const { rig } = rigOf({ onClientCount: (clients) => told.push(clients) });
  const [first, second, third] = [await rig.open(), await rig.open(), await rig.open()];
  rig.connect();
  first.client.begin({ command: CMD.DISC });
  await settle();
  second.client.reset();
  await settle();
  third.client.send(Buffer.alloc(28, 0xff));
  await settle();
  expect(told).toEqual([1, 2, 3, 2, 1, 0]);
  expect(rig.server.clients).toBe(0);
});

describe("the end of a session", () => {
  test("DISC is not answered, and what was asked before it is answered in full first", async () => {
    const { device, rig } = rigOf();
    device.quick = false;
    const { client } = await rig.open({ dialect: "structured" });
    const releases = [device.hold("read"), device.hold("write"), device.hold("flush")];
    const read = client.begin({ command: CMD.READ, length: 2 * MIB });
    const write = client.begin({ command: CMD.WRITE, offset: 3 * MIB, payload: pattern(0, MIB, 2) });
    const flush = client.begin({ command: CMD.FLUSH });
    client.begin({ command: CMD.DISC });
    client.begin({ command: CMD.TRIM, length: 512 });
    await settle();
    expect([client.ended, rig.server.clients]).toEqual([false, 1]);
    for (const release of releases) release();
    expect(readData(await client.reply(read), 0, 2 * MIB).equals(pattern(0, 2 * MIB))).toBe(true);
    expect((await client.reply(write)).error).toBe(0);
    expect((await client.reply(flush)).error).toBe(0);
    expect(await client.takeAll()).toHaveLength(0);
    expect(device.count("discard")).toBe(0);
    client.end();
    await settle();
    expect([rig.server.connections, rig.clock.timers]).toEqual([0, 1]); // the sweep
  });

  test("a client that stops sending is answered what it has asked", async () => {
    const { device, rig } = rigOf();
    device.quick = false;
    const { client } = await rig.open();
    const release = device.hold("read");
    const cookies = [1, 2, 3].map(() => client.begin({ command: CMD.READ, length: 4096 }));
    client.end();
    await settle();
    expect(client.ended).toBe(false);
    release();
    for (const cookie of cookies) expect((await client.reply(cookie)).error).toBe(0);
    expect(await client.takeAll()).toHaveLength(0);
    await settle();
    expect(rig.server.connections).toBe(0);
  });

  test("requests that wait when the client stops sending are carried out as well", async () => {
    const { device, rig } = rigOf({ limits: { inFlightMax: 2 } });
    device.quick = false;
    const { client } = await rig.open();
    const release = device.hold("write");
    const payload = pattern(0, 512, 4);
    const cookies = Array.from({ length: 20 }, (_, i) =>
      client.begin({ command: CMD.WRITE, offset: i * 512, payload }),
    );
    client.end();
    await settle();
    release();
    for (const cookie of cookies) expect((await client.reply(cookie)).error).toBe(0);
    expect(device.count("write")).toBe(20);
  });

  test("a connection that is lost does not undo what it asked for, and nothing of it is left", async () => {
    const { device, rig } = rigOf();
    device.quick = false;
    const { client } = await rig.open();
    const releases = [device.hold("read"), device.hold("write")];
    client.begin({ command: CMD.WRITE, payload: pattern(0, 2 * MIB, 6) });
    client.begin({ command: CMD.READ, offset: 2 * MIB, length: MIB });
    await settle();
    client.reset();
    await settle();
    expect(rig.server.connections).toBe(0);
    for (const release of releases) release();
    await settle();
    expect(device.contents(0, 2 * MIB).equals(pattern(0, 2 * MIB, 6))).toBe(true);
    expect([rig.server.heldBytes, rig.logged("error")]).toEqual([0, []]);
  });

  test("in the middle of a payload writes nothing of the piece that did not arrive", async () => {
    for (const how of ["end", "reset"] as const) {
      const { device, rig } = rigOf();
      const { client } = await rig.open();
      client.send(request({ command: CMD.WRITE, length: MIB }, "simple"), Buffer.alloc(MIB - 1, 0x11));
      await settle();
      client[how]();
      await settle();
      expect([device.calls, rig.server.heldBytes, rig.server.connections]).toEqual([[], 0, 0]);
    }
  });

  test("a client that never closes its side is not waited for", async () => {
    for (const finish of ["abort", "disc"] as const) {
      const { rig } = rigOf();
      const { client } = rig.connect();
      if (finish === "abort") {
        await client.greet();
        expect(await client.optionOutcome(OPT.ABORT)).toBe(REP.ACK);
      } else {
        await client.go();
        client.begin({ command: CMD.DISC });
      }
      await settle();
      expect([client.ended, rig.server.connections]).toEqual([true, 1]);
      rig.clock.advance(5000);
      expect(rig.server.connections).toBe(0);
    }
  });

  test("but it may take its replies for as long as it does take them", async () => {
    const { rig } = rigOf();
    const { client, far } = await rig.open();
    far.stall();
    const cookie = client.begin({ command: CMD.READ, length: MIB });
    client.begin({ command: CMD.DISC });
    await settle();
    for (let round = 0; round < 5; round++) {
      rig.clock.advance(4999);
      far.unstall();
      await Promise.resolve();
      far.stall();
      rig.clock.advance(1);
      expect(rig.server.connections).toBe(1);
    }
    far.unstall();
    expect((await client.reply(cookie)).error).toBe(0);
    client.end();
    await settle();
    expect(rig.server.connections).toBe(0);
  });
});

describe("a handshake", () => {
  const handshake = Buffer.concat([clientFlags(), option(OPT.LIST), option(OPT.INFO, infoData(""))]);

  test("may take ten seconds, and not a moment longer", async () => {
    for (const sent of [0, 3, 4, 10, handshake.length]) {
      const { rig } = rigOf();
      const { client } = rig.connect();
      client.send(handshake.subarray(0, sent));
      await settle();
      rig.clock.advance(9999);
      expect(rig.server.connections).toBe(1);
      rig.clock.advance(1);
      expect(rig.server.connections).toBe(0);
      await settle();
      expect(client.ended).toBe(true);
    }
  });

  test("is not prolonged by a byte now and then", async () => {
    const { rig } = rigOf();
    const { client } = rig.connect();
    for (let second = 0; second < 10; second++) {
      client.send(handshake.subarray(second, second + 1));
      await settle(1);
      rig.clock.advance(1000);
    }
    expect(rig.server.connections).toBe(0);
  });

  test("that was finished in time leaves no deadline behind", async () => {
    const { rig } = rigOf();
    const { client } = await rig.open();
    rig.clock.advance(3_600_000);
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    expect(rig.clock.timers).toBe(1);
  });

  test("that is cut off at any byte leaves nothing behind", async () => {
    const bytes = Buffer.concat([handshake, option(OPT.GO, infoData("")), request({ command: CMD.FLUSH }, "simple")]);
    for (const how of ["end", "reset"] as const) {
      const { rig } = rigOf();
      for (let at = 0; at <= bytes.length; at++) {
        const { client } = rig.connect({ serverCut: cutAt(Math.max(1, at - 1)) });
        client.send(bytes.subarray(0, at));
        await settle(1);
        client[how]();
        await settle(1);
        expect([at, rig.server.connections, rig.server.clients]).toEqual([at, 0, 0]);
      }
      expect(rig.logged("error")).toEqual([]);
    }
  });
});

describe("too many clients", () => {
  test("the oldest of 16 unfinished handshakes gives way to a new one", async () => {
    const { rig } = rigOf();
    const { client: working } = await rig.open();
    const idle = Array.from({ length: 16 }, () => rig.connect().client);
    await settle();
    expect(idle.map(({ ended }) => ended)).toEqual(Array(16).fill(false));
    const { client: quick } = await rig.open();
    await settle();
    expect(idle.map(({ ended }) => ended)).toEqual([true, ...Array(15).fill(false)]);
    expect((await quick.call({ command: CMD.FLUSH })).error).toBe(0);
    expect((await working.call({ command: CMD.FLUSH })).error).toBe(0);
  });

  test("a good client gets in through a crowd of idle ones", async () => {
    const { rig } = rigOf();
    for (let round = 0; round < 300; round++) rig.connect();
    const { client } = await rig.open();
    expect((await client.call({ command: CMD.FLUSH })).error).toBe(0);
    expect(rig.server.connections).toBeLessThanOrEqual(17);
  });

  test("the 129th connection is refused, and the others work on", async () => {
    const { rig } = rigOf();
    const clients = [];
    for (let i = 0; i < 128; i++) clients.push((await rig.open()).client);
    const { client: refused } = rig.connect();
    expect(await refused.takeAll()).toHaveLength(0);
    for (const client of clients) expect((await client.call({ command: CMD.FLUSH })).error).toBe(0);
    clients[5]?.reset();
    await settle();
    const { client: next } = await rig.open();
    expect((await next.call({ command: CMD.FLUSH })).error).toBe(0);
  });
});

describe("closing the server", () => {
  test("answers what is under way, takes nothing new, flushes last, and then is done", async () => {
    const { device, rig } = rigOf();
    device.quick = false;
    const { client } = await rig.open();
    const release = device.hold("write");
    const cookie = client.begin({ command: CMD.WRITE, payload: pattern(0, 512, 3) });
    await settle();
    const closed = rig.server.close({ graceMs: 5000 });
    client.begin({ command: CMD.TRIM, length: 512 });
    await settle();
    expect(device.calls).toEqual(["write 0+512"]);
    release();
    expect((await client.reply(cookie)).error).toBe(0);
    expect(await client.takeAll()).toHaveLength(0);
    client.end();
    await closed;
    expect(device.calls).toEqual(["write 0+512", "flush"]);
    expect([rig.server.connections, rig.clock.timers]).toEqual([0, 0]);
  });

  test("does not wait longer than its grace for a device or for a client", async () => {
    for (const stuck of ["device", "client"] as const) {
      const { device, rig } = rigOf();
      const { client, far } = await rig.open();
      if (stuck === "client") far.stall();
      else device.quick = false;
      const release = device.hold("read");
      client.begin({ command: CMD.READ, length: 3 * MIB });
      await settle();
      const closed = rig.server.close({ graceMs: 5000 });
      rig.clock.advance(4999);
      await settle();
      expect(rig.server.connections).toBe(1);
      rig.clock.advance(1);
      await closed;
      expect(device.calls.at(-1)).toBe("flush");
      release();
      await settle();
      expect([rig.server.heldBytes, rig.clock.timers]).toEqual([0, 0]);
    }
  });

  test("waits a quarter of a second, not its whole grace, for an idle client that does not notice", async () => {
    const { rig } = rigOf();
    const { near } = await rig.open();
    near.pause();
    const closed = rig.server.close({ graceMs: 5000 });
    await settle();
    rig.clock.advance(249);
    await settle();
    expect(rig.server.connections).toBe(1);
    rig.clock.advance(1);
    await closed;
    expect([rig.server.connections, rig.clock.timers]).toEqual([0, 0]);
  });

  test("is refused a clean end when a flush fails", async () => {
    const { device, rig } = rigOf();
    device.fail("flush", new BlockError("io", "the disk is gone"));
    await expect(rig.server.close()).rejects.toThrow("the disk is gone");
  });

  test("may be asked for more than once", async () => {
    const { device, rig } = rigOf();
    await rig.open();
    const [first, second] = [rig.server.close({ graceMs: 10 }), rig.server.close({ graceMs: 99 })];
    rig.clock.advance(10);
    await Promise.all([first, second, rig.server[Symbol.asyncDispose]()]);
    expect(device.calls).toEqual(["flush"]);
  });

  test("flushes each writable device once, and no other", async () => {
    const make = (readOnly = false) => new ScriptedDevice({ sizeBytes: SIZE, readOnly });
    const [shared, own, frozen] = [make(), make(), make(true)];
    const rig = new ServerRig({
      exports: [
        { name: "a", device: shared, readOnly: false },
        { name: "b", device: shared, readOnly: true },
        { name: "c", device: own, readOnly: false },
        { name: "d", device: frozen, readOnly: true },
      ],
    });
    await rig.server.close();
    expect([shared.calls, own.calls, frozen.calls]).toEqual([["flush"], ["flush"], []]);
  });

  test("ends handshakes at once, and refuses whoever comes later", async () => {
    const { rig } = rigOf();
    const { client: half } = rig.connect();
    await half.greet();
    half.send(option(OPT.GO, infoData("")).subarray(0, 20));
    await settle();
    await rig.server.close();
    await settle();
    expect(half.ended).toBe(true);
    const { client: late } = rig.connect();
    expect(await late.takeAll()).toHaveLength(0);
    expect([rig.server.connections, rig.clock.timers]).toEqual([0, 0]);
  });
});

test("two exports of one name are a mistake of the caller's", () => {
  const device = new ScriptedDevice({ sizeBytes: 512 });
  const exports = [
    { name: "a", device, readOnly: false },
    { name: "a", device, readOnly: true },
  ];
  expect(() => new ServerRig({ exports })).toThrow("two exports");
});

test("a stream that is dead on arrival is cleared away", async () => {
  const { rig } = rigOf();
  const { client: near, server: far } = streamPair();
  far.destroy();
  near.destroy();
  await settle();
  rig.server.accept(far);
  await settle();
  expect(rig.server.connections).toBe(0);
});
