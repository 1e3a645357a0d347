import { openSync, readFileSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { describe, expect, test } from "vitest";
import { OnceWriter } from "../../../src/os/file-write-once.ts";
import { RealFiles } from "../../../src/os/files.ts";
import { loadNative } from "../../../src/os/native.ts";
import { NativeCalls } from "../../../src/os/native-calls.ts";
import { pattern } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";

const { EIO } = constants.errno;
const MIB = 1024 * 1024;
const loaded = loadNative({ disabled: false });

describe("writes of what nobody will read soon", () => {
  test("are in the file like any others, at any offset and length", async () => {
    using dir = tempDir();
    const path = dir.file("image");
    writeFileSync(path, Buffer.alloc(0));
    await using file = await new RealFiles(loaded).open({ path, writable: true });
    const ranges: [number, number][] = [
      [0, MIB],
      [MIB, 128 * 1024],
      [3 * MIB + 512, 200_001],
      [5 * MIB, 100],
    ];
    await Promise.all(ranges.map(([offset, length]) => file.write(offset, pattern(offset, length), { once: true })));
    await file.dataSync();
    const found = readFileSync(path);
    expect(found).toHaveLength(5 * MIB + 100);
    for (const [offset, length] of ranges) {
      expect(found.subarray(offset, offset + length).equals(pattern(offset, length))).toBe(true);
    }
    expect(found.subarray(MIB + 128 * 1024, 3 * MIB + 512).every((byte) => byte === 0)).toBe(true);
  });

  test("fail with the kernel's reason", async () => {
    using dir = tempDir();
    const path = dir.file("image");
    writeFileSync(path, Buffer.alloc(0));
    await using file = await new RealFiles(loaded).open({ path, writable: false });
    await expect(file.write(0, Buffer.alloc(MIB), { once: true })).rejects.toMatchObject({ code: "EBADF" });
  });

  describe("through the kernel's calls", () => {
    const native = (): NativeCalls => {
      if (loaded.state === "off") throw new Error(loaded.reason);
      return new NativeCalls(loaded.native);
    };
    const write = (writer: OnceWriter, offset: number) =>
      new Promise<Error | null>((resolve) => writer.write(offset, pattern(offset, MIB), resolve));

    test("are written back before they count as done, and leave the page cache where the kernel does not see to it", async () => {
      using dir = tempDir();
      writeFileSync(dir.file("image"), Buffer.alloc(0));
      const calls = native();
      const told: string[] = [];
      const { writeOut } = calls;
      calls.writeOut = (fd, offset, length) => {
        told.push(`out ${offset}+${length}`);
        return writeOut.call(calls, fd, offset, length);
      };
      calls.dropCached = async (_fd, offset, length) => {
        told.push(`drop ${offset}+${length}`);
        return 0;
      };
      const writer = new OnceWriter(openSync(dir.file("image"), "r+"), calls, false);
      expect(await write(writer, MIB)).toBeNull();
      expect(told).toEqual([`out ${MIB}+${MIB}`, `drop ${MIB}+${MIB}`]);
      expect(readFileSync(dir.file("image")).subarray(MIB).equals(pattern(MIB, MIB))).toBe(true);
    });

    test("are two at a time, and fail when their write-back does", async () => {
      using dir = tempDir();
      writeFileSync(dir.file("image"), Buffer.alloc(0));
      const calls = native();
      const held: ((result: number) => void)[] = [];
      calls.writeOut = () => new Promise((resolve) => held.push(resolve));
      const writer = new OnceWriter(openSync(dir.file("image"), "r+"), calls);
      const writes = [0, 1, 2, 3].map((index) => write(writer, index * MIB));
      await expect.poll(() => held.length).toBe(2);
      held.shift()?.(-EIO);
      await expect.poll(() => held.length).toBe(2);
      for (const release of held.splice(0)) release(0);
      await expect.poll(() => held.length).toBe(1);
      held[0]?.(0);
      const outcomes = await Promise.all(writes);
      expect(outcomes.filter((error) => error !== null)).toMatchObject([{ code: "EIO" }]);
    });
  });
});
