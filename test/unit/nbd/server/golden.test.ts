/** Every message, byte for byte, written by hand from doc/proto.md. Spaces separate the fields. */
import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import { hex } from "../../../support/nbd-wire.ts";
import { ServerRig } from "../../../support/server-rig.ts";
import { presence } from "./handshake-fixture.ts";

/** What the client sends, and all that it gets back. */
type Exchange = readonly [title: string, sent: string, received: string];

const text = (words: string) => Buffer.from(words).toString("hex");
const IHAVEOPT = "49484156454f5054";
const REPLY = "0003e889045565a9";
const DISK = "00000004 6469736b"; // "disk", counted
const ACK_OF = (option: string) => `${REPLY} ${option} 00000001 00000000`;
const refusal = (option: string, type: string, words: string) =>
  `${REPLY} ${option} ${type} ${words.length.toString(16).padStart(8, "0")} ${text(words)}`;

const GREETING: Exchange = ["greeting and flags", "00000003", "4e42444d41474943 49484156454f5054 0003"];
const STRUCTURED: Exchange = ["STRUCTURED_REPLY", `${IHAVEOPT} 00000008 00000000`, ACK_OF("00000008")];
const EXTENDED: Exchange = ["EXTENDED_HEADERS", `${IHAVEOPT} 0000000b 00000000`, ACK_OF("0000000b")];
const go = (flags: string): Exchange => [
  "GO",
  `${IHAVEOPT} 00000007 0000000a ${DISK} 0000`,
  `${REPLY} 00000007 00000003 0000000c 0000 0000000000002000 ${flags} ${ACK_OF("00000007")}`,
];
const SELECT: Exchange = [
  "SET_META_CONTEXT, two of three",
  `${IHAVEOPT} 0000000a 00000046 ${DISK} 00000003
     0000000f ${text("base:allocation")} 0000000c ${text("who:are-you?")} 00000013 ${text("x-blockferry:presen")}`,
  `${REPLY} 0000000a 00000004 00000013 00000001 ${text("base:allocation")} ${ACK_OF("0000000a")}`,
];

/** 8 KiB; page 0 holds 01 02 03 … up to 08, page 1 is a hole. */
const makeDisk = () =>
  new MemoryDevice({ sizeBytes: 8192, content: Buffer.from([1, 2, 3, 4, 5, 6, 7, 8]), pageBytes: 4096 });

async function play(exchanges: readonly Exchange[]): Promise<void> {
  const exports = [{ name: "disk", device: makeDisk(), readOnly: false, description: "d", contexts: [presence] }];
  const { client } = new ServerRig({ exports }).connect();
  for (const [title, sent, received] of exchanges) {
    client.send(hex(sent));
    const expected = hex(received);
    const actual = await client.take(expected.length);
    expect(`${title}: ${actual.toString("hex")}`).toBe(`${title}: ${expected.toString("hex")}`);
  }
  // ABORT or DISC came last: nothing is left over.
  client.end();
  expect(await client.takeAll()).toHaveLength(0);
}

describe("bytes of the handshake", () => {
  const exchanges: readonly Exchange[] = [
    GREETING,
    ["LIST", `${IHAVEOPT} 00000003 00000000`, `${REPLY} 00000003 00000002 00000009 ${DISK} 64 ${ACK_OF("00000003")}`],
    ["LIST with data", `${IHAVEOPT} 00000003 00000001 00`, refusal("00000003", "80000003", "LIST carries no data")],
    [
      "an unknown option",
      `${IHAVEOPT} 000003e7 00000000`,
      refusal("000003e7", "80000001", "this server does not know that option"),
    ],
    [
      "STARTTLS",
      `${IHAVEOPT} 00000005 00000000`,
      refusal("00000005", "80000002", "this server has no TLS credentials"),
    ],
    [
      "INFO of everything",
      `${IHAVEOPT} 00000006 00000012 ${DISK} 0004 0000 0001 0002 0003`,
      `${REPLY} 00000006 00000003 0000000c 0000 0000000000002000 0d6d
       ${REPLY} 00000006 00000003 00000006 0001 6469736b
       ${REPLY} 00000006 00000003 00000003 0002 64
       ${REPLY} 00000006 00000003 0000000e 0003 00000001 00001000 04000000
       ${ACK_OF("00000006")}`,
    ],
    [
      "INFO of another",
      `${IHAVEOPT} 00000006 00000007 00000001 64 0000`,
      refusal("00000006", "80000006", "there is no export of that name"),
    ],
    [
      "SET_META_CONTEXT too early",
      `${IHAVEOPT} 0000000a 0000000c ${DISK} 00000000`,
      refusal("0000000a", "80000003", "metadata need structured replies"),
    ],
    STRUCTURED,
    [
      "LIST_META_CONTEXT",
      `${IHAVEOPT} 00000009 0000000c ${DISK} 00000000`,
      `${REPLY} 00000009 00000004 00000013 00000000 ${text("base:allocation")}
       ${REPLY} 00000009 00000004 00000019 00000000 ${text("x-blockferry:presence")} ${ACK_OF("00000009")}`,
    ],
    SELECT,
    EXTENDED,
    [
      "STRUCTURED_REPLY after it",
      `${IHAVEOPT} 00000008 00000000`,
      refusal("00000008", "8000000a", "extended headers were agreed on already"),
    ],
    ["ABORT", `${IHAVEOPT} 00000002 00000000`, ACK_OF("00000002")],
  ];
  test("options and their replies", () => play(exchanges));

  test("EXPORT_NAME with its zeroes", () =>
    play([
      ["flags", "00000001", GREETING[2]],
      ["EXPORT_NAME", `${IHAVEOPT} 00000001 00000004 6469736b`, `0000000000002000 0d6d ${"00".repeat(124)}`],
      ["DISC", "25609513 0000 0002 0000000000000000 0000000000000000 00000000", ""],
    ]));

  test("EXPORT_NAME without them", () =>
    play([
      GREETING,
      ["EXPORT_NAME", `${IHAVEOPT} 00000001 00000004 6469736b`, "0000000000002000 0d6d"],
      ["DISC", "25609513 0000 0002 0000000000000000 0000000000000000 00000000", ""],
    ]));
});

const COOKIE = "c00c1e00 deadbeef";

describe("bytes of the transmission phase", () => {
  const request = (flagsAndCommand: string, range: string) => `25609513 ${flagsAndCommand} ${COOKIE} ${range}`;
  const simple = (error: string) => `67446698 ${error} ${COOKIE}`;
  const RANGE = "0000000000000002 00000004";
  const PAST = "0000000000002000 00000001";

  test("compact requests and simple replies", () =>
    play([
      GREETING,
      go("0d6d"),
      ["READ", request("0000 0000", RANGE), `${simple("00000000")} 03040506`],
      ["READ past the end", request("0000 0000", PAST), simple("00000016")],
      ["WRITE", `${request("0000 0001", RANGE)} aabbccdd`, simple("00000000")],
      ["WRITE with FUA", `${request("0001 0001", RANGE)} a1b1c1d1`, simple("00000000")],
      ["READ it back", request("0000 0000", RANGE), `${simple("00000000")} a1b1c1d1`],
      ["WRITE past the end", `${request("0000 0001", PAST)} ff`, simple("0000001c")],
      ["FLUSH", request("0000 0003", "0000000000000000 00000000"), simple("00000000")],
      ["TRIM", request("0000 0004", "0000000000001000 00001000"), simple("00000000")],
      ["CACHE", request("0000 0005", RANGE), simple("00000000")],
      ["WRITE_ZEROES, NO_HOLE", request("0002 0006", RANGE), simple("00000000")],
      ["READ zeroes", request("0000 0000", RANGE), `${simple("00000000")} 00000000`],
      ["BLOCK_STATUS", request("0000 0007", RANGE), simple("00000016")],
      ["an unknown command", request("0000 0008", RANGE), simple("00000016")],
      ["DISC", request("0000 0002", "0000000000000000 00000000"), ""],
    ]));

  const INVALID = "the request is not valid for this export";
  const chunk = (flags: string, type: string, payload: string) =>
    `668e33ef ${flags} ${type} ${COOKIE} ${hex(payload).length.toString(16).padStart(8, "0")} ${payload}`;
  const complaint = `00000016 0028 ${text(INVALID)}`;

  test("compact requests and structured replies", () =>
    play([
      GREETING,
      STRUCTURED,
      SELECT,
      go("0ded"),
      ["READ", request("0000 0000", RANGE), chunk("0001", "0001", "0000000000000002 03040506")],
      ["READ with DF", request("0004 0000", RANGE), chunk("0001", "0001", "0000000000000002 03040506")],
      ["READ of nothing", request("0000 0000", "0000000000000002 00000000"), chunk("0001", "0000", "")],
      ["READ past the end", request("0000 0000", PAST), chunk("0001", "8001", complaint)],
      ["WRITE", `${request("0000 0001", RANGE)} aabbccdd`, simple("00000000")],
      ["FLUSH", request("0000 0003", "0000000000000000 00000000"), simple("00000000")],
      ["WRITE past the end", `${request("0000 0001", PAST)} ff`, simple("0000001c")],
      [
        "BLOCK_STATUS",
        request("0000 0007", "0000000000000000 00002000"),
        chunk("0001", "0005", "00000001 00001000 00000000 00001000 00000003"),
      ],
      [
        "BLOCK_STATUS of one extent",
        request("0008 0007", "0000000000000000 00002000"),
        chunk("0001", "0005", "00000001 00001000 00000000"),
      ],
      ["BLOCK_STATUS past the end", request("0000 0007", PAST), chunk("0001", "8001", complaint)],
      ["DISC", request("0000 0002", "0000000000000000 00000000"), ""],
    ]));

  const wideRequest = (flagsAndCommand: string, range: string) => `21e41c71 ${flagsAndCommand} ${COOKIE} ${range}`;
  const wide = (type: string, offset: string, payload: string) =>
    `6e8a278c 0001 ${type} ${COOKIE} ${offset} ${hex(payload).length.toString(16).padStart(16, "0")} ${payload}`;
  const AT = "0000000000000002";
  const FOUR = `${AT} 0000000000000004`;

  test("extended requests and replies", () =>
    play([
      GREETING,
      EXTENDED,
      SELECT,
      go("0ded"),
      ["READ", wideRequest("0000 0000", FOUR), wide("0001", AT, `${AT} 03040506`)],
      ["WRITE", `${wideRequest("0020 0001", FOUR)} aabbccdd`, wide("0000", AT, "")],
      ["WRITE with FUA", `${wideRequest("0021 0001", FOUR)} a1b1c1d1`, wide("0000", AT, "")],
      ["WRITE as QEMU sends it", `${wideRequest("0000 0001", FOUR)} a2b2c2d2`, wide("0000", AT, "")],
      ["FLUSH", wideRequest("0000 0003", "0000000000000000 0000000000000000"), wide("0000", "0000000000000000", "")],
      ["TRIM", wideRequest("0000 0004", FOUR), wide("0000", AT, "")],
      ["CACHE", wideRequest("0000 0005", FOUR), wide("0000", AT, "")],
      ["WRITE_ZEROES, FAST_ZERO", wideRequest("0010 0006", FOUR), wide("0000", AT, "")],
      [
        "TRIM of 2^64−1 bytes",
        wideRequest("0000 0004", `ffffffffffffffff ffffffffffffffff`),
        wide("8001", "ffffffffffffffff", complaint),
      ],
      [
        "BLOCK_STATUS",
        wideRequest("0000 0007", "0000000000000000 0000000000002000"),
        wide(
          "0006",
          "0000000000000000",
          `00000001 00000002 0000000000001000 0000000000000000 0000000000001000 0000000000000003`,
        ),
      ],
      [
        "BLOCK_STATUS with a payload",
        `${wideRequest("0020 0007", "0000000000000000 000000000000000c")} 0000000000002000 00000001`,
        wide("8001", "0000000000000000", complaint),
      ],
      ["DISC", wideRequest("0000 0002", "0000000000000000 0000000000000000"), ""],
    ]));
});
