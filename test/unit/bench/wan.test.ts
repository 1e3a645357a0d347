/** What tells right bytes from wrong ones in the suite `wan`. */
import { describe, expect, it } from "vitest";
import { patternMismatch } from "../../../bench/suites/wan-scene.ts";

function made(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at += 8) bytes.writeBigUInt64BE(BigInt(offset + at), at);
  return bytes;
}

describe("bytes that a source makes up", () => {
  it("are right at their own offset, also beyond 4 GiB", () => {
    for (const offset of [0, 4096, 2 ** 32 - 8, 63 * 2 ** 30])
      expect(patternMismatch(made(offset, 64), offset)).toBe(-1);
  });

  it("are wrong at another offset, from the first of them on", () => {
    expect(patternMismatch(made(4096, 64), 8192)).toBe(8192);
    expect(patternMismatch(made(2 ** 32, 64), 0)).toBe(0);
  });

  it("are wrong where one of them is, and where there are zeroes instead", () => {
    const bytes = made(2 ** 32, 64);
    bytes[63] = 0xff;
    expect(patternMismatch(bytes, 2 ** 32)).toBe(2 ** 32 + 56);
    expect(patternMismatch(Buffer.alloc(64), 4096)).toBe(4096);
  });
});
