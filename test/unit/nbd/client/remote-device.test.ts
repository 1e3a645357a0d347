import { describe, expect, test } from "vitest";
import { ConnectionLostError } from "../../../../src/nbd/client/errors.ts";
import { pattern } from "../../../support/patterns.ts";
import { outcomeOf, type Scripted, scripted, settled } from "./scripted-client.ts";
import {
  ALL_FLAGS,
  CMD,
  cat,
  dataChunk,
  doneChunk,
  errorChunk,
  extended,
  type HandshakeScript,
  type Request,
  STATUS,
  STATUS_EXT,
  structured,
  u32,
  u64,
} from "./scripted-server.ts";

const MIB = 1 << 20;
const GIB = 2 ** 30;
const [FUA, NO_HOLE, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] = [1, 2, 8, 16, 32];
const [READ_ONLY, HAS_FUA, TRIM, ZERO, CACHE, FAST, ROTATIONAL] = [0x2, 0x8, 0x20, 0x40, 0x400, 0x800, 0x10];

function open(handshake: HandshakeScript = {}): Promise<Scripted> {
  return scripted({ handshake: { sizeBytes: 16 * GIB, ...handshake } });
}

/** Answers everything the way `respond` says, until the client is done; returns what was asked. */
async function serve(it: Scripted, work: Promise<unknown>, respond?: (request: Request) => Buffer | undefined) {
  const asked: Request[] = [];
  let over = false;
  const outcome = outcomeOf(work).finally(() => {
    over = true;
  });
  for (;;) {
    await settled();
    if (over) break;
    const request = await it.server.request(it.client.dialect === "extended" ? "extended" : "compact");
    asked.push(request);
    it.server.send(respond?.(request) ?? succeed(it, request));
  }
  return { asked, outcome: await outcome };
}

function succeed({ client }: Scripted, { command, cookie, offset, length }: Request): Buffer {
  const chunk = command === CMD.read ? dataChunk(offset, pattern(offset, length)) : doneChunk;
  return client.dialect === "extended" ? extended(cookie, offset, chunk) : structured(cookie, chunk);
}

const fail = (error: number) => (request: Request) => structured(request.cookie, errorChunk(error));
const shapes = (asked: readonly Request[]) =>
  asked.map(({ command, flags, offset, length }) => [command, flags, offset, length]);

describe("long requests", () => {
  test("are cut to the server's longest payload", async () => {
    const it = await open({ blockSizes: [512, 4096, 1_500_000] });
    const into = new Uint8Array(4 * MIB);
    const { asked, outcome } = await serve(it, it.client.read(MIB, into));
    expect(outcome).toBe("success");
    expect(pattern(MIB, 4 * MIB).equals(into)).toBe(true);
    // Down to whole blocks.
    const most = 1_500_000 - (1_500_000 % 512);
    expect(asked.map(({ length }) => length)).toEqual([most, most, 4 * MIB - 2 * most]);
  });

  test("are cut to 32 MiB where the server says nothing, or allows more", async () => {
    for (const blockSizes of [undefined, [1, 4096, 0xffff_ffff] as const]) {
      const it = await open(blockSizes === undefined ? {} : { blockSizes });
      const bytes = pattern(0, 40 * MIB);
      const { asked, outcome } = await serve(it, it.client.write(0, bytes));
      expect(outcome).toBe("success");
      expect(shapes(asked)).toEqual([
        [CMD.write, 0, 0, 32 * MIB],
        [CMD.write, 0, 32 * MIB, 8 * MIB],
      ]);
    }
  });

  test("fail as a whole when one piece does, and not before all pieces under way have ended", async () => {
    const it = await open({ blockSizes: [1, 4096, 4096] });
    const reading = outcomeOf(it.client.read(0, new Uint8Array(40_960)));
    const asked: Request[] = [];
    for (let count = 0; count < 4; count++) asked.push(await it.server.request());
    it.server.send(structured((asked[1] as Request).cookie, errorChunk(5)));
    let over = false;
    void reading.then(() => {
      over = true;
    });
    await settled();
    expect(over).toBe(false);
    for (const index of [0, 2, 3]) it.server.send(succeed(it, asked[index] as Request));
    expect(await reading).toMatchObject({ code: "io" });
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });

  test("for no bytes are not sent at all", async () => {
    const it = await open();
    await it.client.read(5, new Uint8Array(0));
    await it.client.write(5, new Uint8Array(0));
    await it.client.writeZeroes(5, 0, { fastOnly: true });
    await it.client.discard(5, 0);
    await it.client.cache(5, 0);
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });

  test("without payload may be almost 4 GiB long, and are cut above that", async () => {
    const it = await open();
    const { asked } = await serve(it, it.client.discard(512, 9 * GIB));
    const most = 2 ** 32 - 65_536;
    expect(shapes(asked)).toEqual([
      [CMD.trim, 0, 512, most],
      [CMD.trim, 0, 512 + most, most],
      [CMD.trim, 0, 512 + 2 * most, 9 * GIB - 2 * most],
    ]);
  });

  test("without payload are of any length with extended headers", async () => {
    const it = await open({ dialect: "extended" });
    const { asked } = await serve(it, it.client.writeZeroes(0, 16 * GIB));
    expect(shapes(asked)).toEqual([[CMD.zero, 0, 0, 16 * GIB]]);
  });

  test("without payload that the server finds too long are cut to its longest payload", async () => {
    for (const error of [22, 75]) {
      const it = await open({ blockSizes: [1, 4096, MIB] });
      const refuseLong = (request: Request) => (request.length > MIB ? fail(error)(request) : undefined);
      const { asked, outcome } = await serve(it, it.client.writeZeroes(0, 3 * MIB), refuseLong);
      expect(outcome).toBe("success");
      expect(asked.map(({ length }) => length)).toEqual([3 * MIB, MIB, MIB, MIB]);
    }
  });

  test("that are invalid for another reason fail once and for all", async () => {
    const it = await open();
    const { asked, outcome } = await serve(it, it.client.writeZeroes(0, MIB), fail(22));
    expect(outcome).toMatchObject({ code: "invalid" });
    expect(asked).toHaveLength(1);
  });
});

describe("flags of commands", () => {
  test("are those the caller wants and the server has", async () => {
    const it = await open();
    const asked = [
      ...(await serve(it, it.client.write(0, pattern(0, 512), { fua: true }))).asked,
      ...(await serve(it, it.client.writeZeroes(0, 512, { fua: true, noHole: true, fastOnly: true }))).asked,
      ...(await serve(it, it.client.writeZeroes(0, 512))).asked,
      ...(await serve(it, it.client.discard(0, 512, { fua: true }))).asked,
      ...(await serve(it, it.client.cache(0, 512))).asked,
    ];
    expect(shapes(asked)).toEqual([
      [CMD.write, FUA, 0, 512],
      [CMD.zero, FUA | NO_HOLE | FAST_ZERO, 0, 512],
      [CMD.zero, 0, 0, 512],
      [CMD.trim, FUA, 0, 512],
      [CMD.cache, 0, 0, 512],
    ]);
  });

  test("with extended headers say that a write has a payload", async () => {
    const it = await open({ dialect: "extended" });
    for (const length of [512, 3 * MIB]) {
      const { asked, outcome } = await serve(it, it.client.write(MIB, pattern(MIB, length), { fua: true }));
      expect(outcome).toBe("success");
      expect(shapes(asked)).toEqual([[CMD.write, FUA | PAYLOAD_LEN, MIB, length]]);
      expect(pattern(MIB, length).equals((asked[0] as Request).payload)).toBe(true);
    }
  });
});

describe("what a server lacks", () => {
  test("FUA is made of a flush behind the write", async () => {
    const it = await open({ flags: ALL_FLAGS & ~HAS_FUA });
    for (const work of [
      () => it.client.write(0, pattern(0, 512), { fua: true }),
      () => it.client.writeZeroes(0, 512, { fua: true }),
      () => it.client.discard(0, 512, { fua: true }),
    ]) {
      const { asked, outcome } = await serve(it, work());
      expect(outcome).toBe("success");
      expect(asked.map(({ command }) => command).at(-1)).toBe(CMD.flush);
      expect(asked.every(({ flags }) => (flags & FUA) === 0)).toBe(true);
    }
    const { outcome } = await serve(it, it.client.write(0, pattern(0, 512), { fua: true }), (request) =>
      request.command === CMD.flush ? fail(5)(request) : undefined,
    );
    expect(outcome).toMatchObject({ code: "io" });
  });

  test("a write that failed is not followed by a flush", async () => {
    const it = await open({ flags: ALL_FLAGS & ~HAS_FUA });
    const { asked, outcome } = await serve(it, it.client.write(0, pattern(0, 512), { fua: true }), fail(28));
    expect(outcome).toMatchObject({ code: "no-space" });
    expect(asked).toHaveLength(1);
  });

  test("zeroes are written out", async () => {
    const it = await open({ flags: ALL_FLAGS & ~ZERO });
    const { asked, outcome } = await serve(it, it.client.writeZeroes(100, 2 * MIB + 5, { noHole: true, fua: true }));
    expect(outcome).toBe("success");
    expect(shapes(asked)).toEqual([
      [CMD.write, FUA, 100, MIB],
      [CMD.write, FUA, 100 + MIB, MIB],
      [CMD.write, FUA, 100 + 2 * MIB, 5],
    ]);
    expect(asked.every(({ payload }) => payload.equals(Buffer.alloc(payload.length)))).toBe(true);
    expect(it.client.capabilities.fastZero).toBe(false);
    expect(await outcomeOf(it.client.writeZeroes(0, 512, { fastOnly: true }))).toMatchObject({ code: "not-supported" });
  });

  test("only fast zeroes are refused where the server cannot tell", async () => {
    const it = await open({ flags: ALL_FLAGS & ~FAST });
    expect(await outcomeOf(it.client.writeZeroes(0, 512, { fastOnly: true }))).toMatchObject({ code: "not-supported" });
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });

  test("discard and cache, mere hints, succeed without being sent", async () => {
    const it = await open({ flags: ALL_FLAGS & ~TRIM & ~CACHE });
    await it.client.discard(0, 512);
    await it.client.cache(0, 512);
    expect(it.client.capabilities.discard).toBe(false);
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });

  test("flush of a server without FLUSH has nothing to do", async () => {
    const it = await open({ flags: 0x1 });
    await it.client.flush();
    await it.client.write(0, new Uint8Array(0), { fua: true });
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });

  test("extents are data from beginning to end", async () => {
    const it = await open({ contexts: [] });
    expect(it.client.capabilities.extents).toBe(false);
    expect(await it.client.extents(5, 12 * GIB, 1)).toEqual([{ length: 12 * GIB, hole: false, zero: false }]);
    const refused = outcomeOf(it.client.blockStatus("base:allocation", 0, 512));
    expect(await refused).toMatchObject({ code: "not-supported" });
  });
});

describe("fast zeroes", () => {
  test("that are too slow are refused, and nothing else is tried", async () => {
    const it = await open();
    const { asked, outcome } = await serve(it, it.client.writeZeroes(0, 12 * GIB, { fastOnly: true }), fail(95));
    expect(outcome).toMatchObject({ code: "not-supported" });
    expect(asked).toHaveLength(1);
  });

  test("in several pieces are tried with the first, and finished either way", async () => {
    const it = await open();
    const { asked, outcome } = await serve(it, it.client.writeZeroes(0, 9 * GIB, { fastOnly: true }));
    expect(outcome).toBe("success");
    expect(asked.map(({ flags }) => flags)).toEqual([FAST_ZERO, 0, 0]);
    expect(asked.reduce((sum, { length }) => sum + length, 0)).toBe(9 * GIB);
  });
});

describe("flushing", () => {
  test("that has failed once fails for ever", async () => {
    const it = await open();
    expect((await serve(it, it.client.flush(), fail(28))).outcome).toMatchObject({ code: "no-space" });
    const { asked, outcome } = await serve(it, it.client.flush());
    expect(outcome).toMatchObject({ code: "no-space", message: expect.stringContaining("earlier") });
    expect(asked).toHaveLength(0);
  });

  test("that was lost with the link says nothing about the disk", async () => {
    const it = await open();
    const flushing = outcomeOf(it.client.flush());
    await it.server.request();
    it.server.stream.destroy();
    expect(await flushing).toBeInstanceOf(ConnectionLostError);
  });
});

describe("a read-only export", () => {
  test("is told by its flag, and takes no changes", async () => {
    const it = await open({ flags: ALL_FLAGS | READ_ONLY | ROTATIONAL });
    expect(it.client.capabilities).toMatchObject({ readOnly: true, rotational: true });
    for (const change of [
      () => it.client.write(0, pattern(0, 512)),
      () => it.client.writeZeroes(0, 512),
      () => it.client.discard(0, 512),
    ]) {
      expect(await outcomeOf(change())).toMatchObject({ code: "read-only" });
    }
    await settled();
    expect(it.server.unread).toHaveLength(0);
  });
});

describe("extents", () => {
  test("are what base:allocation says, neighbours of one kind joined", async () => {
    const it = await open();
    const pairs = [1024, 0, 1024, 0, 4096, 3, 512, 1, 512, 2, 512, 0xff00].map(u32);
    const { asked, outcome } = await serve(
      it,
      it.client.extents(512, 2 * MIB, 10).then((list) => {
        expect(list).toEqual([
          { length: 2048, hole: false, zero: false },
          { length: 4096, hole: true, zero: true },
          { length: 512, hole: true, zero: false },
          { length: 512, hole: false, zero: true },
          { length: 512, hole: false, zero: false },
        ]);
      }),
      ({ cookie }) => structured(cookie, { type: STATUS, data: cat(u32(1), ...pairs) }),
    );
    expect(outcome).toBe("success");
    expect(shapes(asked)).toEqual([[CMD.status, 0, 512, 2 * MIB]]);
  });

  test("are never more than wanted; one is asked for as one", async () => {
    const it = await open();
    const answer = ({ cookie, flags }: Request) => {
      const pairs = [512, 0, 512, 3, 512, 0, 512, 3].map(u32);
      return structured(cookie, {
        type: STATUS,
        data: cat(u32(1), ...(flags === REQ_ONE ? pairs.slice(0, 2) : pairs)),
      });
    };
    const three = it.client.extents(0, MIB, 3);
    expect((await serve(it, three, answer)).asked[0]?.flags).toBe(0);
    expect(await three).toHaveLength(3);
    const one = it.client.extents(0, MIB, 1);
    expect((await serve(it, one, answer)).asked[0]?.flags).toBe(REQ_ONE);
    expect(await one).toEqual([{ length: 512, hole: false, zero: false }]);
  });

  test("of more than 4 GiB are asked for in a length that fits", async () => {
    const it = await open();
    const answer = ({ cookie, length }: Request) =>
      structured(cookie, { type: STATUS, data: cat(u32(1), u32(length), u32(3)) });
    const asking = it.client.extents(0, 12 * GIB, 5);
    await serve(it, asking, answer);
    expect(await asking).toEqual([{ length: 2 ** 32 - 65_536, hole: true, zero: true }]);
  });

  test("with extended headers may be of any length, and longer than numbers go", async () => {
    const it = await open({ dialect: "extended" });
    const asking = it.client.extents(0, 12 * GIB, 5);
    await serve(it, asking, ({ cookie, length }) => {
      expect(length).toBe(12 * GIB);
      const data = cat(u32(1), u32(2), u64(10 * GIB), u64(3), u64(2n ** 64n - 1n), u64(0));
      return extended(cookie, 0, { type: STATUS_EXT, data });
    });
    expect(await asking).toEqual([
      { length: 10 * GIB, hole: true, zero: true },
      { length: 2 * GIB, hole: false, zero: false },
    ]);
  });

  test("of one context among several are asked for alone where the server can do that", async () => {
    const it = await scripted({
      handshake: {
        dialect: "extended",
        flags: ALL_FLAGS | 0x1000,
        contexts: ["base:allocation", "x-blockferry:presence"],
      },
      open: { metaContexts: ["x-blockferry:presence"] },
    });
    const asking = it.client.blockStatus("x-blockferry:presence", 4096, 8192);
    const { asked } = await serve(it, asking, ({ cookie, offset }) =>
      extended(cookie, offset, { type: STATUS_EXT, data: cat(u32(2), u32(1), u64(8192), u64(1)) }),
    );
    expect(await asking).toEqual([{ length: 8192, flags: 1 }]);
    expect(shapes(asked)).toEqual([[CMD.status, PAYLOAD_LEN, 4096, 12]]);
    expect(asked[0]?.payload).toEqual(cat(u64(8192), u32(2)));
  });
});
