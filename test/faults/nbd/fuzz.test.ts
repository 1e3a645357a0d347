/**
 * Random and mutated frames against the server, in memory: whatever a client sends, its connection ends in bounded time, nothing
 * is thrown, no payload memory stays taken, and a good client is served afterwards.
 *
 * A frame is one option or one request. In each session only the last one is cut, doubled or lies about its length, so that
 * the server meets all of those before it.
 */
import { describe, expect } from "vitest";
import { CMD, clientFlags, contextData, infoData, OPT, option, request, u32 } from "../../support/nbd-wire.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";
import { ServerRig, settle } from "../../support/server-rig.ts";
import { type PairedStream, seeded, streamPair, whole } from "../../support/stream-pair.ts";

const SIZE_BYTES = 1024 * 1024;
/** Small, so that a single lost grant is noticed: a READ of the whole device is only granted when nothing is held. */
const PAYLOAD_BYTES_MAX = SIZE_BYTES;
const FRAMES = counts({ local: 10_000, ci: 500_000 });
const SESSIONS_A_RIG = 20;
/** A session's end must be reached within so many turns of the event loop. */
const TURNS_MAX = 2000;

const LIMITS = { payloadBytesMax: PAYLOAD_BYTES_MAX, requestBytesMax: 4 * SIZE_BYTES, handshakesMax: 64 };
const ODD_NUMBERS: readonly bigint[] = [
  0n,
  1n,
  511n,
  4096n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
];

type Dialect = "simple" | "structured" | "extended";

/** A 64-bit number: mostly within the device, sometimes at an edge, sometimes absurd. */
function number64(rng: Prng, max: number): bigint {
  if (rng.chance(0.7)) return BigInt(rng.integer(0, max));
  if (rng.chance(0.5)) return BigInt(SIZE_BYTES) + BigInt(rng.integer(-2, 2));
  return rng.pick(ODD_NUMBERS);
}

function randomBytes(rng: Prng, max: number): Buffer {
  const bytes = Buffer.alloc(rng.integer(0, max));
  rng.fill(bytes);
  return bytes;
}

/** Flips, cuts out or doubles a few bytes. */
function mutated(rng: Prng, frame: Buffer): Buffer {
  const copy = Buffer.from(frame);
  if (copy.length === 0) return copy;
  const at = rng.integer(0, copy.length - 1);
  switch (rng.integer(0, 3)) {
    case 0:
      copy[at] = rng.integer(0, 255);
      return copy;
    case 1:
      return copy.subarray(0, at);
    case 2:
      return Buffer.concat([copy.subarray(0, at), copy]);
    default:
      return Buffer.concat([copy, randomBytes(rng, 40)]);
  }
}

function optionData(rng: Prng, type: number): Buffer {
  const name = rng.pick(["", "disk", "x", "\0", "é".repeat(rng.integer(1, 3000))]);
  if (type === OPT.INFO || type === OPT.GO) return infoData(name, [0, 1, 2, 3, 9].slice(0, rng.integer(0, 5)));
  if (type === OPT.LIST_META_CONTEXT || type === OPT.SET_META_CONTEXT) {
    return contextData(
      name,
      ["base:allocation", "base:", "qemu:", "x".repeat(rng.integer(0, 500))].slice(rng.integer(0, 3)),
    );
  }
  return rng.chance(0.8) ? Buffer.alloc(0) : randomBytes(rng, 100);
}

/** An option that may make no sense, but whose length is right. EXPORT_NAME, GO and ABORT would end the handshake. */
function optionFrame(rng: Prng): Buffer {
  const type = rng.chance(0.9) ? rng.pick([3, 5, 6, 8, 9, 10, 11]) : rng.integer(12, 300);
  return option(type, optionData(rng, type));
}

/** A request that may make no sense, but after which the next one is found. */
function requestFrame(rng: Prng, dialect: Dialect): Buffer {
  const command = rng.chance(0.95) ? rng.pick([0, 0, 1, 1, 3, 4, 5, 6, 7]) : rng.integer(8, 65_535);
  const flags = rng.chance(0.6) ? 0 : rng.integer(0, 127);
  const offset = number64(rng, SIZE_BYTES);
  const cookie = BigInt(rng.u32());
  if (command === CMD.WRITE) {
    const payload = randomBytes(rng, rng.chance(0.9) ? 5000 : 70_000);
    // QEMU leaves PAYLOAD_LEN out, others set it.
    return request({ command, flags: dialect === "extended" ? flags : flags & ~32, offset, cookie, payload }, dialect);
  }
  const length = dialect === "extended" ? number64(rng, 100_000) : number64(rng, 100_000) & 0xffff_ffffn;
  return request({ command, flags: flags & ~32, offset, length, cookie }, dialect);
}

/** Announces more, or less, than it carries. */
function lyingOption(rng: Prng): Buffer {
  const type = rng.integer(0, 12);
  return option(type, optionData(rng, type), rng.pick([0, 1, 4096, 8193, 2 ** 31, 2 ** 32 - 1]));
}

/** A session of frames after each of which the server goes on; the last one, or what follows it, is broken. */
function session(rng: Prng): { bytes: Buffer; frames: number } {
  const dialect = rng.pick(["simple", "structured", "extended"] as const);
  const frames: Buffer[] = [rng.chance(0.98) ? clientFlags(rng.integer(0, 3)) : u32(rng.u32())];
  const handshakeOnly = rng.chance(0.3);
  for (let left = rng.integer(0, handshakeOnly ? 45 : 5); left > 0; left--) frames.push(optionFrame(rng));
  if (handshakeOnly) frames.push(rng.chance(0.5) ? lyingOption(rng) : mutated(rng, optionFrame(rng)));
  else frames.push(...transmission(rng, dialect));
  return { bytes: Buffer.concat([...frames, randomBytes(rng, 100)]), frames: frames.length };
}

function transmission(rng: Prng, dialect: Dialect): Buffer[] {
  const frames: Buffer[] = [];
  if (dialect === "structured") frames.push(option(OPT.STRUCTURED_REPLY));
  if (dialect === "extended") frames.push(option(OPT.EXTENDED_HEADERS));
  if (rng.chance(0.5)) frames.push(option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"])));
  frames.push(option(OPT.GO, infoData("", [])));
  for (let left = rng.integer(1, 150); left > 0; left--) frames.push(requestFrame(rng, dialect));
  frames.push(mutated(rng, requestFrame(rng, dialect)));
  return frames;
}

/** A client that sends `bytes`, takes its replies, and waits for the end. */
class FuzzClient {
  readonly near: PairedStream;
  #ended = false;

  constructor(near: PairedStream) {
    this.near = near;
    near.attach({
      onBytes: () => {},
      onEnd: () => {
        this.#ended = true;
      },
      onClose: () => {
        this.#ended = true;
      },
      onDrain: () => {},
    });
  }

  get ended(): boolean {
    return this.#ended;
  }

  async run(bytes: Buffer): Promise<void> {
    this.near.write(bytes);
    this.near.end();
    for (let turn = 0; turn < TURNS_MAX && !this.#ended; turn++) await settle(1);
  }
}

async function serveGoodClient(rig: ServerRig, device: ScriptedDevice): Promise<void> {
  const { client, near } = await rig.open();
  const expected = Buffer.alloc(4096, 0x5a);
  expect((await client.call({ command: CMD.WRITE, offset: 8192, payload: expected })).error).toBe(0);
  expect((await client.call({ command: CMD.READ, offset: 8192, length: 4096 })).error).toBe(0);
  expect(device.contents(8192, 4096).equals(expected)).toBe(true);
  // Granted only when nobody holds memory any more.
  device.quick = false;
  const whole = client.call({ command: CMD.READ, offset: 0, length: SIZE_BYTES });
  expect((await whole).error).toBe(0);
  near.destroy();
  await settle();
}

describe("the server, given frames that make little sense,", () => {
  itSeeded(
    "ends every session in bounded time, keeps no memory, and serves the next client",
    async (rng) => {
      for (let frames = 0; frames < FRAMES; ) {
        const device = new ScriptedDevice({ sizeBytes: SIZE_BYTES });
        const rig = new ServerRig({ device, limits: LIMITS });
        for (let i = 0; i < SESSIONS_A_RIG; i++) {
          device.quick = rng.chance(0.5);
          const { client, server } = streamPair({ clientCut: whole, serverCut: rng.chance(0.3) ? seeded(rng) : whole });
          rig.server.accept(server);
          const fuzzer = new FuzzClient(client);
          const sent = session(rng);
          await fuzzer.run(sent.bytes);
          expect(fuzzer.ended, "the server must end the session once the client has").toBe(true);
          client.destroy();
          await settle(2);
          expect(rig.server.clients).toBe(0);
          frames += sent.frames;
        }
        expect(rig.logged("error")).toEqual([]);
        device.quick = true;
        await serveGoodClient(rig, device);
        // No timer may be left but the sweep's, which ends with the last connection.
        rig.clock.advance(20_000);
        expect(rig.clock.timers).toBe(0);
      }
    },
    600_000,
  );

  itSeeded("would be found out if it kept memory", async (rng) => {
    // The double: a device whose reads never end keeps what they hold.
    const device = new ScriptedDevice({ sizeBytes: SIZE_BYTES });
    const rig = new ServerRig({ device, limits: LIMITS });
    device.quick = false;
    const release = device.hold("read");
    const leaking = await rig.open();
    void leaking.client.call({ command: CMD.READ, offset: 0, length: rng.integer(4096, 65_536) }).catch(() => {});
    await settle();
    leaking.near.destroy();
    const good = await rig.open();
    let answered = false;
    void good.client.call({ command: CMD.READ, offset: 0, length: SIZE_BYTES }).then(
      () => {
        answered = true;
      },
      () => {},
    );
    await settle(50);
    expect(answered).toBe(false);
    release();
    await settle(50);
    expect(answered).toBe(true);
  });
});
