import { describe, expect, test } from "vitest";
import { CMD, OPT, option } from "../../../support/nbd-wire.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { type RigClient, type RigOptions, ServerRig, settle } from "../../../support/server-rig.ts";

function rigOf(options: RigOptions = {}): ServerRig {
  return new ServerRig({ device: new ScriptedDevice({ sizeBytes: 4096 }), ...options });
}

/** A client that has said that it leaves, and keeps its side open. */
async function leaving(rig: ServerRig): Promise<RigClient> {
  const opened = await rig.open();
  opened.client.begin({ command: CMD.DISC });
  await settle();
  return opened;
}

describe("clients that have been told everything and do not close", () => {
  test("do not count as handshakes: those that are under way go on", async () => {
    const rig = rigOf({ limits: { handshakesMax: 2 } });
    for (let i = 0; i < 5; i++) await leaving(rig);
    const first = rig.connect();
    await first.client.greet();
    const second = rig.connect();
    await second.client.greet();
    await settle();
    expect([first.client.ended, second.client.ended, rig.server.connections]).toEqual([false, false, 7]);
    rig.connect();
    await settle();
    expect([first.client.ended, second.client.ended]).toEqual([true, false]);
  });

  test("give their places to others, the oldest first", async () => {
    const rig = rigOf({ limits: { connectionsMax: 3 } });
    const staying = await rig.open();
    const done = [await leaving(rig), await leaving(rig)];
    expect(done.map(({ near }) => near.closed)).toEqual([false, false]);
    const { client } = await rig.open();
    await settle();
    expect(done.map(({ near }) => near.closed)).toEqual([true, false]);
    for (const one of [staying.client, client]) {
      expect((await one.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    }
    await rig.open();
    const refused = rig.connect();
    await settle();
    expect([done[1]?.near.closed, refused.client.ended, rig.server.connections]).toEqual([true, true, 3]);
  });

  test("in the handshake are no different", async () => {
    const rig = rigOf({ limits: { connectionsMax: 2 } });
    for (let i = 0; i < 2; i++) {
      const { client } = rig.connect();
      await client.greet();
      client.send(option(OPT.ABORT));
      await settle();
    }
    expect((await (await rig.open()).client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
  });

  test("keep them while there are replies that they still take", async () => {
    const rig = rigOf({ limits: { connectionsMax: 1 } });
    const { client, far } = await rig.open();
    far.stall();
    const cookie = client.begin({ command: CMD.READ, length: 4096 });
    client.begin({ command: CMD.DISC });
    await settle();
    const refused = rig.connect();
    await settle();
    expect(refused.client.ended).toBe(true);
    far.unstall();
    expect((await client.reply(cookie)).error).toBe(0);
  });
});

describe("a server that is closed by whoever counts its clients", () => {
  test("when the first one comes, lets it go and is done at once", async () => {
    let closing: Promise<void> | undefined;
    const rig: ServerRig = rigOf({
      onClientCount: (clients) => {
        if (clients === 1) closing = rig.server.close();
      },
    });
    const { client } = await rig.open();
    expect(await client.takeAll()).toHaveLength(0);
    client.end();
    await closing;
    expect([rig.server.connections, rig.clock.timers]).toEqual([0, 0]);
  });

  test("when the last one goes, also in the middle of closing, ends once for everybody", async () => {
    const closings: Promise<void>[] = [];
    const device = new ScriptedDevice({ sizeBytes: 4096 });
    const rig: ServerRig = rigOf({
      device,
      onClientCount: (clients) => {
        if (clients === 0) closings.push(rig.server.close());
      },
    });
    const { client } = await rig.open();
    closings.push(rig.server.close());
    await settle();
    client.end();
    await Promise.all(closings);
    expect([closings.length, device.count("flush"), rig.server.connections]).toEqual([2, 1, 0]);
  });
});
