/** Peers that break the rules: their connection ends, channels and link stay sound, and nothing grows. */
import { describe, expect, test } from "vitest";
import { LinkProtocolError } from "../../../src/link/errors.ts";
import { itSeeded } from "../../support/seed.ts";
import {
  CLOSE,
  CREDIT,
  close,
  connected,
  credit,
  DATA,
  frame,
  HELLO,
  header,
  hello,
  Noting,
  OPEN,
  open,
  PING,
  PONG,
  RawPeer,
  RESET,
  reset,
  rig,
  settle,
} from "./raw-peer.ts";

const MIB = 1024 * 1024;

/** Bytes that must end the connection of a peer that has opened channel 1 and been granted its window. */
const violations: Record<string, Buffer | Buffer[]> = {
  "a frame of an unknown type": frame(77, 0),
  "a frame with unknown flags": frame(DATA, 1, Buffer.from("x"), 4),
  "a data frame of more than 128 KiB": header(DATA, 1, 128 * 1024 + 1),
  "a data frame of 4 GiB": header(DATA, 1, 0xffff_ffff),
  "an empty data frame": frame(DATA, 1),
  "an OPEN with a label that is too long": header(OPEN, 3, 6 + 129),
  "an OPEN whose label has another length": frame(OPEN, 3, Buffer.from([0, 0, 0, 9, 1, 5, 65])),
  "an OPEN with a label that is not UTF-8": frame(OPEN, 3, Buffer.from([0, 0, 0, 9, 1, 1, 0xff])),
  "an OPEN of a kind that does not exist": open(3, 9, { kind: 4 }),
  "an OPEN on channel 0": frame(OPEN, 0, Buffer.alloc(6)),
  "an OPEN of a channel that is ours to open": open(2, 9),
  "an OPEN of a channel that is open": open(1, 9),
  "an OPEN whose serial went back": open(3, 1),
  "data on a channel that is not open": frame(DATA, 9, Buffer.from("x")),
  "credit on a channel that is not open": credit(9, 0, 10),
  "the end of a channel that is not open": close(9, 0),
  "credit beyond what was sent": credit(1, 1, 65_536),
  "credit of more than 2^53 bytes": frame(CREDIT, 1, Buffer.alloc(12, 0xff)),
  "a window without bounds": credit(1, 0, 0xffff_ffff),
  "a credit of another length": frame(CREDIT, 1, Buffer.alloc(13)),
  "an end that does not fit what came": close(1, 5),
  "data after the end": [close(1, 0), frame(DATA, 1, Buffer.from("x"))],
  "a second end": [close(1, 0), close(1, 0)],
  "a second hello": hello(),
  "a hello that is no hello": hello({ magic: 1 }),
  "a ping on a channel": frame(PING, 1, Buffer.alloc(8)),
  "a long ping": frame(PING, 0, Buffer.alloc(9)),
  "a close of the link with a payload": frame(CLOSE, 0, Buffer.alloc(8)),
  "a reset whose text is too long": header(RESET, 1, 8 + 257),
};

describe("a connection ends at once when the peer sends", () => {
  for (const [what, bytes] of Object.entries(violations)) {
    test(what, async () => {
      const { peer, link, states, channels } = await connected();
      peer.send(open(1, 5), ...[bytes].flat(), open(7, 50));
      await settle();
      expect(peer.closed).toBe(true);
      expect(states).toEqual(["connected", "disconnected"]);
      expect(link.lastError).toBeInstanceOf(LinkProtocolError);
      // What was open waits for a better connection, and nothing behind the violation was looked at.
      expect(channels.map(({ id, closed }) => [id, closed])).toEqual([[1, false]]);
    });
  }

  test("more data than the window has room for, from a reader that does not read", async () => {
    const { peer, link, channels } = await connected({
      limits: { windowBytes: { message: 1, demand: 1000, tunnel: 1, background: 1 } },
    });
    peer.send(open(1, 1));
    await settle();
    peer.send(frame(DATA, 1, Buffer.alloc(1000)));
    await settle();
    expect(link.state).toBe("connected");
    peer.send(frame(DATA, 1, Buffer.alloc(1)));
    await settle();
    expect(link.lastError?.message).toContain("more than the 1000 bytes");
    expect(channels[0]?.closed).toBe(false);
  });

  test("anything but a hello first", async () => {
    for (const first of [frame(PING, 0, Buffer.alloc(8)), open(1, 1), frame(DATA, 1, Buffer.from("x"))]) {
      const { link } = rig();
      const peer = new RawPeer(link);
      peer.send(first, hello());
      await settle();
      expect([peer.closed, link.state]).toEqual([true, "connecting"]);
    }
  });
});

describe("a peer", () => {
  test("that opens channels without end gets a limited number, and memory stays bounded", async () => {
    const { peer, link, channels } = await connected({ limits: { channelsMax: 20 } });
    for (let id = 1, serial = 1; id < 256; id += 2, serial++) peer.send(open(id, serial, { kind: 3 }));
    const refused = (await peer.frames()).filter(({ type }) => type === RESET);
    expect([channels.length, refused.length, link.state]).toEqual([20, 108, "connected"]);
    expect(link.status().memoryBytes).toBeLessThanOrEqual(128 * MIB);
    // Until it has answered, what it sends on a refused channel means nothing; afterwards it is a violation.
    peer.send(credit(255, 0, 1000), reset(255, 128, { flags: 1 }));
    await settle();
    expect(link.state).toBe("connected");
    peer.send(credit(255, 0, 1000));
    await settle();
    expect(link.state).toBe("disconnected");
  });

  test("that sends pings and reads nothing is answered once, when it reads", async () => {
    const { peer } = await connected();
    peer.stream.pause();
    const pings = Array.from({ length: 100_000 }, (_, i) => frame(PING, 0, Buffer.from(String(i).padStart(8))));
    peer.stream.write(Buffer.concat(pings));
    await settle();
    expect(peer.far.pendingBytes).toBeLessThan(MIB);
    peer.stream.resume();
    const pongs = (await peer.frames()).filter(({ type }) => type === PONG);
    expect(pongs.length).toBeLessThan(100);
    expect(pongs.at(-1)?.payload.toString()).toBe("   99999");
  });

  test("that resets what it does not have is answered, and answers are not", async () => {
    const { peer } = await connected();
    await peer.frames();
    peer.send(reset(9, 4), reset(11, 4, { flags: 1 }));
    const frames = await peer.frames();
    expect(frames.map(({ type, channel, flags }) => [type, channel, flags])).toEqual([[RESET, 9, 1]]);
  });

  test("that says nothing is dropped after 10 s, and only so many may say nothing", async () => {
    const { link, clock } = rig();
    const peers = Array.from({ length: 6 }, () => new RawPeer(link));
    await settle();
    expect(peers.map(({ closed }) => closed)).toEqual([true, true, false, false, false, false]);
    clock.advance(10_000);
    await settle();
    expect(peers.every(({ closed }) => closed)).toBe(true);
  });
});

describe("a hello is refused", () => {
  const refusals: Record<string, { bytes: Buffer; code: number }> = {
    "of another migration": { bytes: hello({ linkId: "b2".repeat(16) }), code: 5 },
    "of another version": { bytes: hello({ version: 2 }), code: 8 },
    "of nobody": { bytes: hello({ senderId: "00".repeat(16) }), code: 6 },
    "of somebody the owner does not like": { bytes: hello({ senderId: "bb".repeat(16) }), code: 6 },
  };
  for (const [what, { bytes, code }] of Object.entries(refusals)) {
    test(what, async () => {
      const judge = ({ senderId }: { senderId: string }) => (senderId.startsWith("bb") ? "not you" : undefined);
      const { link } = rig({ judge });
      const peer = new RawPeer(link);
      peer.send(bytes);
      const frames = await peer.frames();
      expect(frames.map(({ type, channel }) => [type, channel])).toEqual([[RESET, 0]]);
      expect([frames[0]?.payload.readUInt16BE(4), link.state]).toEqual([code, "connecting"]);
    });
  }

  test("of a second destination, while the first keeps its connection", async () => {
    const { peer, link } = await connected();
    const second = new RawPeer(link);
    second.send(hello({ senderId: "d2".repeat(16), epoch: "e2".repeat(16) }));
    const frames = await second.frames();
    expect(frames.map(({ type, payload }) => [type, payload.readUInt16BE(4)])).toEqual([[RESET, 4]]);
    expect([link.state, peer.closed]).toEqual(["connected", false]);
  });

  test("of an earlier connection of the same process, which comes late", async () => {
    const { peer, link } = await connected();
    const late = new RawPeer(link);
    late.send(hello({ attempt: 1 }));
    const frames = await late.frames();
    expect(frames.map(({ type, payload }) => [type, payload.readUInt16BE(4)])).toEqual([[RESET, 7]]);
    expect([link.state, peer.closed]).toEqual(["connected", false]);
  });
});

test("a later connection takes over only when the earlier one is closed, and bytes of that one count no more", async () => {
  const { peer, link, channels } = await connected();
  peer.send(open(1, 1));
  await settle();
  peer.send(frame(DATA, 1, Buffer.from("first")));
  await settle();
  const sink = new Noting();
  channels[0]?.attach(sink);
  const epoch = await ownEpoch();
  const next = new RawPeer(link);
  next.send(hello({ attempt: 2, peerEpoch: epoch, entries: [{ channel: 1, serial: 1, received: 0 }] }));
  peer.send(frame(DATA, 1, Buffer.from("stale")));
  const [answer] = await next.frames();
  expect([answer?.type, answer?.payload.readUInt16BE(6), peer.closed]).toEqual([HELLO, 1, true]);
  expect(answer?.payload.readUInt16BE(104)).toBe(1);
  expect(answer?.payload.readBigUInt64BE(108 + 8)).toBe(5n);
  next.send(frame(DATA, 1, Buffer.from(" second")));
  await settle();
  expect(sink.bytes.toString()).toBe("first second");
});

/** The epoch of a link that `rig` makes: its random source is the same each time. */
async function ownEpoch(): Promise<string> {
  const peer = new RawPeer(rig().link);
  peer.send(hello());
  const [first] = await peer.frames();
  return first?.payload.subarray(40, 56).toString("hex") ?? "";
}

itSeeded("bytes at random after the hello end the connection or mean nothing, and hang nothing", async (rng) => {
  const rounds = 300;
  let ended = 0;
  for (let round = 0; round < rounds; round++) {
    const { peer, link } = await connected();
    const junk = Buffer.alloc(rng.integer(1, 400));
    rng.fill(junk);
    // Half of them begin like a frame.
    if (rng.chance(0.5)) frame(rng.integer(1, 8), rng.integer(0, 3)).copy(junk);
    peer.stream.write(junk);
    await settle();
    if (link.state === "disconnected") ended += 1;
    await link.close();
  }
  expect(ended).toBeGreaterThan(rounds / 2);
});
