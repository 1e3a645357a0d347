import { describe, expect, test } from "vitest";
import { BlockError } from "../../../../src/block/error.ts";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import {
  CHUNK,
  CMD,
  DIALECTS,
  ERR,
  FLAG,
  parseStatus,
  readData,
  type WireDialect,
  type WireRequest,
} from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";

const MIB = 1024 * 1024;
const SIZE = 6 * MIB + 777;
const BASE = "base:allocation";

async function serve(dialect: WireDialect = "structured") {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE), pageBytes: 65_536 });
  const rig = new ServerRig({ device });
  const { client } = await rig.open({ dialect, contexts: dialect === "simple" ? [] : [BASE] });
  const write = (offset: number, payload: Buffer, flags = 0): WireRequest => ({
    command: CMD.WRITE,
    offset,
    payload,
    flags: flags | (dialect === "extended" ? FLAG.PAYLOAD_LEN : 0),
  });
  return { device, rig, client, write };
}

describe("FUA", () => {
  test("reaches the device with every command that changes something", async () => {
    const { device, client, write } = await serve();
    await client.call(write(512, pattern(512, 512, 2), FLAG.FUA));
    await client.call({ command: CMD.WRITE_ZEROES, offset: 1024, length: 100, flags: FLAG.FUA });
    await client.call({ command: CMD.TRIM, offset: 2048, length: 200, flags: FLAG.FUA });
    expect(device.calls).toEqual(["write 512+512 fua", "writeZeroes 1024+100 fua", "discard 2048+200 fua"]);
  });

  test("is ignored with every other command", async () => {
    const { device, client } = await serve();
    for (const command of [CMD.READ, CMD.CACHE, CMD.BLOCK_STATUS]) {
      expect((await client.call({ command, length: 512, flags: FLAG.FUA })).error).toBe(0);
    }
    expect((await client.call({ command: CMD.FLUSH, flags: FLAG.FUA })).error).toBe(0);
    expect(device.calls).toEqual(["readNow 0+512", "cache 0+512", "extents 0+512 max 4096", "flush"]);
  });

  test("with a payload of several pieces is one flush, after all of them, before the reply", async () => {
    const { device, client, write } = await serve();
    const releaseWrites = device.hold("write");
    const releaseFlush = device.hold("flush");
    const cookie = client.begin(write(5, pattern(5, 3 * MIB, 2), FLAG.FUA));
    await settle();
    expect(device.calls).toEqual([`write 5+${MIB}`, `write ${5 + MIB}+${MIB}`, `write ${5 + 2 * MIB}+${MIB}`]);
    releaseWrites();
    await settle();
    expect(device.calls.slice(3)).toEqual(["flush"]);
    expect(client.bufferedBytes).toBe(0);
    releaseFlush();
    expect((await client.reply(cookie)).error).toBe(0);
    expect(device.contents(5, 3 * MIB)).toEqual(pattern(5, 3 * MIB, 2));
  });

  test("whose flush fails is an error", async () => {
    const { device, client, write } = await serve();
    device.fail("flush", new BlockError("io", "the disk is gone"));
    expect((await client.call(write(0, Buffer.alloc(2 * MIB, 1), FLAG.FUA))).error).toBe(ERR.EIO);
  });

  test("is not pretended when one of several pieces fails", async () => {
    const { device, client, write } = await serve();
    device.fail("write", new BlockError("no-space", "full"), 1);
    expect((await client.call(write(0, Buffer.alloc(3 * MIB, 1), FLAG.FUA))).error).toBe(ERR.ENOSPC);
    expect(device.count("flush")).toBe(0);
  });
});

describe("WRITE", () => {
  test("of several pieces is answered once, when the last of them is stored", async () => {
    for (const dialect of DIALECTS) {
      const { device, client, write, rig } = await serve(dialect);
      const release = device.hold("write");
      const cookie = client.begin(write(100, pattern(100, 5 * MIB, 9)));
      await settle();
      expect([device.count("write"), client.bufferedBytes]).toEqual([5, 0]);
      release();
      expect((await client.reply(cookie)).error).toBe(0);
      expect(
        device
          .contents(0, SIZE)
          .equals(
            Buffer.concat([pattern(0, 100), pattern(100, 5 * MIB, 9), pattern(100 + 5 * MIB, SIZE - 100 - 5 * MIB)]),
          ),
      ).toBe(true);
      expect([device.count("flush"), rig.server.heldBytes]).toEqual([0, 0]);
    }
  });

  test("goes to the page cache at once when it can, and through the queue when it cannot", async () => {
    const { device, client, write } = await serve();
    await client.call(write(0, pattern(0, 4096, 5)));
    device.quick = false;
    await client.call(write(4096, pattern(4096, 4096, 6)));
    expect(device.calls).toEqual(["writeNow 0+4096", "write 4096+4096"]);
    expect(device.contents(0, 8192)).toEqual(Buffer.concat([pattern(0, 4096, 5), pattern(4096, 4096, 6)]));
  });

  test("that fails at once, or later, says why", async () => {
    const { device, client, write } = await serve();
    device.fail("writeNow", new BlockError("no-space", "full"));
    device.fail("write", new BlockError("io", "broken"));
    expect((await client.call(write(0, Buffer.alloc(512)))).error).toBe(ERR.ENOSPC);
    device.quick = false;
    expect((await client.call(write(0, Buffer.alloc(512)))).error).toBe(ERR.EIO);
  });

  test("of nothing succeeds and touches nothing", async () => {
    for (const dialect of DIALECTS) {
      const { device, client, write } = await serve(dialect);
      expect((await client.call(write(SIZE, Buffer.alloc(0)))).error).toBe(0);
      expect((await client.call(write(0, Buffer.alloc(0), FLAG.FUA))).error).toBe(0);
      expect(device.calls).toEqual([]);
    }
  });
});

describe("READ", () => {
  const lengths = [1, 4096, 256 * 1024, 256 * 1024 + 1, MIB, MIB + 1, 3 * MIB + 5];
  for (const dialect of DIALECTS) {
    for (const quick of [true, false]) {
      test(`brings exactly what was asked for (${dialect}, ${quick ? "cached" : "not cached"})`, async () => {
        const { device, client, rig } = await serve(dialect);
        device.quick = quick;
        for (const length of lengths) {
          const offset = 12_345;
          const reply = await client.call({ command: CMD.READ, offset, length });
          expect(readData(reply, offset, length).equals(pattern(offset, length))).toBe(true);
          const pieces = dialect === "simple" ? 1 : Math.ceil(length / MIB);
          expect(reply.chunks).toHaveLength(pieces);
          expect(reply.chunks.filter(({ done }) => done)).toHaveLength(1);
        }
        await settle();
        expect(rig.server.heldBytes).toBe(0);
      });
    }
  }

  test("with DF comes in one chunk, up to 1 MiB", async () => {
    for (const dialect of ["structured", "extended"] as const) {
      const { device, client } = await serve(dialect);
      for (const quick of [true, false]) {
        device.quick = quick;
        for (const length of [1, 65_536, MIB]) {
          const reply = await client.call({ command: CMD.READ, offset: 3, length, flags: FLAG.DF });
          expect(readData(reply, 3, length).equals(pattern(3, length))).toBe(true);
          expect(reply.chunks).toHaveLength(1);
        }
        const reply = await client.call({ command: CMD.READ, offset: 3, length: MIB + 1, flags: FLAG.DF });
        expect(reply.error).toBe(ERR.EOVERFLOW);
        expect(reply.chunks.map(({ type }) => type)).toEqual([CHUNK.ERROR]);
      }
    }
  });

  test("that fails at once is an error without data", async () => {
    for (const dialect of DIALECTS) {
      for (const quick of [true, false]) {
        const { device, client, rig } = await serve(dialect);
        device.quick = quick;
        device.fail("read", new BlockError("io", "bad sector"));
        device.fail("readNow", new BlockError("io", "bad sector"));
        const { error, chunks } = await client.call({ command: CMD.READ, length: 4096 });
        expect([error, chunks.length, chunks[0]?.form]).toEqual([ERR.EIO, 1, dialect]);
        expect(chunks[0]?.type).toBe(dialect === "simple" ? CHUNK.NONE : CHUNK.ERROR);
        expect((await client.call({ command: CMD.FLUSH })).error).toBe(0);
        expect(rig.server.heldBytes).toBe(0);
      }
    }
  });

  test("that fails after some pieces went out ends in an error chunk", async () => {
    const { device, client, rig } = await serve();
    device.quick = false;
    device.fail("read", new BlockError("io", "bad sector"), 2);
    const { error, chunks } = await client.call({ command: CMD.READ, length: 5 * MIB });
    expect(error).toBe(ERR.EIO);
    expect(chunks.map(({ type, done }) => [type, done])).toEqual([
      [CHUNK.OFFSET_DATA, false],
      [CHUNK.OFFSET_DATA, false],
      [CHUNK.ERROR, true],
    ]);
    await settle();
    expect(rig.server.heldBytes).toBe(0);
  });

  test("of nothing succeeds without data", async () => {
    for (const dialect of DIALECTS) {
      const { client } = await serve(dialect);
      for (const offset of [0, 5, SIZE]) {
        const { error, chunks } = await client.call({ command: CMD.READ, offset, length: 0 });
        expect([error, chunks.length, chunks[0]?.payload.length]).toEqual([0, 1, 0]);
      }
    }
  });
});

describe("WRITE_ZEROES, TRIM, CACHE and FLUSH", () => {
  test("hand their flags to the device", async () => {
    const { device, client } = await serve();
    const zero = (flags: number) => client.call({ command: CMD.WRITE_ZEROES, offset: 1, length: 2, flags });
    await zero(0);
    await zero(FLAG.NO_HOLE);
    await zero(FLAG.FAST_ZERO);
    await zero(FLAG.NO_HOLE | FLAG.FAST_ZERO | FLAG.FUA);
    expect(device.calls).toEqual([
      "writeZeroes 1+2",
      "writeZeroes 1+2 noHole",
      "writeZeroes 1+2 fastOnly",
      "writeZeroes 1+2 fua noHole fastOnly",
    ]);
  });

  test("say ENOTSUP when zeroing would not be fast", async () => {
    const { device, client } = await serve();
    device.fail("writeZeroes", new BlockError("not-supported", "slow"));
    const flags = FLAG.FAST_ZERO;
    expect((await client.call({ command: CMD.WRITE_ZEROES, length: 512, flags })).error).toBe(ERR.ENOTSUP);
  });

  test("say EIO for as long as flushing fails", async () => {
    const { device, client } = await serve();
    device.fail("flush", new BlockError("io", "no"));
    for (let i = 0; i < 3; i++) expect((await client.call({ command: CMD.FLUSH })).error).toBe(ERR.EIO);
  });

  test("a FLUSH is answered after the device has flushed", async () => {
    const { device, client } = await serve();
    const release = device.hold("flush");
    const cookie = client.begin({ command: CMD.FLUSH });
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    expect(client.bufferedBytes).toBe(0);
    release();
    expect((await client.reply(cookie)).error).toBe(0);
  });

  test("take 4 GiB − 1 bytes, and with extended headers terabytes, without any memory", async () => {
    const TIB = 2 ** 40;
    for (const dialect of DIALECTS) {
      const device = new MemoryDevice({ sizeBytes: 16 * TIB, content: pattern(0, 65_536) });
      const rig = new ServerRig({ device });
      const { client } = await rig.open({ dialect, contexts: dialect === "simple" ? [] : [BASE] });
      const lengths = dialect === "extended" ? [2 ** 32 - 1, 2 ** 32, 9 * TIB] : [2 ** 32 - 1];
      const commands = [CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES];
      const ranges = lengths.flatMap((length) => [0, 7, 16 * TIB - length].map((offset) => ({ offset, length })));
      for (const wanted of ranges.flatMap((range) => commands.map((command) => ({ command, ...range })))) {
        expect((await client.call(wanted)).error).toBe(0);
      }
      expect(rig.server.heldBytes).toBe(0);
    }
  });
});

describe("BLOCK_STATUS", () => {
  test("tells holes from data, in chunks for every context in the order they were selected", async () => {
    const device = new ScriptedDevice({ sizeBytes: 4 * MIB, content: pattern(0, MIB), pageBytes: 65_536 });
    const context = (name: string, flags: number) => ({
      name,
      status: async (_offset: number, length: number) => [
        { length: length - 1, flags },
        { length: 1, flags: flags + 1 },
      ],
    });
    const contexts = [context("x-a:one", 7), context("x-b:two", 9)];
    const rig = new ServerRig({ exports: [{ name: "", device, readOnly: false, contexts }] });
    for (const dialect of ["structured", "extended"] as const) {
      const { client } = await rig.open({ dialect, contexts: ["x-b:two", BASE] });
      const { chunks, error } = await client.call({ command: CMD.BLOCK_STATUS, offset: 512, length: 3 * MIB });
      expect(error).toBe(0);
      const found = new Map(chunks.map((chunk) => [parseStatus(chunk).contextId, parseStatus(chunk).extents]));
      expect(found.get(client.contextIds.get(BASE) ?? -1)).toEqual([
        { length: MIB - 512, flags: 0 },
        { length: 2 * MIB + 512, flags: 3 },
      ]);
      expect(found.get(client.contextIds.get("x-b:two") ?? -1)).toEqual([
        { length: 3 * MIB - 1, flags: 9 },
        { length: 1, flags: 10 },
      ]);
      expect(chunks.map(({ done }) => done)).toEqual([false, true]);
    }
  });

  test("that fails for one context is an error and nothing else", async () => {
    const { device, client, rig } = await serve();
    device.fail("extents", new BlockError("io", "cannot tell"));
    const { error, chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 4096 });
    expect([error, chunks.map(({ type }) => type)]).toEqual([ERR.EIO, [CHUNK.ERROR]]);
    expect(rig.server.heldBytes).toBe(0);
  });
});
