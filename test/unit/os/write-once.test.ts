import { openSync, readFileSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { OnceWriter } from "../../../src/os/file-write-once.ts";
import { RealFiles } from "../../../src/os/files.ts";
import { loadNative } from "../../../src/os/native.ts";
import { NativeCalls } from "../../../src/os/native-calls.ts";
import { pattern } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";

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

  test.skipIf(loaded.state === "off")(
    "leave the page cache after a sync where the kernel does not see to it",
    async () => {
      if (loaded.state === "off") return;
      using dir = tempDir();
      const path = dir.file("image");
      writeFileSync(path, Buffer.alloc(0));
      const calls = new NativeCalls(loaded.native);
      const fd = openSync(path, "r+");
      const dropped: [number, number][] = [];
      calls.dropCached = async (_fd, offset, length) => {
        dropped.push([offset, length]);
        return 0;
      };
      const writer = new OnceWriter(fd, calls, false);
      const write = (offset: number) =>
        new Promise<Error | null>((resolve) => writer.write(offset, pattern(offset, MIB), resolve));
      expect([await write(0), await write(MIB), await write(4 * MIB)]).toEqual([null, null, null]);
      const synced = writer.syncStarts();
      // Written while the sync runs: not clean when it ends.
      await write(8 * MIB);
      expect(dropped).toEqual([]);
      synced();
      expect(dropped).toEqual([
        [0, 2 * MIB],
        [4 * MIB, MIB],
      ]);
      writer.syncStarts()();
      expect(dropped.at(-1)).toEqual([8 * MIB, MIB]);
      expect(
        readFileSync(path)
          .subarray(0, 2 * MIB)
          .equals(pattern(0, 2 * MIB)),
      ).toBe(true);
    },
  );
});
