import { describe, expect, test } from "vitest";
import { OPT, option, REP, u32 } from "../../../support/nbd-wire.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";
import { disk, EXPORTS, expectAlive, greeted, MIB } from "./handshake-fixture.ts";

describe("limits of the handshake", () => {
  test("an option of 8 KiB is read, a longer one is swallowed and refused, and the next is understood", async () => {
    const { client } = await greeted();
    expect(await client.optionOutcome(99, Buffer.alloc(8192))).toBe(REP.UNSUP);
    expect(await client.optionOutcome(99, Buffer.alloc(8193))).toBe(REP.TOO_BIG);
    expect(await client.optionOutcome(OPT.GO, Buffer.alloc(3 * MIB, "IHAVEOPT"))).toBe(REP.TOO_BIG);
    await expectAlive(client);
  });

  test("32 options and 8 for each export are taken, one more ends the connection", async () => {
    const { rig, client } = await greeted();
    for (let count = 0; count < 32 + 8 * EXPORTS.length; count++) {
      expect(await client.optionOutcome(99)).toBe(REP.UNSUP);
    }
    client.send(option(99));
    expect(await client.takeAll()).toHaveLength(0);
    expect(rig.logged("warn")).toContain("a client broke the protocol");
  });

  test("options that are too long count as well", async () => {
    const { client } = await greeted({ optionsMax: 1, optionBytesMax: 64 });
    for (let count = 0; count < 1 + 8 * EXPORTS.length; count++) {
      expect(await client.optionOutcome(99, Buffer.alloc(65))).toBe(REP.TOO_BIG);
    }
    client.send(option(99));
    expect(await client.takeAll()).toHaveLength(0);
  });

  for (const flags of [4, 2 ** 31, 7, 0xffff_ffff]) {
    test(`client flags ${flags.toString(16)} end the connection`, async () => {
      const rig = new ServerRig({ exports: EXPORTS });
      const { client } = rig.connect();
      await client.greet(flags);
      expect(await client.takeAll()).toHaveLength(0);
    });
  }

  test("an option without its magic number ends the connection", async () => {
    const { client } = await greeted();
    client.send(Buffer.from("IHAVEOPX"), u32(OPT.LIST), u32(0));
    expect(await client.takeAll()).toHaveLength(0);
  });

  test("a client that takes no replies gets no further options answered until it does", async () => {
    const many = Array.from({ length: 40 }, (_, i) => ({
      name: `disk${i}`,
      device: disk,
      readOnly: false,
      description: "d".repeat(4000),
    }));
    const rig = new ServerRig({ exports: many });
    const { client, far } = rig.connect();
    await client.greet();
    await settle();
    far.stall();
    const lists = 300;
    for (let count = 0; count < lists; count++) client.send(option(OPT.LIST));
    await settle(20);
    // One LIST is 160 KiB here; 300 of them would be 48 MB.
    expect(far.pendingBytes).toBeLessThan(MIB);
    far.unstall();
    for (let count = 0; count < lists * (many.length + 1); count++) await client.optionReply();
    await expectAlive(client);
  });
});
