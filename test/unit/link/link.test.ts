/** How a link behaves, against a peer that is played by hand. */
import { describe, expect, test } from "vitest";
import { LinkError } from "../../../src/link/errors.ts";
import { streamPair } from "../../support/stream-pair.ts";
import {
  CLOSE,
  CREDIT,
  close,
  connected,
  credit,
  DATA,
  frame,
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

test("of a connection that becomes a link, the kernel is to hold no more unsent than is kept ready for it", async () => {
  const { link } = rig({ limits: { sendAheadBytes: 4096 } });
  const { server } = streamPair();
  const kept: number[] = [];
  link.attach(Object.assign(server, { keepShort: (bytes: number) => kept.push(bytes) })).catch(() => {});
  await settle();
  expect(kept).toEqual([4096]);
});

describe("a channel", () => {
  test("is announced with its kind and label, and sends nothing before it is granted room", async () => {
    const { link, peer } = await connected();
    await peer.frames();
    const channel = link.open("background", "vda");
    channel.write(Buffer.from("hello"));
    const frames = await peer.frames();
    expect(frames.map(({ type, channel: id, payload }) => [type, id, payload.toString("hex")])).toEqual([
      [OPEN, 2, `000000010303${Buffer.from("vda").toString("hex")}`],
      [CREDIT, 2, "000000000000000001000000"],
    ]);
    peer.send(credit(2, 0, 3));
    expect((await peer.frames()).map(({ type, payload }) => [type, payload.toString()])).toEqual([[DATA, "hel"]]);
    peer.send(credit(2, 1, 3));
    expect((await peer.frames()).map(({ type, payload }) => [type, payload.toString()])).toEqual([[DATA, "l"]]);
    peer.send(credit(2, 4, 100));
    expect((await peer.frames()).map(({ type, payload }) => [type, payload.toString()])).toEqual([[DATA, "o"]]);
  });

  test("that is destroyed with bytes left over does not stop the others from sending", async () => {
    const { link, peer } = await connected();
    const [gone, other] = [link.open("message", "a"), link.open("background", "b")];
    gone.write(Buffer.from("never"));
    other.write(Buffer.from("hello"));
    await peer.frames();
    // In one turn: there is room for its bytes, and it is gone.
    gone.attach({
      ...new Noting(),
      onBytes: () => gone.destroy(),
      onEnd: () => {},
      onClose: () => {},
      onDrain: () => {},
    });
    peer.send(credit(2, 0, 100), frame(DATA, 2, Buffer.from("x")), credit(4, 0, 100));
    const frames = await peer.frames();
    expect(frames.map(({ type, channel }) => [type, channel])).toEqual([
      [RESET, 2],
      [DATA, 4],
    ]);
  });

  test("closes in order when both sides have ended and said so", async () => {
    const { channels, peer } = await connected();
    peer.send(open(1, 1));
    await settle();
    const sink = new Noting();
    const channel = channels[0]!;
    channel.attach(sink);
    peer.send(credit(1, 0, 100), frame(DATA, 1, Buffer.from("all")), close(1, 3));
    await settle();
    expect([sink.bytes.toString(), sink.told]).toEqual(["all", ["end"]]);
    await peer.frames();
    channel.write(Buffer.from("ok"));
    channel.end();
    const frames = await peer.frames();
    expect(frames.map(({ type }) => type)).toEqual([DATA, CLOSE]);
    expect(frames[1]?.payload.readBigUInt64BE(0)).toBe(2n);
    expect(sink.told).toEqual(["end"]);
    peer.send(credit(1, 3, 100));
    await settle();
    expect([sink.told, sink.error, channel.closed]).toEqual([["end", "close"], undefined, true]);
    // Its number is free again.
    peer.send(open(1, 2));
    await settle();
    expect(channels.length).toBe(2);
  });

  test("that nobody reads stops only itself", async () => {
    const windowBytes = { message: 1000, demand: 1000, tunnel: 1000, background: 1000 };
    const { channels, peer } = await connected({ limits: { windowBytes } });
    peer.send(open(1, 1), open(3, 2));
    await settle();
    const sink = new Noting();
    channels[1]?.attach(sink);
    peer.send(frame(DATA, 1, Buffer.alloc(1000)), frame(DATA, 3, Buffer.alloc(1000, 7)));
    const credits = (await peer.frames()).filter(
      ({ type, payload }) => type === CREDIT && payload.readBigUInt64BE(0) > 0n,
    );
    expect([sink.bytes.length, credits.map(({ channel }) => channel)]).toEqual([1000, [3]]);
    const late = new Noting();
    channels[0]?.attach(late);
    expect((await peer.frames()).map(({ type, channel }) => [type, channel])).toEqual([[CREDIT, 1]]);
    expect(late.bytes.length).toBe(1000);
  });

  test("destroyed, tells the peer, and takes nothing more until the peer has answered", async () => {
    const { channels, peer, link } = await connected();
    peer.send(open(1, 1));
    await settle();
    const sink = new Noting();
    const channel = channels[0]!;
    channel.attach(sink);
    const released: string[] = [];
    channel.write(Buffer.alloc(1e7), () => released.push(sink.told.join()));
    await peer.frames();
    channel.destroy(new Error("enough"));
    channel.destroy();
    channel.write(Buffer.from("x"), () => released.push("at once"));
    await settle();
    expect([sink.told, sink.error?.message, released]).toEqual([["close"], "enough", ["at once", "close"]]);
    expect((await peer.frames()).map(({ type, channel: id, flags }) => [type, id, flags])).toEqual([[RESET, 1, 0]]);
    peer.send(frame(DATA, 1, Buffer.from("late")), reset(1, 1, { flags: 1 }));
    await settle();
    expect([link.state, sink.bytes.length]).toEqual(["connected", 0]);
  });

  test("reset by the peer is closed with an error, and the reset is answered", async () => {
    const { channels, peer } = await connected();
    peer.send(open(1, 1));
    await peer.frames();
    const sink = new Noting();
    channels[0]?.attach(sink);
    peer.send(reset(1, 1));
    const frames = await peer.frames();
    expect(frames.map(({ type, channel, flags }) => [type, channel, flags])).toEqual([[RESET, 1, 1]]);
    expect([sink.told, (sink.error as LinkError).code]).toEqual([["close"], "reset"]);
  });

  test("opened while there is no connection waits for one", async () => {
    const { link } = rig();
    const channel = link.open("tunnel", "ram");
    const sink = new Noting();
    channel.attach(sink);
    channel.write(Buffer.from("early"));
    const peer = new RawPeer(link);
    peer.send(hello());
    expect((await peer.frames()).map(({ type }) => type)).toContain(OPEN);
    expect(sink.told).toEqual([]);
  });
});

describe("after a cut", () => {
  async function cutWith(received: number) {
    const { link, states } = rig();
    const channel = link.open("tunnel", "ram");
    const sink = new Noting();
    channel.attach(sink);
    const peer = new RawPeer(link);
    peer.send(hello({ attempt: 1 }));
    const epoch = (await peer.frames())[0]?.payload.subarray(40, 56).toString("hex") ?? "";
    peer.send(credit(2, 0, 1000));
    channel.write(Buffer.from("0123456789"));
    await peer.frames();
    peer.stream.destroy();
    await settle();
    channel.write(Buffer.from("abc"));
    const next = new RawPeer(link);
    const entries = [{ channel: 2, serial: 1, received, consumed: 0 }];
    next.send(hello({ attempt: 2, peerEpoch: epoch, lastSerial: 1, entries }));
    return { next, states, sink, epoch, link };
  }

  test("a channel goes on from where the peer is", async () => {
    const { next, states, sink } = await cutWith(4);
    const data = (await next.frames()).filter(({ type }) => type === DATA);
    expect(Buffer.concat(data.map(({ payload }) => payload)).toString()).toBe("456789abc");
    expect([states, sink.told]).toEqual([["connected", "disconnected", "connected"], []]);
  });

  test("a channel of which the peer has heard nothing is announced again", async () => {
    const { link } = rig();
    const channel = link.open("tunnel", "ram");
    channel.write(Buffer.from("x"));
    const peer = new RawPeer(link);
    peer.send(hello({ attempt: 1 }));
    const epoch = (await peer.frames())[0]?.payload.subarray(40, 56).toString("hex") ?? "";
    peer.stream.destroy();
    await settle();
    const next = new RawPeer(link);
    next.send(hello({ attempt: 2, peerEpoch: epoch }));
    expect((await next.frames()).map(({ type }) => type)).toEqual([1, PING, OPEN, CREDIT]);
  });

  test("a peer that claims more than was sent gets all channels reset, not bytes that never were", async () => {
    const { next, sink } = await cutWith(11);
    const [answer] = await next.frames();
    expect(answer?.payload.readUInt16BE(6)).toBe(0);
    expect([sink.told, (sink.error as LinkError).code]).toEqual([["close"], "reset"]);
  });

  test("another process of the peer finds no channels, and the users of the old ones are told", async () => {
    const { link, channels, peer } = await connected();
    peer.send(open(1, 1));
    await settle();
    const sink = new Noting();
    channels[0]?.attach(sink);
    const next = new RawPeer(link);
    next.send(hello({ epoch: "e9".repeat(16), attempt: 1 }));
    const [answer] = await next.frames();
    expect([answer?.payload.readUInt16BE(6), answer?.payload.readUInt16BE(104)]).toEqual([0, 0]);
    expect([sink.told, (sink.error as LinkError).code]).toEqual([["close"], "restarted"]);
  });
});

describe("a peer", () => {
  test("that answers nothing is given up within 15 s, even while it sends", async () => {
    const { link, clock, peer } = await connected();
    for (let ms = 0; ms < 15_000; ms += 500) {
      peer.send(frame(PING, 0, Buffer.alloc(8)));
      await settle();
      clock.advance(500);
    }
    await settle();
    expect([link.state, (link.lastError as LinkError).code]).toEqual(["disconnected", "silent"]);
  });

  test("that answers is not given up, and its round trip is measured", async () => {
    const { link, clock, peer } = await connected();
    for (let ms = 0; ms < 60_000; ms += 500) {
      const pings = (await peer.frames()).filter(({ type }) => type === PING);
      clock.advance(20);
      peer.send(...pings.map(({ payload }) => frame(PONG, 0, payload)));
      await settle();
      clock.advance(480);
    }
    const { state, rttMinMs, rttMs = 0 } = link.status();
    expect([state, rttMinMs]).toEqual(["connected", 0]);
    expect(rttMs).toBeGreaterThan(15);
    expect(rttMs).toBeLessThanOrEqual(20);
  });

  test("is not blamed for the time that we were stopped ourselves", async () => {
    const { link, clock, peer } = await connected();
    await peer.frames();
    // One timer that fires a minute late: time went on, we did not.
    const { nowMs } = clock;
    let jumpedMs = 0;
    clock.nowMs = () => nowMs.call(clock) + jumpedMs;
    jumpedMs = 60_000;
    clock.advance(500);
    await settle();
    expect(link.state).toBe("connected");
  });
});

test("a link that is closed resets its channels, says goodbye, and takes nobody in any more", async () => {
  const { link, channels, peer, clock } = await connected();
  peer.send(open(1, 1));
  await peer.frames();
  const sink = new Noting();
  channels[0]?.attach(sink);
  await link.close();
  expect((await peer.frames()).map(({ type, channel }) => [type, channel])).toEqual([[CLOSE, 0]]);
  expect([sink.told, (sink.error as LinkError).code, link.state]).toEqual([["close"], "closed", "closed"]);
  const late = new RawPeer(link);
  expect((await late.frames()).map(({ type, payload }) => [type, payload.readUInt16BE(4)])).toEqual([[RESET, 3]]);
  expect(() => link.open("demand", "x")).toThrow(LinkError);
  await settle();
  expect(clock.timers).toBe(0);
});
