import { describe, expect, test } from "vitest";
import type { Extent } from "../../../../src/block/extents.ts";
import type { StatusExtent } from "../../../../src/nbd/server/export.ts";
import { CMD, ERR, FLAG, parseStatus } from "../../../support/nbd-wire.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig } from "../../../support/server-rig.ts";

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;
const BASE = "base:allocation";

async function serve(dialect: "structured" | "extended") {
  const device = new ScriptedDevice({ sizeBytes: SIZE });
  const rig = new ServerRig({ device });
  const { client } = await rig.open({ dialect, contexts: [BASE] });
  return { device, rig, client };
}

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
