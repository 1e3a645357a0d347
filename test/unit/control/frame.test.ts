/** Messages on a byte stream: bytes, splits, limits, and peers that mean harm. */
import { encode } from "@msgpack/msgpack";
import { describe, expect, test } from "vitest";
import { ControlError, ControlProtocolError } from "../../../src/control/errors.ts";
import { decodeBody, encodeMessage, FrameReader } from "../../../src/control/frame.ts";
import { DEPTH_MAX, MESSAGE_BYTES_MAX } from "../../../src/control/limits.ts";
import { counts, itSeeded } from "../../support/seed.ts";

const GOLDEN = "00000017 83 a26964 07 a476657262 a4 71756974 a6706172616d73 80".replaceAll(" ", "");

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replaceAll(" ", ""), "hex"));
}

/** What a reader makes of `pieces`; each body is copied before the next push. */
function read(pieces: readonly Uint8Array[]): unknown[] {
  const reader = new FrameReader();
  const found: unknown[] = [];
  for (const piece of pieces) {
    reader.push(piece, (body) => {
      found.push(decodeBody(body));
      return true;
    });
    // The receive buffer is used again.
    piece.fill(0xee);
  }
  return found;
}

describe("frames", () => {
  test("a request is these bytes", () => {
    const frame = encodeMessage({ id: 7, verb: "quit", params: {} });
    expect(Buffer.from(frame).toString("hex")).toBe(GOLDEN);
  });

  test("these bytes are a request", () => {
    const body = hex(GOLDEN.slice(8));
    expect(decodeBody(body)).toEqual({ id: 7, verb: "quit", params: {} });
  });

  test("several messages come out whole, wherever the stream is cut", () => {
    const messages = [{ id: 1 }, { text: "x".repeat(300), list: [1, -2, 3.5, null, true] }, { deep: { er: {} } }];
    const stream = Buffer.concat(messages.map((message) => encodeMessage(message)));
    for (let cut = 0; cut <= stream.length; cut++) {
      const copy = new Uint8Array(stream);
      expect(read([copy.slice(0, cut), copy.slice(cut)])).toEqual(messages);
    }
    expect(read(Array.from(stream, (byte) => Uint8Array.of(byte)))).toEqual(messages);
  });

  test("a reader that is told to stop leaves the rest alone, and goes on with it later", () => {
    const stream = Buffer.concat([encodeMessage({ n: 1 }), encodeMessage({ n: 2 }), encodeMessage({ n: 3 })]);
    for (let cut = 0; cut <= stream.length; cut++) {
      const reader = new FrameReader();
      const found: unknown[] = [];
      const once = (body: Uint8Array): boolean => {
        found.push(decodeBody(body));
        return false;
      };
      for (const piece of [stream.subarray(0, cut), stream.subarray(cut)]) {
        for (let rest: Uint8Array = piece; rest.length > 0; ) rest = reader.push(rest, once);
      }
      expect(found).toEqual([{ n: 1 }, { n: 2 }, { n: 3 }]);
    }
  });

  test("the largest message fits, and one byte more does not, on either side", () => {
    // A map of one: 1 byte, its key 2, the head of the string 3.
    const fits = { t: "x".repeat(MESSAGE_BYTES_MAX - 6) };
    const frame = encodeMessage(fits);
    expect(frame.length).toBe(4 + MESSAGE_BYTES_MAX);
    expect(read([frame])).toEqual([fits]);
    expect(() => encodeMessage({ t: "x".repeat(MESSAGE_BYTES_MAX - 5) })).toThrow(ControlError);
  });

  test.each(["00000000", "00010001", "ffffffff", "7fffffff"])(
    "the length %s is refused at once, also byte by byte",
    (length) => {
      const bytes = hex(length);
      expect(() => read([bytes.slice()])).toThrow(ControlProtocolError);
      expect(() => read(Array.from(bytes, (byte) => Uint8Array.of(byte)))).toThrow(ControlProtocolError);
    },
  );

  test("keys without a value are left out", () => {
    expect(read([encodeMessage({ a: undefined, b: 1 })])).toEqual([{ b: 1 }]);
  });
});

describe("bodies that are refused", () => {
  const nested = (depth: number) => hex(`81a161${"91".repeat(depth - 1)}c0`);

  test.each<[string, Uint8Array]>([
    ["nothing", hex("")],
    ["not a map", hex("01")],
    ["an array", hex("9101")],
    ["bytes after the map", hex("8000")],
    ["a map that ends early", hex("82a161 01")],
    ["a string that ends early", hex("81a161 a5 61")],
    ["an array that names more than there is", hex("81a161 dcffff")],
    ["an array that names four thousand million", hex("81a161 ddffffffff")],
    ["a map that names four thousand million", hex("dfffffffff")],
    ["a string that names four thousand million", hex("81a161 dbffffffff")],
    ["a length that ends early", hex("81a161 dc01")],
    ["binary", hex("81a161 c40101")],
    ["an extension", hex("81a161 d60100000000")],
    ["the type that is never used", hex("81a161 c1")],
    ["a key that is an array", hex("819001")],
    ["the key __proto__", new Uint8Array(encode(JSON.parse('{"__proto__":1}')))],
    ["nesting one too deep", nested(DEPTH_MAX + 1)],
    ["nesting without end", hex(`81a161${"91".repeat(60_000)}`)],
  ])("%s", (_what, body) => {
    expect(() => decodeBody(body)).toThrow(ControlProtocolError);
  });

  test("nesting as deep as may be is read", () => {
    expect(decodeBody(nested(DEPTH_MAX))).toHaveProperty("a");
  });

  test("arrays that each name sixty thousand members, nested, cost no memory", () => {
    const body = new Uint8Array(MESSAGE_BYTES_MAX).fill(0xff);
    body.set(hex("81a161"));
    for (let at = 3; at + 3 <= body.length; at += 3) body.set(hex("dcff00"), at);
    const before = process.memoryUsage().heapUsed;
    for (let round = 0; round < 100; round++) expect(() => decodeBody(body)).toThrow(ControlProtocolError);
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(64 * 1024 * 1024);
  });
});

itSeeded("whatever arrives, a reader gives bodies or complains of the protocol, and nothing else", (rng) => {
  const good = encodeMessage({ id: 1, verb: "status", params: { disk: "vda", list: [1, 2, { three: 3 }] } });
  for (let round = 0; round < counts({ local: 20_000, ci: 200_000 }); round++) {
    const bytes = rng.chance(0.5) ? good.slice() : new Uint8Array(rng.integer(4, 64));
    if (bytes.length !== good.length) rng.fill(bytes);
    for (let flips = rng.integer(1, 3); flips > 0; flips--)
      bytes[rng.integer(0, bytes.length - 1)] = rng.integer(0, 255);
    // A plausible length, so that bodies are reached.
    if (rng.chance(0.8)) new DataView(bytes.buffer).setUint32(0, Math.max(0, bytes.length - 4));
    try {
      read([bytes]);
    } catch (error) {
      expect(error).toBeInstanceOf(ControlProtocolError);
    }
  }
});
