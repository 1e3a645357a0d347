/**
 * Servers that break the protocol, one rule at a time. Each time nothing may be reported as success, the connection
 * ends, and whatever else was pending fails as lost. (The class of CVE-2022-0485.)
 */
import { expect, test } from "vitest";
import type { ByteSink } from "../../../../src/env/links.ts";
import { openNbd } from "../../../../src/nbd/client/connect.ts";
import { ConnectionLostError } from "../../../../src/nbd/client/errors.ts";
import { NbdProtocolError } from "../../../../src/nbd/error.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded } from "../../../support/seed.ts";
import { seeded, streamPair } from "../../../support/stream-pair.ts";
import { ManualClock } from "./manual-clock.ts";
import { outcomeOf, scripted, settled } from "./scripted-client.ts";
import {
  type Chunk,
  cat,
  dataChunk,
  doneChunk,
  ERROR,
  ERROR_OFFSET,
  errorChunk,
  extended,
  holeChunk,
  type Request,
  ScriptedServer,
  STATUS,
  STATUS_EXT,
  simpleReply,
  structured,
  text,
  u16,
  u32,
  u64,
} from "./scripted-server.ts";

const AT = 8192;
const LENGTH = 4096;
const BYTES = pattern(AT, LENGTH);
const garbage = (bytes: number): Buffer => Buffer.alloc(bytes, 0x5a);

type Victim = "read" | "write" | "flush" | "status" | "one-status";
type Reply = (request: Request) => Buffer;

const chunks =
  (...list: Chunk[]): Reply =>
  ({ cookie }) =>
    cat(...list.map((chunk) => structured(cookie, chunk)));
const extendedChunks =
  (...list: Chunk[]): Reply =>
  ({ cookie, offset }) =>
    cat(...list.map((chunk) => extended(cookie, offset, chunk)));
const status = (id: number, ...numbers: number[]): Chunk => ({ type: STATUS, data: cat(u32(id), ...numbers.map(u32)) });
const statusExt = (id: number, count: number, ...numbers: number[]): Chunk => ({
  type: STATUS_EXT,
  data: cat(u32(id), u32(count), ...numbers.map(u64)),
});
const notDone = (chunk: Chunk): Chunk => ({ ...chunk, done: false });
const otherCookie = (cookie: Buffer, byte: number): Buffer => {
  const copy = Buffer.from(cookie);
  copy[byte] = (copy[byte] as number) ^ 1;
  return copy;
};

const STRUCTURED: Record<string, readonly [Victim, Reply]> = {
  "a wrong magic": ["read", ({ cookie }) => cat(u32(0x668e33ee), structured(cookie, dataChunk(AT, BYTES)).subarray(4))],
  "a request's magic": ["read", ({ cookie }) => cat(u32(0x25609513), u32(0), cookie, u32(0))],
  "an extended reply that was not agreed on": ["flush", ({ cookie }) => extended(cookie, 0, doneChunk)],
  "an unknown cookie": ["read", ({ cookie }) => structured(otherCookie(cookie, 0), dataChunk(AT, BYTES))],
  "a cookie of a free slot": ["read", ({ cookie }) => structured(otherCookie(cookie, 7), dataChunk(AT, BYTES))],
  "a cookie of no slot": ["read", ({ cookie }) => structured(otherCookie(cookie, 4), dataChunk(AT, BYTES))],
  "a simple reply to a read": ["read", ({ cookie }) => simpleReply(cookie, 0, BYTES)],
  "a simple error to a read": ["read", ({ cookie }) => simpleReply(cookie, 5)],
  "a read without data": ["read", chunks(doneChunk)],
  "a read with a missing byte at the end": ["read", chunks(dataChunk(AT, BYTES.subarray(1)))],
  "a read with a missing byte at the start": ["read", chunks(dataChunk(AT + 1, BYTES.subarray(1)))],
  "a read with a gap": [
    "read",
    chunks(dataChunk(AT, BYTES.subarray(0, 2000), false), dataChunk(AT + 2001, BYTES.subarray(2001))),
  ],
  "a read done before its last chunk": [
    "read",
    chunks(dataChunk(AT, BYTES.subarray(0, 2000)), dataChunk(AT + 2000, BYTES.subarray(2000))),
  ],
  "data before the range": ["read", chunks(dataChunk(AT - 1, BYTES))],
  "data past the range": ["read", chunks(dataChunk(AT + 1, BYTES))],
  "data longer than the range": ["read", chunks(dataChunk(AT, cat(BYTES, garbage(1))))],
  "data of another offset altogether": ["read", chunks({ type: 1, data: cat(u64(2n ** 64n - 4096n), BYTES) })],
  "data at an offset above 2^53": ["read", chunks({ type: 1, data: cat(u64(2n ** 53n + BigInt(AT)), BYTES) })],
  "data that comes twice": ["read", chunks(dataChunk(AT, BYTES, false), dataChunk(AT, BYTES))],
  "data that overlaps by one byte": [
    "read",
    chunks(dataChunk(AT, BYTES.subarray(0, 2001), false), dataChunk(AT + 2000, BYTES.subarray(2000))),
  ],
  "a hole over data": ["read", chunks(dataChunk(AT, BYTES.subarray(0, 2000), false), holeChunk(AT + 1999, 2097))],
  "data over a hole": ["read", chunks(holeChunk(AT, LENGTH, false), dataChunk(AT + 100, BYTES.subarray(100, 200)))],
  "a hole past the range": ["read", chunks(holeChunk(AT, LENGTH + 1))],
  "a hole of no bytes": ["read", chunks(holeChunk(AT, 0, false), dataChunk(AT, BYTES))],
  "a hole chunk of a wrong length": ["read", chunks({ type: 2, data: cat(u64(AT), u32(LENGTH), u32(0)) })],
  "a data chunk without data": ["read", chunks(dataChunk(AT, Buffer.alloc(0), false), dataChunk(AT, BYTES))],
  "a data chunk without an offset": ["read", chunks({ type: 1, data: garbage(7) })],
  "a data chunk of 4 GiB": ["read", chunks({ type: 1, data: cat(u64(AT), BYTES), length: 0xffff_ffff })],
  "an empty chunk with a payload": ["flush", chunks({ type: 0, data: garbage(4) })],
  "an empty chunk that is not the last": ["flush", chunks({ type: 0, done: false })],
  "an unknown chunk type": ["read", chunks({ type: 3, data: garbage(8) })],
  "a chunk type of the future": ["flush", chunks({ type: 0x7fff })],
  "data for a write": ["write", chunks(dataChunk(AT, BYTES))],
  "data for a flush": ["flush", chunks(dataChunk(0, BYTES))],
  "a hole for a write": ["write", chunks(holeChunk(AT, LENGTH))],
  "data for a block status": ["status", chunks(dataChunk(AT, BYTES))],
  "block status for a read": ["read", chunks(status(1, LENGTH, 0))],
  "block status for a flush": ["flush", chunks(status(1, LENGTH, 0))],
  "an error that is none": ["read", chunks(errorChunk(0))],
  "an error chunk too short for one": ["read", chunks({ type: ERROR, data: cat(u32(5), Buffer.of(0)) })],
  "an error whose text is longer than its chunk": [
    "read",
    chunks({ type: ERROR, data: cat(u32(5), u16(9), text("short")) }),
  ],
  "an error chunk of megabytes": ["read", chunks({ type: ERROR, data: cat(u32(5), u16(0)), length: 1 << 21 })],
  "an error text of more than 4096 bytes": ["read", chunks(errorChunk(5, "x".repeat(4097)))],
  "an error without its offset": ["read", chunks({ type: ERROR_OFFSET, data: cat(u32(5), u16(0)) })],
  "an error whose text runs into its offset": [
    "read",
    chunks({ type: ERROR_OFFSET, data: cat(u32(5), u16(1), u64(AT)) }),
  ],
  "an error at an offset outside of the read": [
    "read",
    chunks({ type: ERROR_OFFSET, data: cat(u32(5), u16(0), u64(AT - 1)) }),
  ],
  "an error at an offset past a write": [
    "write",
    chunks({ type: ERROR_OFFSET, data: cat(u32(5), u16(0), u64(AT + LENGTH)) }),
  ],
  "errors without end": ["read", chunks(...Array.from({ length: 1025 }, () => errorChunk(5, "", false)))],
  "a simple success to a block status": ["status", ({ cookie }) => simpleReply(cookie)],
  "a block status without status": ["status", chunks(doneChunk)],
  "block status of one context of two": ["status", chunks(status(1, LENGTH, 0))],
  "block status of a context twice": ["status", chunks(notDone(status(1, LENGTH, 0)), status(1, LENGTH, 0))],
  "block status of an unknown context": ["status", chunks(notDone(status(1, LENGTH, 0)), status(7, LENGTH, 0))],
  "block status without an extent": ["status", chunks(status(1))],
  "block status of half an extent": ["status", chunks(status(1, LENGTH, 0, LENGTH))],
  "block status without even a context": ["status", chunks({ type: STATUS, data: u16(0) })],
  "an extent of no bytes": ["status", chunks(status(1, 0, 0))],
  "a million extents and one": ["status", chunks({ type: STATUS, data: u32(1), length: 4 + 8 * ((1 << 20) + 1) })],
  "extended block status in the structured dialect": ["status", chunks(statusExt(1, 1, LENGTH, 0))],
  "two extents where one was asked for": ["one-status", chunks(status(1, 512, 0, 512, 1))],
  "an extent longer than asked for where one was": ["one-status", chunks(status(1, LENGTH + 1, 0))],
};

const SIMPLE: Record<string, readonly [Victim, Reply]> = {
  "a structured reply that was not agreed on": ["read", chunks(dataChunk(AT, BYTES))],
  "a structured error that was not agreed on": ["write", chunks(errorChunk(5))],
  "an unknown cookie": ["read", ({ cookie }) => simpleReply(otherCookie(cookie, 3), 0, BYTES)],
  "a wrong magic": ["write", ({ cookie }) => cat(u32(0x67446699), u32(0), cookie)],
  "a second reply": ["write", ({ cookie }) => cat(simpleReply(cookie, 5), simpleReply(cookie, 0))],
};

const EXTENDED: Record<string, readonly [Victim, Reply]> = {
  "a simple reply": ["write", ({ cookie }) => simpleReply(cookie)],
  "a structured reply": ["flush", chunks(doneChunk)],
  "an offset that is not the request's": ["read", ({ cookie }) => extended(cookie, AT + 1, dataChunk(AT, BYTES))],
  "an offset for a flush": ["flush", ({ cookie }) => extended(cookie, 1, doneChunk)],
  "a payload of more than 2^53 bytes": [
    "read",
    ({ cookie }) => cat(u32(0x6e8a278c), u16(1), u16(1), cookie, u64(AT), u64(2n ** 64n - 1n), u64(AT), BYTES),
  ],
  "an endless error chunk": [
    "read",
    ({ cookie }) => cat(u32(0x6e8a278c), u16(1), u16(ERROR), cookie, u64(AT), u64(2n ** 63n)),
  ],
  "endless block status": [
    "status",
    ({ cookie }) => cat(u32(0x6e8a278c), u16(1), u16(STATUS_EXT), cookie, u64(AT), u64(2n ** 64n - 8n)),
  ],
  "structured block status": ["status", extendedChunks(status(1, LENGTH, 0))],
  "block status that miscounts": ["status", extendedChunks(statusExt(1, 2, LENGTH, 0))],
  "an extent of no bytes": ["status", extendedChunks(statusExt(1, 1, 0, 0))],
  "a read without data": ["read", extendedChunks(doneChunk)],
  "data that comes twice": ["read", extendedChunks(dataChunk(AT, BYTES, false), dataChunk(AT, BYTES))],
};

const ALL = [
  ...Object.entries(SIMPLE).map((entry) => ["simple", ...entry] as const),
  ...Object.entries(STRUCTURED).map((entry) => ["structured", ...entry] as const),
  ...Object.entries(EXTENDED).map((entry) => ["extended", ...entry] as const),
];

for (const [dialect, name, [victim, reply]] of ALL) {
  itSeeded(`${dialect}: ${name}`, async (rng) => {
    const contexts = victim === "one-status" ? ["base:allocation"] : ["base:allocation", "x-blockferry:presence"];
    const { client, server } = await scripted({
      handshake: { dialect, contexts },
      open: { metaContexts: ["x-blockferry:presence"] },
      pair: { clientCut: seeded(rng) },
    });
    const into = new Uint8Array(LENGTH);
    const outcome = outcomeOf(
      {
        read: () => client.read(AT, into),
        write: () => client.write(AT, BYTES),
        flush: () => client.flush(),
        status: () => client.blockStatus("base:allocation", AT, LENGTH),
        "one-status": () => client.blockStatus("base:allocation", AT, LENGTH, { reqOne: true }),
      }[victim](),
    );
    const bystander = outcomeOf(client.read(0, new Uint8Array(512)));
    const header = dialect === "extended" ? "extended" : "compact";
    const request = await server.request(header);
    await server.request(header);
    const lost: ConnectionLostError[] = [];
    client.onLost((error) => lost.push(error));
    server.send(reply(request));
    // What a confused client could take for answers.
    if (!server.over) server.send(garbage(8192));

    for (const error of [await outcome, await bystander]) {
      expect(error).not.toBe("success");
      expect(error).toMatchObject({ name: "BlockError" });
    }
    expect(await bystander).toBeInstanceOf(ConnectionLostError);
    expect((await bystander) as ConnectionLostError).toMatchObject({ code: "io", cause: expect.any(NbdProtocolError) });
    expect(lost).toHaveLength(1);
    expect(client.state).toBe("dead");
    await settled();
    expect(server.stream.closed).toBe(true);
    expect(await outcomeOf(client.write(0, BYTES))).toBeInstanceOf(ConnectionLostError);
    await client.close();
  });
}

test("a success for a write whose data was not all sent is a violation", async () => {
  const { client, server, stream } = await scripted({ handshake: { sizeBytes: 1 << 24 } });
  stream.stall();
  const writing = outcomeOf(client.write(0, Buffer.alloc(8 << 20, 0x41)));
  await settled();
  // The server guesses the cookie: the first use of the first slot.
  server.send(simpleReply(cat(u32(1), u32(0))));
  expect(await writing).toBeInstanceOf(ConnectionLostError);
});

test("a reply to a request that has not been sent finds nobody", async () => {
  const { client, server } = await scripted();
  server.send(simpleReply(cat(u32(1), u32(0))));
  await settled();
  expect(client.state).toBe("dead");
});

test("a reply that comes twice, to a slot that is used again, finds nobody", async () => {
  const { client, server } = await scripted({ open: { inFlightMax: 1 } });
  const first = client.flush();
  const old = await server.request();
  server.send(simpleReply(old.cookie));
  await first;
  const second = outcomeOf(client.flush());
  await server.request();
  server.send(simpleReply(old.cookie));
  expect(await second).toBeInstanceOf(ConnectionLostError);
});

test("a second reply finds nobody either while the stream still holds the first one's data", async () => {
  const { client, server, stream } = await scripted({ handshake: { sizeBytes: 1 << 24 } });
  const held: (() => void)[] = [];
  const write = stream.write.bind(stream);
  stream.write = (bytes, release) => write(bytes, () => void held.push(release ?? (() => {})));
  const writing = outcomeOf(client.write(0, Buffer.alloc(1 << 20, 0x41)));
  const { cookie } = await server.request();
  server.send(structured(cookie, errorChunk(28)), structured(cookie, doneChunk));
  await settled();
  expect(client.state).toBe("dead");
  for (const release of held) release();
  expect(await writing).toMatchObject({ code: "no-space" });
});

test("bytes that come after the link was given up touch no buffer any more", async () => {
  const pair = streamPair();
  let sink: ByteSink | undefined;
  const attach = pair.client.attach.bind(pair.client);
  pair.client.attach = (given) => {
    sink = given;
    attach(given);
  };
  const server = new ScriptedServer(pair.server);
  const opening = openNbd(pair.client, new ManualClock(), { exportName: "disk" });
  await server.handshake();
  const client = await opening;
  const into = Buffer.alloc(LENGTH);
  const reading = outcomeOf(client.read(AT, into));
  const reply = structured((await server.request()).cookie, dataChunk(AT, BYTES));
  server.send(reply.subarray(0, 1000));
  await settled();
  client.drop("enough");
  expect(await reading).toBeInstanceOf(ConnectionLostError);
  into.fill(0);
  sink?.onBytes(reply.subarray(1000));
  expect(into.equals(Buffer.alloc(LENGTH))).toBe(true);
});
