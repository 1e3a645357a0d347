import { describe, expect, test } from "vitest";
import { CMD, DIALECTS, ERR, FLAG, readData, type WireDialect, type WireRequest } from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import type { RawClient } from "../../../support/raw-client.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig } from "../../../support/server-rig.ts";

const SIZE = 1_000_000; // neither a multiple of 4096 nor of 512
const MAX = 65_536;
const BASE = "base:allocation";
const COMMANDS = Object.entries(CMD).filter(([name]) => name !== "DISC");
const U64_MAX = 2n ** 64n - 1n;

interface Setting {
  readonly dialect: WireDialect;
  readonly readOnly: boolean;
}

const SETTINGS: readonly Setting[] = DIALECTS.flatMap((dialect) => [
  { dialect, readOnly: false },
  { dialect, readOnly: true },
]);

const titleOf = ({ dialect, readOnly }: Setting) => `${dialect}, ${readOnly ? "read-only" : "writable"}`;

async function connect({ dialect, readOnly }: Setting) {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE), pageBytes: 4096 });
  const rig = new ServerRig({ exports: [{ name: "", device, readOnly }], limits: { requestBytesMax: MAX } });
  const { client } = await rig.open({ dialect, contexts: dialect === "simple" ? [] : [BASE] });
  return { rig, device, client };
}

const writes = (command: number) => command === CMD.WRITE || command === CMD.TRIM || command === CMD.WRITE_ZEROES;
const grows = (command: number) => command === CMD.WRITE || command === CMD.WRITE_ZEROES;

/** A request of `length` bytes as `dialect` asks for it: WRITE with a payload, FLUSH without a range. */
function plain(command: number, dialect: WireDialect, range: { offset: number; length: number }): WireRequest {
  if (command === CMD.FLUSH) return { command };
  if (command !== CMD.WRITE) return { command, ...range };
  const flags = dialect === "extended" ? FLAG.PAYLOAD_LEN : 0;
  return { command, offset: range.offset, payload: Buffer.alloc(range.length, 0x77), flags };
}

/** The error, once it is sure that the reply has the right form and that the connection lives. */
async function errorOf(client: RawClient, wanted: WireRequest): Promise<number> {
  const { error, chunks } = await client.call(wanted);
  for (const { form, offset } of chunks) {
    if (client.dialect === "extended") expect(offset).toBe(BigInt.asUintN(64, BigInt(wanted.offset ?? 0)));
    const mustBeChunk =
      client.dialect === "extended" || (client.dialect === "structured" && wanted.command === CMD.READ);
    if (mustBeChunk) expect(form).toBe(client.dialect);
  }
  expect((await client.call({ command: CMD.FLUSH, cookie: U64_MAX })).error).toBe(0);
  return error;
}

describe("every command with every flag", () => {
  const allowed: Readonly<Record<number, number>> = {
    [CMD.READ]: FLAG.FUA | FLAG.DF,
    [CMD.WRITE]: FLAG.FUA,
    [CMD.FLUSH]: FLAG.FUA,
    [CMD.TRIM]: FLAG.FUA,
    [CMD.CACHE]: FLAG.FUA,
    [CMD.WRITE_ZEROES]: FLAG.FUA | FLAG.NO_HOLE | FLAG.FAST_ZERO,
    [CMD.BLOCK_STATUS]: FLAG.FUA | FLAG.REQ_ONE,
  };

  function expected(command: number, flag: number, { dialect, readOnly }: Setting): number {
    if (command === CMD.BLOCK_STATUS && dialect === "simple") return ERR.EINVAL;
    if (command === CMD.READ && flag === FLAG.DF && dialect === "simple") return ERR.EINVAL;
    const isPayloadFlag = command === CMD.WRITE && flag === FLAG.PAYLOAD_LEN && dialect === "extended";
    if (!isPayloadFlag && (flag & ~(allowed[command] ?? 0)) !== 0) return ERR.EINVAL;
    return readOnly && writes(command) ? ERR.EPERM : 0;
  }

  for (const setting of SETTINGS) {
    test(titleOf(setting), async () => {
      const { client, device } = await connect(setting);
      for (const [name, command] of COMMANDS) {
        for (let bit = -1; bit < 16; bit++) {
          const flag = bit < 0 ? 0 : 1 << bit;
          const wanted = plain(command, setting.dialect, { offset: 512, length: 1024 });
          // In the extended dialect the flag means that a payload follows, whatever the command is.
          const follows = setting.dialect === "extended" && flag === FLAG.PAYLOAD_LEN && wanted.payload === undefined;
          const full = {
            ...wanted,
            flags: (wanted.flags ?? 0) | flag,
            ...(follows && { payload: Buffer.alloc(1024), length: 1024 }),
          };
          device.calls.length = 0;
          expect([name, flag, await errorOf(client, full)]).toEqual([name, flag, expected(command, flag, setting)]);
          const refused = expected(command, flag, setting) !== 0;
          if (refused) expect(device.calls).toEqual(["flush"]);
        }
      }
    });
  }
});

describe("every command on every kind of range", () => {
  const ranges: readonly [string, { offset: number | bigint; length: number }, "good" | "empty" | "past"][] = [
    ["the first byte", { offset: 0, length: 1 }, "good"],
    ["the last byte", { offset: SIZE - 1, length: 1 }, "good"],
    ["an odd range", { offset: 12_345, length: 6789 }, "good"],
    ["nothing at the start", { offset: 0, length: 0 }, "empty"],
    ["nothing at the end", { offset: SIZE, length: 0 }, "empty"],
    ["the byte after the end", { offset: SIZE, length: 1 }, "past"],
    ["across the end", { offset: SIZE - 1, length: 2 }, "past"],
    ["nothing, past the end", { offset: SIZE + 1, length: 0 }, "past"],
    ["2^32 bytes in", { offset: 2 ** 32, length: 512 }, "past"],
    ["the last offset of a number", { offset: 2 ** 53 - 1, length: 1 }, "past"],
    ["beyond 2^53", { offset: 2n ** 53n, length: 512 }, "past"],
    ["beyond 2^53, and odd", { offset: 2n ** 60n + 12_345n, length: 512 }, "past"],
    ["2^63", { offset: 2n ** 63n, length: 512 }, "past"],
    ["up to 2^64", { offset: 2n ** 64n - 512n, length: 512 }, "past"],
    ["the last byte of 2^64", { offset: U64_MAX, length: 1 }, "past"],
    ["across 2^64", { offset: 2n ** 64n - 512n, length: 1024 }, "past"],
  ];

  function expected(command: number, kind: string, { dialect, readOnly }: Setting): number {
    if (readOnly && writes(command)) return ERR.EPERM;
    if (command === CMD.BLOCK_STATUS && dialect === "simple") return ERR.EINVAL;
    if (kind === "past") return grows(command) ? ERR.ENOSPC : ERR.EINVAL;
    return kind === "empty" && command === CMD.BLOCK_STATUS ? ERR.EINVAL : 0;
  }

  for (const setting of SETTINGS) {
    test(titleOf(setting), async () => {
      const { client } = await connect(setting);
      for (const [name, command] of COMMANDS) {
        for (const [where, { offset, length }, kind] of ranges) {
          if (command === CMD.FLUSH) continue;
          const wanted = { ...plain(command, setting.dialect, { offset: 0, length }), offset };
          expect([name, where, await errorOf(client, wanted)]).toEqual([name, where, expected(command, kind, setting)]);
        }
      }
    });
  }

  for (const setting of SETTINGS) {
    test(`FLUSH takes no range (${titleOf(setting)})`, async () => {
      const { client } = await connect(setting);
      expect(await errorOf(client, { command: CMD.FLUSH })).toBe(0);
      expect(await errorOf(client, { command: CMD.FLUSH, offset: 1 })).toBe(ERR.EINVAL);
      expect(await errorOf(client, { command: CMD.FLUSH, length: 1 })).toBe(ERR.EINVAL);
    });
  }
});

describe("lengths that only extended headers can say", () => {
  const setting: Setting = { dialect: "extended", readOnly: false };
  const lengths = [2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, U64_MAX];
  for (const [name, command] of COMMANDS) {
    if (command === CMD.WRITE || command === CMD.FLUSH) continue;
    test(name, async () => {
      const { client } = await connect(setting);
      for (const length of lengths) {
        expect(await errorOf(client, { command, offset: 512, length })).toBe(grows(command) ? ERR.ENOSPC : ERR.EINVAL);
      }
    });
  }
});

describe("commands that do not exist", () => {
  for (const setting of SETTINGS) {
    test(titleOf(setting), async () => {
      const { client, device } = await connect(setting);
      for (const command of [8, 9, 255, 256, 0x8000, 0xffff]) {
        for (const flags of [0, 1, 0xffff & ~FLAG.PAYLOAD_LEN]) {
          expect(await errorOf(client, { command, flags, length: 100 })).toBe(ERR.EINVAL);
        }
      }
      expect(device.calls.every((call) => call === "flush")).toBe(true);
    });
  }
});

describe("the largest payload", () => {
  for (const setting of SETTINGS.filter(({ readOnly }) => !readOnly)) {
    test(`is taken, and one byte more is refused (${setting.dialect})`, async () => {
      const { client, rig } = await connect(setting);
      const { dialect } = setting;
      expect(await errorOf(client, plain(CMD.WRITE, dialect, { offset: 0, length: MAX }))).toBe(0);
      expect(await errorOf(client, { command: CMD.READ, length: MAX })).toBe(0);
      expect(await errorOf(client, { command: CMD.READ, length: MAX + 1 })).toBe(ERR.EINVAL);
      if (dialect === "extended") {
        // "A server SHOULD initiate hard disconnect" (proto.md of the extension, "Request message").
        client.begin(plain(CMD.WRITE, dialect, { offset: 0, length: MAX + 1 }));
        expect(await client.takeAll()).toHaveLength(0);
        expect(rig.logged("warn")).toContain("a client broke the protocol");
      } else {
        expect(await errorOf(client, plain(CMD.WRITE, dialect, { offset: 0, length: MAX + 1 }))).toBe(ERR.EINVAL);
      }
    });
  }

  test("an extended WRITE without PAYLOAD_LEN, as QEMU sends it, brings its payload all the same", async () => {
    const { client } = await connect({ dialect: "extended", readOnly: false });
    const payload = pattern(0, 512).reverse();
    expect(await errorOf(client, { command: CMD.WRITE, flags: 0, offset: 4096, payload })).toBe(0);
    expect(readData(await client.call({ command: CMD.READ, offset: 4096, length: 512 }), 4096, 512)).toEqual(payload);
  });
});

describe("the payload of a refused WRITE is read to its end before the reply", () => {
  const refusals: readonly [string, Partial<WireRequest>, boolean, number][] = [
    ["past the end", { offset: SIZE }, false, ERR.ENOSPC],
    ["read-only", {}, true, ERR.EPERM],
    ["bad flag", { flags: 0x100 }, false, ERR.EINVAL],
  ];
  for (const dialect of DIALECTS) {
    for (const [why, extra, readOnly, errno] of refusals) {
      test(`${why}, ${dialect}`, async () => {
        const { client } = await connect({ dialect, readOnly });
        // A payload of requests: if it were not read, it would be carried out.
        const decoy = Buffer.concat(Array.from({ length: 20 }, () => pattern(0, 500)));
        const wanted = { ...plain(CMD.WRITE, dialect, { offset: 0, length: 1 }), payload: decoy, ...extra };
        const flags = dialect === "extended" ? (wanted.flags ?? 0) | FLAG.PAYLOAD_LEN : wanted.flags;
        expect(await errorOf(client, { ...wanted, ...(flags !== undefined && { flags }) })).toBe(errno);
        const { chunks, error } = await client.call({ command: CMD.READ, offset: 8, length: 800 });
        expect(readData({ chunks, error }, 8, 800)).toEqual(pattern(8, 800));
      });
    }
  }
});

test("a cookie is echoed bit by bit", async () => {
  for (const dialect of DIALECTS) {
    const { client } = await connect({ dialect, readOnly: false });
    for (const cookie of [0n, 1n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n + 1n, 2n ** 63n, U64_MAX, 0x0123456789abcdefn]) {
      expect((await client.call({ command: CMD.READ, length: 16, cookie })).error).toBe(0);
      expect((await client.call({ command: CMD.FLUSH, cookie })).error).toBe(0);
      expect((await client.call({ command: 99, cookie })).error).toBe(ERR.EINVAL);
    }
  }
});

test("a request without its magic number ends the connection, and nothing after it is carried out", async () => {
  for (const dialect of DIALECTS) {
    const { client, device } = await connect({ dialect, readOnly: false });
    const good = plain(CMD.WRITE, dialect, { offset: 0, length: 512 });
    client.dialect = dialect === "extended" ? "simple" : "extended";
    client.begin({ command: CMD.FLUSH });
    client.dialect = dialect;
    client.begin(good);
    expect(await client.takeAll()).toHaveLength(0);
    expect(device.calls).toEqual([]);
  }
});

test("a payload longer than any that can be ends the connection, and nothing after it is carried out", async () => {
  const { client, device } = await connect({ dialect: "extended", readOnly: false });
  client.begin({ command: CMD.WRITE, flags: FLAG.PAYLOAD_LEN, length: 2n ** 60n });
  client.begin(plain(CMD.WRITE, "extended", { offset: 0, length: 512 }));
  expect(await client.takeAll()).toHaveLength(0);
  expect(device.calls).toEqual([]);
});
