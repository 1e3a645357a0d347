import { describe, expect, test } from "vitest";
import {
  decodeOptionReply,
  decodeString,
  encodeInfoRequest,
  encodeMetaContextQuery,
  encodeOption,
  encodeString,
  readU64,
  viewOf,
  writeRequest,
  writeU64,
} from "../../../../src/nbd/client/wire.ts";
import { NbdProtocolError } from "../../../../src/nbd/error.ts";

const joined = (...parts: string[]): string => parts.join("");
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("numbers of 64 bits", () => {
  test("come back as they were, up to 2^53−1", () => {
    const view = new DataView(new ArrayBuffer(8));
    for (const value of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 7, 2 ** 53 - 1]) {
      writeU64(view, 0, value);
      expect(view.getBigUint64(0)).toBe(BigInt(value));
      expect(readU64(view, 0)).toBe(value);
    }
  });

  test("are infinite when a number cannot hold them exactly", () => {
    const view = new DataView(new ArrayBuffer(8));
    for (const value of [2n ** 53n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n]) {
      view.setBigUint64(0, value);
      expect(readU64(view, 0)).toBe(Infinity);
    }
  });
});

describe("options", () => {
  test("have these bytes on the wire", () => {
    expect(hex(encodeOption(8, new Uint8Array(0)))).toBe("49484156454f50540000000800000000");
    expect(hex(encodeOption(1, Buffer.from("disk")))).toBe("49484156454f505400000001000000046469736b");
  });

  test("GO names the export and the information wanted", () => {
    expect(hex(encodeInfoRequest("vdä", [3, 1]))).toBe("00000004" + "7664c3a4" + "0002" + "0003" + "0001");
    expect(hex(encodeInfoRequest("", []))).toBe("00000000" + "0000");
  });

  test("SET_META_CONTEXT names the export and each query", () => {
    expect(hex(encodeMetaContextQuery("a", ["b:c", ""]))).toBe(
      "00000001" + "61" + "00000002" + "00000003" + "623a63" + "00000000",
    );
    expect(hex(encodeMetaContextQuery("", []))).toBe("00000000" + "00000000");
  });

  test("names that the protocol does not allow are refused before anything is sent", () => {
    expect(encodeString("ä".repeat(2048))).toHaveLength(4096);
    expect(() => encodeString("ä".repeat(2049))).toThrow(/4096 bytes/);
    expect(() => encodeString("a\0b")).toThrow(/NUL/);
    expect(() => encodeString("\ud800")).toThrow(/NUL/);
  });
});

describe("option replies", () => {
  const reply = (magic: string, option: number, type: number, length: number): Buffer =>
    Buffer.from(magic + [option, type, length].map((value) => value.toString(16).padStart(8, "0")).join(""), "hex");
  const MAGIC = "0003e889045565a9";

  test("are decoded", () => {
    expect(decodeOptionReply(reply(MAGIC, 7, 3, 12), 7)).toEqual({ type: 3, length: 12 });
  });

  test("with a wrong magic, to another option, or longer than 32 KiB are violations", () => {
    expect(() => decodeOptionReply(reply("0003e889045565a8", 7, 1, 0), 7)).toThrow(NbdProtocolError);
    expect(() => decodeOptionReply(reply(MAGIC, 6, 1, 0), 7)).toThrow(/option 6/);
    expect(decodeOptionReply(reply(MAGIC, 7, 3, 32_768), 7).length).toBe(32_768);
    expect(() => decodeOptionReply(reply(MAGIC, 7, 3, 32_769), 7)).toThrow(/too long/);
  });

  test("carry strings of at most 4096 bytes of UTF-8 without NUL", () => {
    expect(decodeString(Buffer.from("räksmörgås"), "it")).toBe("räksmörgås");
    expect(decodeString(Buffer.alloc(4096, 0x61), "it")).toHaveLength(4096);
    expect(() => decodeString(Buffer.alloc(4097, 0x61), "it")).toThrow(/it of 4097 bytes/);
    expect(() => decodeString(Buffer.from([0x61, 0]), "it")).toThrow(/NUL/);
    expect(() => decodeString(Buffer.from([0xc3]), "it")).toThrow(/UTF-8/);
  });
});

describe("request headers", () => {
  const header = { command: 6, flags: 3, cookieHigh: 0x01020304, cookieLow: 0xa0b0c0d0, offset: 2 ** 40 + 5 };

  test("compact ones are 28 bytes", () => {
    const bytes = new Uint8Array(40);
    expect(writeRequest(viewOf(bytes), 2, { ...header, length: 0xffff_fffe }, false)).toBe(28);
    expect(hex(bytes)).toBe(
      joined("0000", "25609513", "0003", "0006", "01020304a0b0c0d0", "0000010000000005", "fffffffe", "00".repeat(10)),
    );
  });

  test("extended ones are 32 bytes, with a length of 64 bits", () => {
    const bytes = new Uint8Array(32);
    expect(writeRequest(viewOf(bytes), 0, { ...header, length: 2 ** 45 }, true)).toBe(32);
    expect(hex(bytes)).toBe(
      "21e41c71" + "0003" + "0006" + "01020304a0b0c0d0" + "0000010000000005" + "0000200000000000",
    );
  });
});
