import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Pattern } from "../../../bench/lib/pattern.ts";
import { createPatternFile } from "../../../bench/lib/prepare.ts";
import { verifyCopy, verifyFile } from "../../../bench/lib/verify.ts";
import { itSeeded } from "../../support/seed.ts";

const MIB = 2 ** 20;

/** What fio fills a request of `unitBytes` with, built the slow way from its own argument. */
function asFio(argument: string, unitBytes: number, offset: number): Buffer {
  const text = /^%o"(.*)"$/.exec(argument)?.[1] ?? "";
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(offset));
  const once = Buffer.concat([head, Buffer.from(text, "latin1")]);
  return Buffer.concat(Array.from({ length: unitBytes / once.length }, () => once));
}

describe("a pattern", () => {
  test.each([512, 4096])("is what fio writes in requests of %i bytes", (unitBytes) => {
    const pattern = new Pattern("sample 3 of nbdkit", unitBytes);
    for (const offset of [0, unitBytes, 5 * 2 ** 32 + 7 * unitBytes]) {
      expect(pattern.expected(offset, unitBytes)).toEqual(asFio(pattern.fioArgument, unitBytes, offset));
    }
  });

  test("fits into the 512 bytes that fio allows", () => {
    expect(asFio(new Pattern("x").fioArgument, 512, 0)).toHaveLength(512);
  });

  test("has no sector of zeroes, and no two alike", () => {
    const bytes = Buffer.from(new Pattern("x").expected(0, 64 * 512));
    const sectors = Array.from({ length: 64 }, (_, index) => bytes.toString("latin1", index * 512, index * 512 + 512));
    expect(new Set(sectors).size).toBe(64);
    expect(sectors.some((sector) => /^\0+$/.test(sector))).toBe(false);
  });

  itSeeded("finds any one changed byte, wherever the piece begins", (rng) => {
    const pattern = new Pattern("x", rng.pick([512, 4096]));
    const disk = Buffer.concat([0, MIB, 2 * MIB].map((offset) => Buffer.from(pattern.expected(offset, MIB))));
    for (let round = 0; round < 50; round++) {
      const offset = rng.integer(0, 2 * MIB);
      const piece = Buffer.from(disk.subarray(offset, offset + rng.integer(1, disk.length - offset)));
      expect(pattern.mismatch(piece, offset)).toBe(-1);
      const at = rng.integer(0, piece.length - 1);
      piece[at] = (piece[at] ?? 0) ^ rng.integer(1, 255);
      expect(pattern.mismatch(piece, offset)).toBe(offset + at);
    }
  });

  test("tells data of another place and of another run apart", () => {
    const pattern = new Pattern("run 1");
    const elsewhere = Buffer.from(pattern.expected(4096, 4096));
    expect(pattern.mismatch(elsewhere, 8192)).toBeGreaterThanOrEqual(8192);
    expect(new Pattern("run 2").mismatch(elsewhere, 4096)).toBeGreaterThanOrEqual(4096);
  });
});

describe("verification", () => {
  const pattern = new Pattern("disk");
  let folder = "";
  let path = "";
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "bench-test-"));
    path = join(folder, "disk");
    await createPatternFile(path, 3 * MIB + 512, pattern);
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const whole = { offset: 0, length: 3 * MIB + 512 };

  async function copyWith(change: (bytes: Buffer) => void): Promise<string> {
    const copy = join(folder, "copy");
    const parts = [0, MIB, 2 * MIB].map((offset) => Buffer.from(pattern.expected(offset, MIB)));
    const bytes = Buffer.concat([...parts, pattern.expected(3 * MIB, 512)]);
    change(bytes);
    writeFileSync(copy, bytes);
    return copy;
  }

  test("accepts the file that was prepared, and its copy", async () => {
    await verifyFile(path, whole, pattern);
    await verifyCopy(path, await copyWith(() => {}), whole.length);
  });

  test("names the first wrong byte", async () => {
    const copy = await copyWith((bytes) => {
      bytes[2 * MIB + 77] = 0;
    });
    await expect(verifyFile(copy, whole, pattern)).rejects.toThrow(String(2 * MIB + 77));
    await expect(verifyCopy(path, copy, whole.length)).rejects.toThrow(String(2 * MIB + 77));
  });

  test("does not take a copy that was never made, or not finished, for a good one", async () => {
    const copy = await copyWith((bytes) => bytes.fill(0));
    await expect(verifyCopy(path, copy, whole.length)).rejects.toThrow(/differs/);
    truncateSync(path, 2 * MIB);
    await expect(verifyFile(path, whole, pattern)).rejects.toThrow(/ends at/);
  });
});
