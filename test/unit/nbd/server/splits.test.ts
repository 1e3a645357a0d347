/**
 * A whole session, cut at every place: whatever the pieces are, the client gets the same bytes. Requests run side by
 * side, so replies to different requests may change places; those of one request may not, nor may one byte differ.
 */
import { describe, expect, test } from "vitest";
import {
  CMD,
  clientFlags,
  contextData,
  DIALECTS,
  FLAG,
  GREETING_BYTES,
  infoData,
  isLastReply,
  OPT,
  option,
  parseChunk,
  parseOptionReply,
  request,
  type WireDialect,
  type WireRequest,
} from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { rawClientOver } from "../../../support/raw-client.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { itSeeded } from "../../../support/seed.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";
import { byteByByte, type Cut, cutAt, seeded, streamPair, whole } from "../../../support/stream-pair.ts";

const SIZE = 96 * 1024;
const NAME = "disk";

const OPTIONS: readonly Buffer[] = [
  option(OPT.LIST),
  option(99, "what?"),
  option(OPT.INFO, infoData(NAME, [0, 1, 2, 3])),
  option(OPT.INFO, Buffer.alloc(40)),
  option(OPT.STRUCTURED_REPLY),
];

/** Reads and writes do not overlap, so that their order does not matter. */
const REQUESTS: readonly WireRequest[] = [
  { command: CMD.READ, offset: 40_000, length: 300 },
  { command: CMD.WRITE, offset: 0, payload: pattern(0, 200, 2) },
  { command: CMD.WRITE, offset: 300, payload: pattern(300, 100, 3), flags: FLAG.FUA },
  { command: CMD.WRITE, offset: SIZE, payload: Buffer.alloc(50, 0x25) },
  { command: CMD.READ, offset: SIZE, length: 1 },
  { command: CMD.WRITE, offset: 1000, payload: Buffer.alloc(0) },
  { command: CMD.WRITE_ZEROES, offset: 4096, length: 4096 },
  { command: CMD.FLUSH },
  { command: CMD.TRIM, offset: 8192, length: 4096, flags: FLAG.FUA },
  { command: CMD.CACHE, offset: 0, length: SIZE },
  { command: CMD.BLOCK_STATUS, offset: 20_000, length: 30_000 },
  { command: CMD.READ, offset: 50_001, length: 77, flags: FLAG.DF },
  { command: 77, offset: 1, length: 2 },
  { command: CMD.DISC },
];

function sessionBytes(dialect: WireDialect): Buffer {
  const chosen = OPTIONS.filter((_, index) => dialect !== "simple" || index < OPTIONS.length - 1);
  if (dialect === "extended") chosen.push(option(OPT.EXTENDED_HEADERS));
  const requests = REQUESTS.map((wanted, index) => {
    const wide = dialect === "extended" && wanted.payload !== undefined ? FLAG.PAYLOAD_LEN : 0;
    return request({ ...wanted, cookie: index + 1, flags: (wanted.flags ?? 0) | wide }, dialect);
  });
  return Buffer.concat([
    clientFlags(),
    ...chosen,
    option(OPT.SET_META_CONTEXT, contextData(NAME, ["base:allocation"])),
    option(OPT.GO, infoData(NAME)),
    ...requests,
  ]);
}

interface Session {
  readonly handshake: string;
  /** What came back under each cookie, in hex. */
  readonly replies: ReadonlyMap<bigint, string>;
  readonly contents: Buffer;
}

async function play(dialect: WireDialect, cut: Cut): Promise<Session> {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE), pageBytes: 4096 });
  const rig = new ServerRig({ exports: [{ name: NAME, device, readOnly: false, description: "about it" }] });
  const { client: near, server: far } = streamPair({ serverCut: cut });
  const client = rawClientOver(near);
  rig.server.accept(far);
  client.send(sessionBytes(dialect));
  const received = await client.takeAll();
  client.end();
  await settle(1);
  expect([rig.server.connections, rig.server.heldBytes, rig.logged("error")]).toEqual([0, 0, []]);
  return { ...dissect(received, dialect), contents: device.contents(0, SIZE) };
}

function dissect(received: Buffer, dialect: WireDialect): Omit<Session, "contents"> {
  let at = GREETING_BYTES;
  for (let over = false; !over; ) {
    const reply = parseOptionReply(received, at);
    if (reply === undefined) throw new Error("the handshake is incomplete");
    at = reply.end;
    over = reply.message.option === OPT.GO && isLastReply(reply.message);
  }
  const handshake = received.toString("hex", 0, at);
  const replies = new Map<bigint, string>();
  const readLength = (cookie: bigint) => {
    const asked = REQUESTS[Number(cookie) - 1];
    return asked?.command === CMD.READ ? Number(asked.length) : 0;
  };
  while (at < received.length) {
    const chunk = parseChunk(received, at, { dialect, readLength });
    if (chunk === undefined) throw new Error("the last reply is incomplete");
    const { cookie } = chunk.message;
    replies.set(cookie, (replies.get(cookie) ?? "") + received.toString("hex", at, chunk.end));
    at = chunk.end;
  }
  return { handshake, replies };
}

function expectSame(actual: Session, expected: Session, where: string): void {
  // Compared by hand first: an `expect` with a message for each of thousands of sessions costs more than the session.
  const same =
    actual.handshake === expected.handshake &&
    actual.replies.size === expected.replies.size &&
    [...expected.replies].every(([cookie, bytes]) => actual.replies.get(cookie) === bytes) &&
    actual.contents.equals(expected.contents);
  if (!same) expect({ where, ...actual }).toEqual({ where, ...expected });
}

for (const dialect of DIALECTS) {
  describe(`a session in the ${dialect} dialect`, () => {
    test("is answered in full", async () => {
      const session = await play(dialect, whole);
      // All but DISC.
      expect(session.replies.size).toBe(REQUESTS.length - 1);
      expect(session.contents.subarray(0, 200)).toEqual(pattern(0, 200, 2));
      expect(session.contents.subarray(300, 400)).toEqual(pattern(300, 100, 3));
      expect(session.contents.subarray(4096, 8192)).toEqual(Buffer.alloc(4096));
      expect(session.contents.subarray(12_288)).toEqual(pattern(12_288, SIZE - 12_288));
    });

    test("is the same when it is cut in two, wherever that is", async () => {
      const expected = await play(dialect, whole);
      const { length } = sessionBytes(dialect);
      for (let at = 1; at < length; at++) expectSame(await play(dialect, cutAt(at)), expected, `cut at ${at}`);
    });

    test("is the same byte by byte", async () => {
      expectSame(await play(dialect, byteByByte), await play(dialect, whole), "byte by byte");
    });

    itSeeded("is the same in pieces of any size", async (rng) => {
      const expected = await play(dialect, whole);
      for (let round = 0; round < 50; round++) expectSame(await play(dialect, seeded(rng)), expected, `round ${round}`);
    });
  });
}
