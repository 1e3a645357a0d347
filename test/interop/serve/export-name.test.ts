/**
 * The oldest client there is, in raw bytes: EXPORT_NAME, 124 zeroes, simple replies, requests of any alignment and of
 * 50 MB, as the reference implementation's tester sends them. And requests that no client should send.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { CMD, ERR, OPT, option, request } from "../../support/nbd-wire.ts";
import { fileBytes, firstDifference, makeImage, pattern } from "../../support/patterns.ts";
import { dialRaw, type RawClient } from "../../support/raw-client.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { MiB } from "./layout.ts";

const SIZE = 64 * MiB;
const BIG = 50_000_000;
const SIMPLE_REPLY_BYTES = 16;
const folder = tempDir();
const image = folder.file("disk.img");
let server: ServeProcess;

beforeAll(async () => {
  makeImage(image, SIZE);
  server = await startServe({ image, socket: folder.file("s"), flags: ["-x", "disk"] });
});

afterAll(async () => {
  await server.kill();
  folder[Symbol.dispose]();
});

/** Opens the export without agreeing to anything; checks greeting, size, flags and the 124 zeroes. */
async function open(): Promise<RawClient> {
  const client = await dialRaw(server.socket);
  const greeting = await client.greet(1);
  expect(greeting.toString("latin1", 0, 16)).toBe("NBDMAGICIHAVEOPT");
  expect(greeting.readUInt16BE(16) & 1).toBe(1);
  client.send(option(OPT.EXPORT_NAME, "disk"));
  const info = await client.take(10);
  expect(Number(info.readBigUInt64BE())).toBe(SIZE);
  // HAS_FLAGS, FLUSH and FUA; not READ_ONLY; DF needs structured replies.
  expect(info.readUInt16BE(8) & 0b1000_1111).toBe(0b0000_1101);
  expect((await client.take(124)).equals(Buffer.alloc(124))).toBe(true);
  return client;
}

async function errorOf(client: RawClient, ...wanted: Parameters<RawClient["call"]>): Promise<number> {
  return (await client.call(...wanted)).error;
}

/** A READ, taken straight from the bytes that arrive. */
async function readBack(client: RawClient, offset: number, length: number): Promise<Buffer> {
  const cookie = 0xfeed_beef_0000_0001n;
  client.send(request({ command: CMD.READ, cookie, offset, length }, "simple"));
  const header = await client.take(SIMPLE_REPLY_BYTES);
  expect([header.readUInt32BE(), header.readUInt32BE(4)]).toEqual([0x6744_6698, 0]);
  expect(header.readBigUInt64BE(8)).toBe(cookie);
  return client.take(length);
}

test("a client that only knows EXPORT_NAME reads and writes at any alignment", async () => {
  const client = await open();
  for (const [offset, length] of [
    [1, 1],
    [511, 513],
    [4095, 8194],
    [SIZE - 7, 7],
  ] as const) {
    expect(firstDifference(await readBack(client, offset, length), pattern(offset, length))).toBeUndefined();
    const payload = pattern(offset, length, 2);
    expect(await errorOf(client, { command: CMD.WRITE, offset, payload })).toBe(0);
    expect(firstDifference(await readBack(client, offset, length), payload)).toBeUndefined();
    expect(firstDifference(fileBytes(image, offset, length), payload)).toBeUndefined();
  }
  expect(await errorOf(client, { command: CMD.FLUSH })).toBe(0);
  client.end();
});

test("one request of 50 MB reads, and one of 50 MB writes", async () => {
  const client = await open();
  const payload = pattern(333, BIG, 3);
  expect(await errorOf(client, { command: CMD.WRITE, offset: 333, payload })).toBe(0);
  expect(firstDifference(fileBytes(image, 333, BIG), payload)).toBeUndefined();
  expect(firstDifference(await readBack(client, 333, BIG), payload)).toBeUndefined();
  client.end();
});

test("refused requests are answered in step: the payload of a write past the end is swallowed", async () => {
  const client = await open();
  const payload = pattern(0, 100_000);
  expect(await errorOf(client, { command: CMD.WRITE, offset: SIZE - 5, payload })).toBe(ERR.ENOSPC);
  expect(await errorOf(client, { command: CMD.READ, offset: SIZE - 5, length: 6 })).toBe(ERR.EINVAL);
  const offset = 0xffff_ffff_ffff_ff00n;
  expect(await errorOf(client, { command: CMD.READ, offset, length: 512 })).toBe(ERR.EINVAL);
  expect(await errorOf(client, { command: CMD.WRITE, offset, payload })).toBe(ERR.ENOSPC);
  // Beyond the advertised maximum.
  expect(await errorOf(client, { command: CMD.READ, length: 64 * MiB + 1 })).toBe(ERR.EINVAL);
  for (const command of [8, 99, 0xffff]) {
    expect(await errorOf(client, { command, length: 512 }), `command ${command}`).toBe(ERR.EINVAL);
  }
  expect(await errorOf(client, { command: CMD.FLUSH, flags: 0x8000 })).toBe(ERR.EINVAL);
  expect(await readBack(client, SIZE - 64, 64)).toHaveLength(64);
  client.end();
});

test("twenty requests in one piece are all answered, whatever the order", async () => {
  const client = await open();
  const wanted = Array.from({ length: 20 }, (_, i) => ({ offset: 52 * MiB + i * 777, length: 777 }));
  const cookies = wanted.map((range) => client.begin({ command: CMD.READ, ...range }));
  for (const [i, { offset, length }] of wanted.entries()) {
    const { error, chunks } = await client.reply(cookies[i] as bigint);
    expect(error).toBe(0);
    expect(firstDifference(chunks[0]?.payload ?? Buffer.alloc(0), pattern(offset, length))).toBeUndefined();
  }
  client.end();
});

test("DISC ends the session after what was asked before is answered, without a reply of its own", async () => {
  const client = await open();
  const [offset, length] = [56 * MiB, 3 * MiB];
  client.send(request({ command: CMD.READ, offset, length }, "simple"), request({ command: CMD.DISC }, "simple"));
  const all = await client.takeAll();
  expect(all).toHaveLength(SIMPLE_REPLY_BYTES + length);
  expect(firstDifference(all.subarray(SIMPLE_REPLY_BYTES), pattern(offset, length))).toBeUndefined();
  client.end();
});

test("an unknown name, and a request without its magic number, close the connection and harm nobody else", async () => {
  const good = await open();
  const lost = await dialRaw(server.socket);
  await lost.greet(1);
  lost.send(option(OPT.EXPORT_NAME, "nope"));
  expect(await lost.takeAll()).toHaveLength(0);
  const rude = await open();
  rude.send(Buffer.alloc(28, 0x5a));
  expect(await rude.takeAll()).toHaveLength(0);
  expect((await readBack(good, 60 * MiB, 512)).equals(pattern(60 * MiB, 512))).toBe(true);
  for (const client of [good, lost, rude]) client.end();
});
