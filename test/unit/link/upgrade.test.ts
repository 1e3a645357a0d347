/** The option that turns an NBD session into a link, byte by byte. */
import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { ByteStream } from "../../../src/env/links.ts";
import { answerUpgrade, encodeUpgrade, linkPort } from "../../../src/link/upgrade.ts";
import { NbdServer } from "../../../src/nbd/server/server.ts";
import { byteByByte, type PairOptions, streamPair } from "../../support/stream-pair.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";
import { cut, HELLO, hello, Noting, rig, settle } from "./raw-peer.ts";

const ACK = 1;
const ERR_UNSUP = 2 ** 31 + 1;
const ERR_INVALID = 2 ** 31 + 3;
const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
const FLAGS = Buffer.from([0, 0, 0, 3]);

function option(data: Buffer): Buffer {
  const head = Buffer.alloc(16);
  head.write("IHAVEOPT", 0, "latin1");
  head.writeUInt32BE(0x626c6b66, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

function portOver(options: PairOptions = {}) {
  const { link } = rig();
  const { client, server: far } = streamPair(options);
  const device = new MemoryDevice({ sizeBytes: 512 });
  const server = new NbdServer({
    clock: new ManualClock(),
    exports: [{ name: "", device, readOnly: true }],
    upgrade: linkPort(() => link),
    log,
  });
  server.accept(far);
  const sink = new Noting();
  client.attach(sink);
  return { link, server, client, sink };
}

/** Types of the option replies behind the greeting, and what comes after them. */
function replies(bytes: Buffer, count: number): { types: number[]; rest: Buffer } {
  let rest = bytes.subarray(18);
  const types: number[] = [];
  for (let i = 0; i < count; i++) {
    types.push(rest.readUInt32BE(12));
    rest = rest.subarray(20 + rest.readUInt32BE(16));
  }
  return { types, rest };
}

test.each([
  ["all at once", {}],
  ["byte by byte", { serverCut: byteByByte }],
])("the session is a link right behind the option, %s", async (_how, pair) => {
  const { link, server, client, sink } = portOver(pair);
  client.write(Buffer.concat([FLAGS, option(Buffer.from([0, 1, 0, 0])), hello()]));
  for (let i = 0; i < 200; i++) await settle();
  const { types, rest } = replies(sink.bytes, 1);
  expect([types, cut(rest).frames[0]?.type, link.state]).toEqual([[ACK], HELLO, "connected"]);
  // The server has nothing more to do with it.
  expect(server.connections).toBe(0);
  await server.close();
  expect(link.state).toBe("connected");
});

test("another version, and data of another form, are refused, and the session goes on", async () => {
  const { link, client, sink } = portOver();
  const asked = [[0, 2, 0, 0], [0, 1, 0, 1], [0, 1, 0], [], [0, 1, 0, 0]];
  client.write(Buffer.concat([FLAGS, ...asked.map((data) => option(Buffer.from(data)))]));
  await settle();
  const { types, rest } = replies(sink.bytes, asked.length);
  expect(types).toEqual([ERR_UNSUP, ERR_INVALID, ERR_INVALID, ERR_INVALID, ACK]);
  expect([rest.length, link.state]).toEqual([0, "connecting"]);
});

test("what the client sends is what the server takes", () => {
  expect(answerUpgrade(encodeUpgrade(1))).toBe(ACK);
  expect(answerUpgrade(encodeUpgrade(0x1234))).toBe(ERR_UNSUP);
});

test("a stream that comes when the link is closed is told so, and one that comes too late to be used is not leaked", async () => {
  const { link } = rig({ role: "dialling" });
  await link.close();
  const { client, server } = streamPair();
  client.attach(new Noting());
  await expect(link.attach(server as ByteStream)).rejects.toMatchObject({ code: "busy" });
  await link.close();
  expect(server.closed).toBe(true);
});
