import { describe, expect, test } from "vitest";
import { BlockError, type BlockErrorCode } from "../../../../src/block/error.ts";
import { CMD, ERR, FLAG, type WireRequest } from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { type DeviceOperation, ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig } from "../../../support/server-rig.ts";

const SIZE = 65_536;
const BASE = "base:allocation";
const makeDevice = () => new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE) });
const STRUCTURED = { dialect: "structured", contexts: [BASE] } as const;

/** What makes the server call each operation of a device. */
const TRIGGERS: Readonly<Record<Exclude<DeviceOperation, "readNow" | "writeNow">, WireRequest>> = {
  read: { command: CMD.READ, length: 512 },
  write: { command: CMD.WRITE, payload: pattern(0, 512, 2), flags: FLAG.FUA },
  writeZeroes: { command: CMD.WRITE_ZEROES, length: 512 },
  discard: { command: CMD.TRIM, length: 512 },
  cache: { command: CMD.CACHE, length: 512 },
  flush: { command: CMD.FLUSH },
  extents: { command: CMD.BLOCK_STATUS, length: 512 },
};
const WRITES: readonly WireRequest[] = [
  TRIGGERS.write,
  { command: CMD.WRITE, payload: pattern(0, 512, 3) },
  { command: CMD.WRITE, payload: Buffer.alloc(512) },
  TRIGGERS.writeZeroes,
  TRIGGERS.discard,
];

describe("an expected failure", () => {
  const onWire: Readonly<Partial<Record<BlockErrorCode, number>>> = {
    io: ERR.EIO,
    "no-memory": ERR.ENOMEM,
    permission: ERR.EPERM,
    "shutting-down": ERR.ESHUTDOWN,
    invalid: ERR.EINVAL,
  };
  for (const [operation, trigger] of Object.entries(TRIGGERS)) {
    test(`of ${operation} is answered, and the connection and the export live on`, async () => {
      const device = makeDevice();
      device.quick = false;
      const rig = new ServerRig({ device });
      const { client } = await rig.open(STRUCTURED);
      for (const [code, errno] of Object.entries(onWire)) {
        device.fail(operation as DeviceOperation, new BlockError(code as BlockErrorCode, "as ordered"));
        expect([code, (await client.call(trigger)).error]).toEqual([code, errno]);
      }
      device.heal(operation as DeviceOperation);
      expect((await client.call(trigger)).error).toBe(0);
      expect((await client.call(TRIGGERS.write)).error).toBe(0);
      expect(rig.logged("error")).toEqual([]);
    });
  }
});

describe("a bug in a device", () => {
  const oddities: readonly unknown[] = [new TypeError("undefined is not a function"), "a string", undefined, null];
  for (const [operation, trigger] of Object.entries(TRIGGERS)) {
    test(`in ${operation} is EIO, and nothing is written to it any more, by anybody`, async () => {
      for (const thrown of oddities) {
        const device = makeDevice();
        device.quick = false;
        const other = makeDevice();
        const rig = new ServerRig({
          exports: [
            { name: "a", device, readOnly: false },
            { name: "b", device, readOnly: false },
            { name: "other", device: other, readOnly: false },
          ],
        });
        const [first, second, elsewhere] = await Promise.all([
          rig.open({ ...STRUCTURED, exportName: "a" }),
          rig.open({ ...STRUCTURED, exportName: "b" }),
          rig.open({ ...STRUCTURED, exportName: "other" }),
        ]);
        device.fail(operation as DeviceOperation, thrown);
        expect((await first.client.call(trigger)).error).toBe(ERR.EIO);
        device.heal(operation as DeviceOperation);
        device.quick = true;
        device.calls.length = 0;
        for (const { client } of [first, second]) {
          for (const write of WRITES) expect((await client.call(write)).error).toBe(ERR.EIO);
          expect((await client.call(TRIGGERS.read)).error).toBe(0);
        }
        expect(device.calls).toEqual(["readNow 0+512", "readNow 0+512"]);
        for (const write of WRITES) expect((await elsewhere.client.call(write)).error).toBe(0);
        expect(rig.logged("error")).toEqual(["internal error; this export accepts no more writes"]);
      }
    });
  }

  test("is logged with its stack, which the client does not get to see", async () => {
    const device = makeDevice();
    const rig = new ServerRig({ device });
    const { client } = await rig.open(STRUCTURED);
    device.fail("readNow", new TypeError("secret detail"));
    const { chunks } = await client.call(TRIGGERS.read);
    expect(chunks[0]?.payload.toString("latin1")).not.toContain("secret");
    const logged = rig.log.find(({ level }) => level === "error");
    expect(String(logged?.fields["stack"])).toMatch(/secret detail\n +at .*guard\.test/);
  });

  test("in writeNow is EIO as well", async () => {
    const device = makeDevice();
    const rig = new ServerRig({ device });
    const { client } = await rig.open();
    device.fail("writeNow", new RangeError("bug"));
    for (let i = 0; i < 2; i++) {
      expect((await client.call({ command: CMD.WRITE, payload: Buffer.alloc(9) })).error).toBe(ERR.EIO);
    }
    expect(device.count("writeNow")).toBe(1);
  });
});
