import { expect, test } from "vitest";
import {
  CMD,
  clientFlags,
  contextData,
  infoData,
  OPT,
  option,
  request,
  type WireDialect,
} from "../../support/nbd-wire.ts";
import { makeImage } from "../../support/patterns.ts";
import type { RawClient } from "../../support/raw-client.ts";
import { dialRaw } from "../../support/raw-client.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { beGoodClient, DISK_BYTES, SocketServer } from "./served-sockets.ts";

const CLIENTS = counts({ local: 250, ci: 5000 });
const AT_A_TIME = 12;

/** A session with long replies and long payloads, so that a break finds bytes on their way in both directions. */
function session(rng: Prng): Buffer {
  const dialect = rng.pick<WireDialect>(["simple", "structured", "extended"]);
  const choice = { simple: [], structured: [option(OPT.STRUCTURED_REPLY)], extended: [option(OPT.EXTENDED_HEADERS)] };
  const parts = [clientFlags(), option(OPT.LIST), ...choice[dialect]];
  parts.push(option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"])), option(OPT.GO, infoData("")));
  for (let count = rng.integer(1, 30); count > 0; count--) {
    const offset = rng.integer(0, 1024) * 512;
    const length = rng.pick([512, 4096, 65_536, 1_500_000]);
    const command = rng.pick([CMD.READ, CMD.READ, CMD.WRITE, CMD.FLUSH, CMD.BLOCK_STATUS, CMD.TRIM, CMD.WRITE_ZEROES]);
    if (command === CMD.FLUSH) parts.push(request({ command }, dialect));
    else if (command === CMD.WRITE) parts.push(request({ command, offset, payload: Buffer.alloc(length, 1) }, dialect));
    else parts.push(request({ command, offset, length }, dialect));
  }
  return Buffer.concat(parts);
}

/** Connects, says some of a session, takes some of the answer, and is gone. */
async function breakOff(dial: () => Promise<RawClient>, rng: Prng): Promise<void> {
  const bytes = session(rng);
  const said = bytes.subarray(0, rng.integer(0, bytes.length));
  const reading = rng.chance(0.5);
  const taken = rng.integer(0, 40_000);
  const [how, turns] = [rng.pick(["reset", "reset", "end"] as const), rng.integer(0, 3)];
  const client = await dial();
  if (!reading) client.pause();
  client.send(said);
  // It may be that so much never comes: then the end is what is waited for.
  if (reading && taken < client.bufferedBytes) await client.take(taken);
  for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
  client[how]();
  if (how === "end") {
    client.resume();
    client.reset();
  }
}

async function storm(dial: () => Promise<RawClient>, rng: Prng): Promise<void> {
  let left = CLIENTS;
  const one = async () => {
    while (left-- > 0) await breakOff(dial, rng);
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, one));
}

itSeeded(
  `${CLIENTS} clients that break off at any point over TCP leave a server that serves, and nothing else`,
  async (rng) => {
    await using served = await SocketServer.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    const dial = () => served.dial();
    for (let part = 0; part < 4; part++) {
      served.device.quick = part % 2 === 0;
      let left = Math.ceil(CLIENTS / 4);
      const one = async () => {
        while (left-- > 0) await breakOff(dial, rng);
      };
      await Promise.all(Array.from({ length: AT_A_TIME }, one));
      await beGoodClient(await served.dial());
    }
    await expect.poll(() => served.server.connections, { timeout: 8000 }).toBe(0);
    await expect.poll(() => served.server.heldBytes).toBe(0);
    expect(served.log.filter(({ level }) => level === "error")).toEqual([]);
  },
);

itSeeded(
  `${CLIENTS} clients that break off at any point on a unix socket do not harm blockferry serve`,
  async (rng) => {
    using dir = tempDir();
    makeImage(dir.file("disk.raw"), DISK_BYTES);
    await using serve = await startServe({ image: dir.file("disk.raw"), socket: dir.file("s") });
    const dial = () => dialRaw(serve.socket);
    await storm(dial, rng);
    await beGoodClient(await dial());
    expect(serve.output).not.toMatch(/internal error|"level":(50|"error")/);
    expect(await serve.stop()).toBe(0);
  },
);

test("a client that has gone while replies are on their way does not end the server with SIGPIPE", async () => {
  using dir = tempDir();
  makeImage(dir.file("disk.raw"), DISK_BYTES);
  await using serve = await startServe({ image: dir.file("disk.raw"), socket: dir.file("s") });
  for (let round = 0; round < 20; round++) {
    const client = await dialRaw(serve.socket);
    await client.go();
    client.pause();
    for (let i = 0; i < 20; i++) client.begin({ command: CMD.READ, length: 4_000_000 });
    client.begin({ command: CMD.FLUSH });
    client.reset();
  }
  await beGoodClient(await dialRaw(serve.socket));
  expect(await serve.stop()).toBe(0);
});
