import { describe, expect, test } from "vitest";
import { LinkProtocolError } from "../../../src/link/errors.ts";
import { MessageStream } from "../../../src/link/message-stream.ts";
import { byteByByte, cutAt, type PairOptions, streamPair, whole } from "../../support/stream-pair.ts";
import { Noting, settle } from "./raw-peer.ts";

function pairOf(options: PairOptions = {}) {
  const { client, server } = streamPair(options);
  const got: string[] = [];
  const told: (string | Error | undefined)[] = [];
  const receiver = new MessageStream(server, {
    onMessage: (message) => got.push(Buffer.from(message).toString()),
    onEnd: () => told.push("end"),
    onClose: (error) => told.push("close", error),
  });
  return { client, server, receiver, got, told };
}

const quiet = { onMessage: () => {}, onEnd: () => {}, onClose: () => {} };

describe("messages", () => {
  test("arrive whole, wherever the bytes between are cut", async () => {
    for (const cut of [whole, byteByByte, ...Array.from({ length: 20 }, (_, at) => cutAt(at))]) {
      const { client, got, told } = pairOf({ serverCut: cut });
      const sender = new MessageStream(client, quiet);
      for (const text of ["a", "two words", "3"]) sender.send(Buffer.from(text));
      sender.end();
      for (let i = 0; i < 20; i++) await settle();
      expect([got, told]).toEqual([["a", "two words", "3"], ["end"]]);
    }
  });

  test("that are too long, or empty, are refused on either side", async () => {
    const { client, got, told } = pairOf();
    const sender = new MessageStream(client, quiet);
    expect(() => sender.send(Buffer.alloc(0))).toThrow(RangeError);
    expect(() => sender.send(Buffer.alloc(65_537))).toThrow(RangeError);
    sender.send(Buffer.alloc(65_536, "x"));
    client.write(Buffer.from([0, 1, 0, 1, 65]));
    for (let i = 0; i < 20; i++) await settle();
    expect(got.map((text) => text.length)).toEqual([65_536]);
    expect(told[1]).toBeInstanceOf(LinkProtocolError);
  });

  test("may be in any number, but a peer that reads none of them makes sending fail", async () => {
    const { client, server } = streamPair();
    server.pause();
    server.attach(new Noting());
    const sender = new MessageStream(client, quiet);
    const send = (): void => {
      for (let i = 0; i < 1000; i++) sender.send(Buffer.alloc(60_000));
    };
    expect(send).toThrow(expect.objectContaining({ code: "limit" }));
    expect(client.pendingBytes).toBeLessThan(1.2e6);
  });

  test("that end in the middle are a violation", async () => {
    const { client, told } = pairOf();
    client.attach(new Noting());
    client.write(Buffer.from([0, 0, 0, 9, 65]));
    client.end();
    await settle();
    expect(told[1]).toBeInstanceOf(LinkProtocolError);
  });

  test("tell how much the channel has not taken, and when it has taken all of it", async () => {
    let room = false;
    let drained = 0;
    const written: Uint8Array[] = [];
    const stream = {
      peer: "a channel",
      get pendingBytes(): number {
        return room ? 0 : written.reduce((sum, bytes) => sum + bytes.length, 0);
      },
      attach: (sink: { onDrain(): void }) => {
        stream.drain = () => sink.onDrain();
      },
      drain: () => {},
      write: (bytes: Uint8Array) => void written.push(bytes),
      ...{ pause: () => {}, resume: () => {}, end: () => {}, destroy: () => {} },
    };
    const sender = new MessageStream(stream, { ...quiet, onDrain: () => (drained += 1) });
    sender.send(Buffer.from("four"));
    expect([sender.pendingBytes, drained]).toEqual([8, 0]);
    room = true;
    stream.drain();
    expect([sender.pendingBytes, drained]).toEqual([0, 1]);
  });
});
