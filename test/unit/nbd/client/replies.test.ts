import { describe, expect, test } from "vitest";
import { BlockError } from "../../../../src/block/error.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded, type Prng } from "../../../support/seed.ts";
import { byteByByte, type Cut, cutAt, seeded, whole } from "../../../support/stream-pair.ts";
import { outcomeOf, type Scripted, scripted } from "./scripted-client.ts";
import {
  CMD,
  cat,
  dataChunk,
  doneChunk,
  ERROR_OFFSET,
  errorChunk,
  extended,
  holeChunk,
  type Request,
  STATUS,
  STATUS_EXT,
  simpleReply,
  structured,
  text,
  u16,
  u32,
  u64,
} from "./scripted-server.ts";

type Dialect = "simple" | "structured" | "extended";
const DIALECTS: readonly Dialect[] = ["simple", "structured", "extended"];

function open(dialect: Dialect, clientCut: Cut = whole): Promise<Scripted> {
  const contexts = ["base:allocation", "x-blockferry:presence"];
  return scripted({
    handshake: { dialect, contexts },
    open: { metaContexts: ["x-blockferry:presence"] },
    pair: { clientCut },
  });
}

function request({ server }: Scripted, dialect: Dialect): Promise<Request> {
  return server.request(dialect === "extended" ? "extended" : "compact");
}

/** A read of 1000 bytes at 5000, answered in the ways that a dialect allows; the last answer is an error. */
function readReplies(dialect: Dialect, { cookie }: Request): Buffer[] {
  const bytes = pattern(5000, 1000);
  if (dialect === "simple") return [simpleReply(cookie, 0, bytes), simpleReply(cookie, 5)];
  const chunk = (it: Parameters<typeof structured>[1]): Buffer =>
    dialect === "extended" ? extended(cookie, 5000, it) : structured(cookie, it);
  return [
    chunk(dataChunk(5000, bytes)),
    cat(chunk(dataChunk(5000, bytes, false)), chunk(doneChunk)),
    cat(
      chunk(dataChunk(5900, bytes.subarray(900), false)),
      chunk(dataChunk(5001, bytes.subarray(1, 900), false)),
      chunk(dataChunk(5000, bytes.subarray(0, 1))),
    ),
    cat(chunk(dataChunk(5000, bytes.subarray(0, 600), false)), chunk(errorChunk(5, "bad sector"))),
  ];
}

describe.each(DIALECTS)("a read in the %s dialect", (dialect) => {
  const answers = dialect === "simple" ? 1 : 3;

  test("arrives whole, whatever form the reply has and wherever it is cut", async () => {
    for (let form = 0; form < answers; form++) {
      let length = Infinity;
      for (let at = 0; at < length; at++) {
        // The handshake's bytes come first; the cut is counted from their end.
        const probe = await open(dialect);
        const before = probe.server.stream.deliveredBytes;
        const it = await open(dialect, at === 0 ? byteByByte : cutAt(before + at));
        const into = new Uint8Array(1000);
        const reading = it.client.read(5000, into);
        const reply = readReplies(dialect, await request(it, dialect))[form] as Buffer;
        length = Math.min(reply.length, 120);
        it.server.send(reply);
        await reading;
        expect(pattern(5000, 1000).equals(into)).toBe(true);
      }
    }
  });

  test("that fails is reported as failing, wherever the reply is cut", async () => {
    for (let at = 0; at < 90; at++) {
      const probe = await open(dialect);
      const it = await open(dialect, at === 0 ? byteByByte : cutAt(probe.server.stream.deliveredBytes + at));
      const reading = outcomeOf(it.client.read(5000, new Uint8Array(1000)));
      it.server.send(readReplies(dialect, await request(it, dialect)).at(-1) as Buffer);
      const error = (await reading) as BlockError;
      expect(error).toBeInstanceOf(BlockError);
      expect(error.code).toBe("io");
      if (dialect !== "simple") expect(error.message).toContain("bad sector");
      expect(it.client.state).toBe("open");
    }
  });

  test("asks with the dialect's header, for the bytes wanted and nothing else", async () => {
    const it = await open(dialect);
    void it.client.read(5000, new Uint8Array(1000));
    expect(await request(it, dialect)).toMatchObject({ command: CMD.read, flags: 0, offset: 5000, length: 1000 });
    expect(it.server.unread).toHaveLength(0);
  });
});

describe("holes", () => {
  test.each(["structured", "extended"] as const)("are filled with zeroes (%s)", async (dialect) => {
    const it = await open(dialect);
    const into = new Uint8Array(3000).fill(0x77);
    const reading = it.client.read(1000, into);
    const { cookie } = await request(it, dialect);
    const chunk = (one: Parameters<typeof structured>[1]): Buffer =>
      dialect === "extended" ? extended(cookie, 1000, one) : structured(cookie, one);
    it.server.send(
      chunk(holeChunk(3000, 1000, false)),
      chunk(dataChunk(2000, pattern(2000, 1000), false)),
      chunk(holeChunk(1000, 1000)),
    );
    await reading;
    expect(Buffer.concat([Buffer.alloc(1000), pattern(2000, 1000), Buffer.alloc(1000)]).equals(into)).toBe(true);
  });
});

describe("commands without data in their reply", () => {
  for (const dialect of DIALECTS) {
    test(`succeed and fail as the server says (${dialect})`, async () => {
      const it = await open(dialect);
      const commands: readonly (readonly [number, () => Promise<void>])[] = [
        [CMD.write, () => it.client.write(512, pattern(512, 512))],
        [CMD.flush, () => it.client.flush()],
        [CMD.trim, () => it.client.discard(512, 512)],
        [CMD.cache, () => it.client.cache(512, 512)],
        [CMD.zero, () => it.client.writeZeroes(512, 512)],
      ];
      for (const error of [0, 28]) {
        for (const [command, run] of commands.toReversed()) {
          const outcome = outcomeOf(run());
          const asked = await request(it, dialect);
          expect(asked.command).toBe(command);
          if (command === CMD.write) expect(pattern(512, 512).equals(asked.payload)).toBe(true);
          const { cookie, offset } = asked;
          const chunk = error === 0 ? doneChunk : errorChunk(error);
          if (dialect === "extended") it.server.send(extended(cookie, offset, chunk));
          else if (dialect === "structured") it.server.send(structured(cookie, chunk));
          else it.server.send(simpleReply(cookie, error));
          expect(await outcome).toMatchObject(error === 0 ? {} : { code: "no-space" });
          if (error === 0) expect(await outcome).toBe("success");
        }
      }
    });
  }

  test("may be answered by a simple reply though structured ones were agreed on", async () => {
    const it = await open("structured");
    for (const [error, outcome] of [
      [0, "success"],
      [1, { code: "permission" }],
    ] as const) {
      const writing = outcomeOf(it.client.write(0, pattern(0, 512)));
      it.server.send(simpleReply((await request(it, "structured")).cookie, error));
      const came = await writing;
      if (typeof outcome === "string") expect(came).toBe(outcome);
      else expect(came).toMatchObject(outcome);
    }
  });
});

describe("errors", () => {
  test("each number has its meaning; unknown ones count as invalid", async () => {
    const it = await open("simple");
    for (const [error, code] of [
      [1, "permission"],
      [5, "io"],
      [12, "no-memory"],
      [22, "invalid"],
      [28, "no-space"],
      [75, "too-big"],
      [95, "not-supported"],
      [9999, "invalid"],
      [0xffff_ffff, "invalid"],
    ] as const) {
      const writing = outcomeOf(it.client.write(0, pattern(0, 512)));
      it.server.send(simpleReply((await request(it, "simple")).cookie, error));
      expect(await writing).toMatchObject({ code });
    }
  });

  test("with an offset are told with it", async () => {
    const it = await open("structured");
    const reading = outcomeOf(it.client.read(4096, new Uint8Array(4096)));
    const { cookie } = await request(it, "structured");
    const message = "media\u0007error";
    it.server.send(
      structured(cookie, dataChunk(4096, pattern(4096, 4096), false)),
      structured(cookie, { type: ERROR_OFFSET, data: cat(u32(5), u16(11), text(message), u64(6000)), done: false }),
      structured(cookie, { type: ERROR_OFFSET, data: cat(u32(5), u16(0), u64(7000)), done: false }),
      structured(cookie, doneChunk),
    );
    const error = (await reading) as BlockError;
    expect(error.code).toBe("io");
    expect(error.message).toContain("at offset 6000: media\\u{7}error");
  });

  test("of a kind that we do not know are errors all the same", async () => {
    const it = await open("structured");
    const reading = outcomeOf(it.client.read(4096, new Uint8Array(4096)));
    const { cookie } = await request(it, "structured");
    it.server.send(structured(cookie, { type: 0xbeef, data: cat(u32(12), u16(2), text("hm"), u64(1), u64(2)) }));
    expect(await reading).toMatchObject({ code: "no-memory", message: expect.stringContaining("hm") });
    expect(it.client.state).toBe("open");
  });

  test("unknown chunk flags are ignored", async () => {
    const it = await open("structured");
    const flushing = it.client.flush();
    it.server.send(structured((await request(it, "structured")).cookie, { type: 0, flags: 0xffff }));
    await flushing;
  });
});

describe("block status", () => {
  test.each(["structured", "extended"] as const)(
    "of the context asked for, whatever comes besides (%s)",
    async (dialect) => {
      const it = await open(dialect);
      const asking = it.client.blockStatus("x-blockferry:presence", 4096, 8192);
      const asked = await request(it, dialect);
      expect(asked).toMatchObject({ command: CMD.status, offset: 4096, length: 8192, flags: 0 });
      const status = (id: number, ...pairs: [number, number][]): Buffer =>
        dialect === "extended"
          ? extended(asked.cookie, 4096, {
              type: STATUS_EXT,
              done: false,
              data: cat(u32(id), u32(pairs.length), ...pairs.flatMap(([length, flags]) => [u64(length), u64(flags)])),
            })
          : structured(asked.cookie, {
              type: STATUS,
              done: false,
              data: cat(u32(id), ...pairs.flatMap(([length, flags]) => [u32(length), u32(flags)])),
            });
      const done =
        dialect === "extended" ? extended(asked.cookie, 4096, doneChunk) : structured(asked.cookie, doneChunk);
      it.server.send(status(2, [4096, 1], [1024, 2], [1_000_000, 3]), status(1, [65_536, 3]), done);
      expect(await asking).toEqual([
        { length: 4096, flags: 1 },
        { length: 1024, flags: 2 },
        { length: 3072, flags: 3 },
      ]);
    },
  );

  test("extents beyond the range asked for are left out", async () => {
    const it = await open("structured");
    const asking = it.client.blockStatus("base:allocation", 0, 4096);
    const { cookie } = await request(it, "structured");
    const both = [1, 2].map((id) =>
      structured(cookie, { type: STATUS, done: false, data: cat(u32(id), u32(4096), u32(0), u32(4096), u32(1)) }),
    );
    it.server.send(...both, structured(cookie, doneChunk));
    expect(await asking).toEqual([{ length: 4096, flags: 0 }]);
  });

  test("that fails fails, also after chunks that looked well", async () => {
    const it = await open("structured");
    const asking = outcomeOf(it.client.blockStatus("base:allocation", 0, 4096));
    const { cookie } = await request(it, "structured");
    it.server.send(
      structured(cookie, { type: STATUS, done: false, data: cat(u32(1), u32(4096), u32(0)) }),
      structured(cookie, errorChunk(5)),
    );
    expect(await asking).toMatchObject({ code: "io" });
    const again = outcomeOf(it.client.blockStatus("base:allocation", 0, 4096));
    it.server.send(simpleReply((await request(it, "structured")).cookie, 12));
    expect(await again).toMatchObject({ code: "no-memory" });
  });
});

describe("replies of several requests", () => {
  itSeeded("may come in any order, in chunks that interleave, cut anywhere", async (rng) => {
    for (const dialect of ["structured", "extended"] as const) {
      const it = await open(dialect, seeded(rng));
      const buffers = Array.from({ length: 32 }, () => new Uint8Array(rng.integer(1, 5000)));
      const offsets = buffers.map(() => rng.integer(0, 1_000_000));
      const reading = Promise.all(buffers.map((into, index) => it.client.read(offsets[index] as number, into)));
      const queues: Buffer[][] = [];
      for (const _ of buffers) queues.push(scatter(rng, dialect, await request(it, dialect)));
      while (queues.some((queue) => queue.length > 0)) {
        const chunk = rng.pick(queues.filter((queue) => queue.length > 0)).shift();
        if (chunk !== undefined) it.server.send(chunk);
      }
      await reading;
      for (const [index, into] of buffers.entries()) {
        expect(pattern(offsets[index] as number, into.length).equals(into)).toBe(true);
      }
    }
  });

  itSeeded("in the simple dialect may come in any order", async (rng) => {
    const it = await open("simple", seeded(rng));
    const buffers = Array.from({ length: 32 }, () => new Uint8Array(rng.integer(1, 5000)));
    const reading = Promise.all(buffers.map((into, index) => it.client.read(index * 7001, into)));
    const asked: Request[] = [];
    for (const _ of buffers) asked.push(await request(it, "simple"));
    for (const { cookie, offset, length } of rng.shuffle(asked)) {
      it.server.send(simpleReply(cookie, 0, pattern(offset, length)));
    }
    await reading;
    for (const [index, into] of buffers.entries()) {
      expect(pattern(index * 7001, into.length).equals(into)).toBe(true);
    }
  });
});

/** A read's reply in data chunks of random length and order. */
function scatter(rng: Prng, dialect: "structured" | "extended", { cookie, offset, length }: Request): Buffer[] {
  const pieces: [number, number][] = [];
  for (let at = 0; at < length; ) {
    const count = Math.min(rng.integer(1, 2000), length - at);
    pieces.push([offset + at, count]);
    at += count;
  }
  const chunks = rng.shuffle(pieces).map(([at, count]) => dataChunk(at, pattern(at, count), false));
  return [...chunks, doneChunk].map((chunk) =>
    dialect === "extended" ? extended(cookie, offset, chunk) : structured(cookie, chunk),
  );
}
