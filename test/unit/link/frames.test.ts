/** The codec: golden bytes, every split, limits, and bytes at random. */
import { describe, expect, test } from "vitest";
import { FRAME_PING, FRAME_PONG } from "../../../src/link/constants.ts";
import { LinkProtocolError } from "../../../src/link/errors.ts";
import {
  decodeClose,
  decodeCredit,
  decodeOpen,
  decodeReset,
  encodeClose,
  encodeCredit,
  encodeOpen,
  encodePing,
  encodeReset,
  putDataHeader,
} from "../../../src/link/frame.ts";
import { FrameReader } from "../../../src/link/frame-reader.ts";
import { decodeHello, encodeHello, type Hello } from "../../../src/link/hello.ts";
import { counts, itSeeded } from "../../support/seed.ts";
import { credit, DATA, frame, hello, open, reset } from "./raw-peer.ts";

const GOLDEN_HELLO: Hello = {
  version: 1,
  resumed: true,
  linkId: "a1".repeat(16),
  senderId: "50".repeat(16),
  epoch: "e1".repeat(16),
  peerEpoch: "e2".repeat(16),
  trackingId: "70".repeat(16),
  term: 0x1_0000_0002,
  attempt: 3,
  lastSerial: 4,
  entries: [{ channel: 5, serial: 6, resetting: true, received: 0x2_0000_0007, consumed: 8, windowBytes: 9 }],
};

describe("bytes on the wire", () => {
  test("of each frame are those of the specification", () => {
    const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
    const data = new Uint8Array(8);
    putDataHeader(data, 0, 255, 0x0001_fffe);
    expect(hex(data)).toBe("03ff00000001fffe");
    expect(hex(encodeOpen(1, { serial: 258, kind: "tunnel", label: "ram" }))).toBe(
      "0201000000000009" + "00000102" + "02" + "03" + "72616d",
    );
    expect(hex(encodeCredit(2, { offset: 0x1_0000_0003, windowBytes: 65_536 }))).toBe(
      "040200000000000c" + "0000000100000003" + "00010000",
    );
    expect(hex(encodeClose(3, 7))).toBe("0503000000000008" + "0000000000000007");
    expect(hex(encodeClose(0, 0))).toBe("0500000000000000");
    expect(hex(encodeReset(4, { serial: 9, code: 2, text: "no" }))).toBe(
      "060400000000000a" + "00000009" + "00020000" + "6e6f",
    );
    expect(hex(encodeReset(4, { serial: 9, code: 1, text: "" }, true))).toBe(
      "0604000100000008" + "00000009" + "00010000",
    );
    expect(hex(encodePing(FRAME_PING, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)))).toBe(
      "0700000000000008" + "0102030405060708",
    );
    expect(hex(encodePing(FRAME_PONG, new Uint8Array(8)))).toBe("0800000000000008" + "0000000000000000");
    expect(hex(encodeHello(GOLDEN_HELLO))).toBe(
      "0100000000000088" +
        "626c6b66" +
        "0001" +
        "0001" +
        ["a1", "50", "e1", "e2", "70"].map((byte) => byte.repeat(16)).join("") +
        "0000000100000002" +
        "00000003" +
        "00000004" +
        "0001" +
        "0000" +
        "05" +
        "01" +
        "0000" +
        "00000006" +
        "0000000200000007" +
        "0000000000000008" +
        "00000009",
    );
  });

  test("say the same when they are read back", () => {
    expect(decodeHello(encodeHello(GOLDEN_HELLO).subarray(8))).toEqual(GOLDEN_HELLO);
    const opening = { serial: 1, kind: "message", label: "peer – ü" } as const;
    expect(decodeOpen(encodeOpen(1, opening).subarray(8))).toEqual(opening);
    const credited = { offset: 2 ** 53 - 1, windowBytes: 5 };
    expect(decodeCredit(encodeCredit(1, credited).subarray(8))).toEqual(credited);
    expect(decodeClose(encodeClose(1, 2 ** 40).subarray(8))).toBe(2 ** 40);
    const said = { serial: 4, code: 5, text: "why" };
    expect(decodeReset(encodeReset(1, said).subarray(8))).toEqual(said);
  });

  test("of a text that is too long are cut between characters", () => {
    const { text } = decodeReset(encodeReset(1, { serial: 1, code: 1, text: "ü".repeat(200) }).subarray(8));
    expect(text).toBe("ü".repeat(128));
  });

  test("of offsets beyond 2^53 mean something that no range check lets through", () => {
    expect(decodeClose(Buffer.alloc(8, 0xff))).toBe(Infinity);
  });
});

describe("a hello", () => {
  test.each([
    ["whose number of entries does not fit", hello().subarray(8).fill(1, 104, 106)],
    ["with an entry for the link itself", hello({ entries: [{ channel: 0, serial: 1, received: 0 }] }).subarray(8)],
    [
      "with more read than received",
      hello({ entries: [{ channel: 1, serial: 1, received: 1, consumed: 2 }] }).subarray(8),
    ],
    [
      "with two entries for a channel",
      hello({
        entries: [
          { channel: 1, serial: 1, received: 0 },
          { channel: 1, serial: 2, received: 0 },
        ],
      }).subarray(8),
    ],
    ["with a term beyond all bounds", hello().subarray(8).fill(0xff, 88, 96)],
  ])("%s is a violation", (_what, payload) => {
    expect(() => decodeHello(payload)).toThrow(LinkProtocolError);
  });
});

/** What a reader makes of `bytes` in pieces: data joined per frame run, other frames one by one. */
function read(pieces: readonly Uint8Array[]): string[] {
  const seen: string[] = [];
  let data = "";
  const flush = (): void => {
    if (data !== "") seen.push(data);
    data = "";
  };
  const reader = new FrameReader({
    onData: (channel, bytes) => {
      if (data === "") data = `data ${channel} `;
      data += Buffer.from(bytes).toString("latin1");
    },
    onFrame: ({ type, channel, flags }, payload) => {
      flush();
      seen.push(`${type} ${channel} ${flags} ${Buffer.from(payload).toString("hex")}`);
    },
  });
  for (const piece of pieces) {
    // As a receive buffer: overwritten when the call returns.
    const copy = Buffer.from(piece);
    reader.push(copy);
    copy.fill(0xee);
  }
  flush();
  return seen;
}

const STREAM = Buffer.concat([
  hello({ entries: [{ channel: 1, serial: 2, received: 3 }] }),
  open(1, 1, { label: "vda" }),
  frame(DATA, 1, Buffer.from("some data")),
  credit(1, 3, 4),
  frame(5, 0),
  frame(DATA, 2, Buffer.from("x")),
  reset(1, 1),
  frame(DATA, 3, Buffer.from("the end")),
]);

describe("the reader", () => {
  test("finds the same frames wherever the stream is split, in two or in three", () => {
    const whole = read([STREAM]);
    expect(whole).toHaveLength(8);
    for (let at = 0; at <= STREAM.length; at++) {
      expect(read([STREAM.subarray(0, at), STREAM.subarray(at)])).toEqual(whole);
      const second = Math.min(at + 5, STREAM.length);
      expect(read([STREAM.subarray(0, at), STREAM.subarray(at, second), STREAM.subarray(second)])).toEqual(whole);
    }
    expect(read([...STREAM].map((byte) => Uint8Array.of(byte)))).toEqual(whole);
  });

  test("passes nothing on after it was stopped, not even from the same piece", () => {
    const seen: number[] = [];
    const reader = new FrameReader({
      onData: () => {},
      onFrame: ({ type }) => {
        seen.push(type);
        reader.stop();
      },
    });
    reader.push(STREAM);
    reader.push(STREAM);
    expect(seen).toEqual([1]);
  });

  itSeeded("takes any bytes: frames, or a violation, and nothing else", (rng) => {
    const rounds = counts({ local: 10_000, ci: 500_000 });
    let violations = 0;
    for (let round = 0; round < rounds; round++) {
      const bytes = Buffer.from(STREAM);
      for (let flips = rng.integer(1, 4); flips > 0; flips--)
        bytes[rng.integer(0, bytes.length - 1)] = rng.integer(0, 255);
      const at = rng.integer(0, bytes.length);
      try {
        read([bytes.subarray(0, at), bytes.subarray(at)]);
      } catch (error) {
        if (!(error instanceof LinkProtocolError)) throw error;
        violations += 1;
      }
    }
    expect(violations).toBeGreaterThan(rounds / 20);
  });
});
