import { describe, expect, test } from "vitest";
import { BlockError } from "../../../../src/block/error.ts";
import type { Extent } from "../../../../src/block/extents.ts";
import type { StatusExtent } from "../../../../src/nbd/server/export.ts";
import { CMD, ERR, FLAG, parseStatus } from "../../../support/nbd-wire.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;
const BASE = "base:allocation";

async function serve(dialect: "structured" | "extended") {
  const device = new ScriptedDevice({ sizeBytes: SIZE });
  const rig = new ServerRig({ device });
  const { client } = await rig.open({ dialect, contexts: [BASE] });
  return { device, rig, client };
}

/** What a WRITE carries to announce its payload. */
const wideFlag = (dialect: string): number => (dialect === "extended" ? FLAG.PAYLOAD_LEN : 0);

/** `count` extents of 512 bytes, data and holes in turn. */
const stripes = (count: number): Extent[] =>
  Array.from({ length: count }, (_, i) => ({ length: 512, hole: i % 2 === 1, zero: i % 2 === 1 }));

for (const dialect of ["structured", "extended"] as const) {
  describe(`BLOCK_STATUS in the ${dialect} dialect`, () => {
    test("asks for one extent with REQ_ONE, and for thousands without", async () => {
      const { device, client } = await serve(dialect);
      device.extentsAnswer = (_offset, length, countMax) => stripes(Math.min(countMax, length / 512));
      const one = await client.call({ command: CMD.BLOCK_STATUS, length: SIZE, flags: FLAG.REQ_ONE });
      expect(one.chunks.map((chunk) => parseStatus(chunk).extents)).toEqual([[{ length: 512, flags: 0 }]]);
      const many = await client.call({ command: CMD.BLOCK_STATUS, length: SIZE });
      const extents = many.chunks.flatMap((chunk) => parseStatus(chunk).extents);
      expect(extents).toHaveLength(4096);
      expect(extents.slice(0, 3)).toEqual([
        { length: 512, flags: 0 },
        { length: 512, flags: 3 },
        { length: 512, flags: 0 },
      ]);
      expect(device.calls).toEqual([`extents 0+${SIZE} max 1`, `extents 0+${SIZE} max 4096`]);
    });

    test("passes every combination of hole and zero", async () => {
      const { device, client } = await serve(dialect);
      const all = [
        { length: 512, hole: false, zero: false },
        { length: 512, hole: true, zero: false },
        { length: 512, hole: false, zero: true },
        { length: 512, hole: true, zero: true },
      ];
      device.extentsAnswer = () => all;
      const { chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 2048 });
      expect(chunks.flatMap((chunk) => parseStatus(chunk).extents.map(({ flags }) => flags))).toEqual([0, 1, 2, 3]);
    });

    const nonsense: readonly [string, Extent[]][] = [
      ["no extent at all", []],
      ["an extent of nothing", [{ length: 0, hole: false, zero: false }]],
      ["a negative extent", [{ length: -512, hole: false, zero: false }]],
      ["half a byte", [{ length: 0.5, hole: false, zero: false }]],
      ["an endless extent", [{ length: Infinity, hole: true, zero: true }]],
      ["an extent longer than asked for", [{ length: 4097, hole: false, zero: false }]],
      ["extents that are longer together", [...stripes(8), { length: 1, hole: false, zero: false }]],
    ];
    for (const [what, extents] of nonsense) {
      test(`turns ${what} from a device into EIO, and stops writes`, async () => {
        const { device, rig, client } = await serve(dialect);
        device.extentsAnswer = () => extents;
        expect((await client.call({ command: CMD.BLOCK_STATUS, length: 4096 })).error).toBe(ERR.EIO);
        expect(rig.logged("error")).toHaveLength(1);
        expect(rig.server.heldBytes).toBe(0);
      });
    }

    test("turns more extents than were asked for into EIO", async () => {
      const { device, client } = await serve(dialect);
      device.extentsAnswer = () => stripes(2);
      const flags = FLAG.REQ_ONE;
      expect((await client.call({ command: CMD.BLOCK_STATUS, length: 4096, flags })).error).toBe(ERR.EIO);
    });

    test("answers for every selected context, in one reply, and is paid for until it is taken", async () => {
      const device = new ScriptedDevice({ sizeBytes: SIZE });
      const asked: [number, number, number][] = [];
      const contexts = ["x-blockferry:presence", "x-blockferry:other"].map((name, index) => ({
        name,
        status: async (offset: number, length: number, countMax: number) => {
          asked.push([offset, length, countMax]);
          return Array.from({ length: countMax }, (_, i) => ({ length: 512, flags: i + index }));
        },
      }));
      device.extentsAnswer = (_offset, _length, countMax) => stripes(countMax);
      const rig = new ServerRig({ exports: [{ name: "", device, readOnly: false, contexts }] });
      const { client, far } = await rig.open({ dialect, contexts: [BASE, ...contexts.map(({ name }) => name)] });
      expect(new Set(client.contextIds.values()).size).toBe(3);
      far.stall();
      const cookie = client.begin({ command: CMD.BLOCK_STATUS, offset: 512, length: 4 * MIB });
      await settle(10);
      // 4096 extents of 8 or 16 bytes for each of the three.
      const replyBytes = 3 * 4096 * (dialect === "extended" ? 16 : 8);
      expect(rig.server.heldBytes).toBeGreaterThan(replyBytes / 2);
      expect(rig.server.heldBytes).toBeLessThan(2 * replyBytes + 262_208);
      far.unstall();
      const { chunks } = await client.reply(cookie);
      const answers = new Map(chunks.map((chunk) => [parseStatus(chunk).contextId, parseStatus(chunk).extents]));
      expect([chunks.length, answers.size]).toEqual([3, 3]);
      expect(asked).toEqual([0, 1].map(() => [512, 4 * MIB, 4096]));
      for (const [index, { name }] of contexts.entries()) {
        const extents = answers.get(client.contextIds.get(name) ?? 0);
        expect([extents?.length, extents?.at(-1)]).toEqual([4096, { length: 512, flags: 4095 + index }]);
      }
      await settle();
      expect(rig.server.heldBytes).toBe(0);
    });

    test("is an error alone when one of the contexts fails, whichever", async () => {
      for (const failing of ["x-a:first", "x-a:second"]) {
        const device = new ScriptedDevice({ sizeBytes: SIZE });
        const contexts = ["x-a:first", "x-a:second"].map((name) => ({
          name,
          status: async (_offset: number, length: number) => {
            if (name === failing) throw new BlockError("io", "the map cannot be read");
            return [{ length, flags: 1 }];
          },
        }));
        const rig = new ServerRig({ exports: [{ name: "", device, readOnly: false, contexts }] });
        const { client } = await rig.open({ dialect, contexts: ["x-a:first", "x-a:second"] });
        const { error, chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 512 });
        expect([error, chunks.length, rig.server.heldBytes]).toEqual([ERR.EIO, 1, 0]);
        // The device itself has not misbehaved.
        expect(
          (await client.call({ command: CMD.WRITE, payload: Buffer.alloc(512, 1), flags: wideFlag(dialect) })).error,
        ).toBe(0);
      }
    });

    test("turns flags that do not fit into EIO", async () => {
      const device = new ScriptedDevice({ sizeBytes: SIZE });
      const answer: StatusExtent[] = [{ length: 512, flags: 2 ** 32 }];
      const contexts = [{ name: "x-a:b", status: async () => answer }];
      const rig = new ServerRig({ exports: [{ name: "", device, readOnly: false, contexts }] });
      const { client } = await rig.open({ dialect, contexts: ["x-a:b"] });
      expect((await client.call({ command: CMD.BLOCK_STATUS, length: 512 })).error).toBe(ERR.EIO);
      answer[0] = { length: 512, flags: 2 ** 32 - 1 };
      const { chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 512 });
      expect(chunks.flatMap((chunk) => parseStatus(chunk).extents)).toEqual([{ length: 512, flags: 2 ** 32 - 1 }]);
    });
  });
}

test("contexts that clients could not select or not tell apart are refused from the start", () => {
  const device = new ScriptedDevice({ sizeBytes: SIZE });
  const status = async () => [];
  const make = (...names: string[]) =>
    new ServerRig({
      exports: [{ name: "", device, readOnly: false, contexts: names.map((name) => ({ name, status })) }],
    });
  for (const names of [
    ["x-a:b", "x-a:b"],
    [BASE],
    ["base:other"],
    ["x-a"],
    ["x-a:"],
    [":b"],
    ["x-ä:b"],
    [`x-a:${"b".repeat(252)}`],
  ]) {
    expect(() => make(...names)).toThrow(/metadata context/);
  }
  expect(() => make("x-a:b", "x-a:c", `x-a:${"b".repeat(251)}`)).not.toThrow();
});
