/** Block devices, by loop devices over a file: for root only. */
import { execFileSync, spawnSync } from "node:child_process";
import { closeSync, openSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { describe, expect, type TestContext, vi } from "vitest";
import { RealFiles } from "../../../src/os/files.ts";
import { loadNative, type NativeResult } from "../../../src/os/native.ts";
import { NativeCalls } from "../../../src/os/native-calls.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith, requireRoot } from "../../support/tools.ts";

const { EAGAIN } = constants.errno;
const MIB = 2 ** 20;
const SIZE_BYTES = 16 * MIB;

const withNative = loadNative({ disabled: false });
const withoutNative = loadNative({ disabled: true });

/** A loop device of `SIZE_BYTES`, full of pattern. */
class LoopDevice implements Disposable {
  readonly path: string;
  /** The file below it. */
  readonly image: string;
  readonly #folder = tempDir();

  constructor() {
    this.image = this.#folder.file("image");
    makeImage(this.image, SIZE_BYTES);
    this.path = execFileSync("losetup", ["-f", "--show", this.image], { encoding: "utf8" }).trim();
  }

  [Symbol.dispose](): void {
    execFileSync("losetup", ["-d", this.path]);
    this.#folder[Symbol.dispose]();
  }
}

function itOnDevice(
  title: string,
  body: (device: LoopDevice, files: RealFiles) => Promise<void>,
  native: NativeResult,
) {
  itWith(["losetup"], title, async (context: TestContext) => {
    requireRoot(context, "attaching a loop device");
    using device = new LoopDevice();
    await body(device, new RealFiles(native));
  });
}

for (const native of [withNative, withoutNative]) {
  describe(`a block device, ${native.state === "loaded" ? "with" : "without"} native calls,`, () => {
    itOnDevice(
      "has a kind and a size, all of which is data",
      async ({ path }, files) => {
        await using file = await files.open({ path, writable: true });
        expect(file.kind).toBe("block-device");
        expect(await file.sizeBytes()).toBe(SIZE_BYTES);
        expect(await file.allocatedBytes()).toBe(0);
        expect(file.features.extents).toBe(false);
        expect(await file.extentAt(0)).toEqual({ kind: "data", end: SIZE_BYTES });
        expect(await file.extentAt(5 * MIB)).toEqual({ kind: "data", end: SIZE_BYTES });
      },
      native,
    );

    itOnDevice(
      "reads back what was written, at once or not",
      async ({ path }, files) => {
        await using file = await files.open({ path, writable: true });
        const bytes = pattern(3 * MIB, 64 * 1024, 2);
        expect(file.writeNow(3 * MIB, bytes)).toBe(bytes.length);
        await file.write(4 * MIB + 100, bytes);
        await file.dataSync();
        const into = Buffer.alloc(bytes.length);
        for (const offset of [3 * MIB, 4 * MIB + 100]) {
          expect(await file.read(offset, into)).toBe(bytes.length);
          expect(into.equals(bytes)).toBe(true);
        }
        expect(file.readNow(3 * MIB, into)).toBe(native.state === "loaded" ? into.length : -1);
        await expect(file.write(SIZE_BYTES, bytes)).rejects.toMatchObject({ name: "FileError", code: "ENOSPC" });
      },
      native,
    );
  });
}

describe("a block device", () => {
  itOnDevice(
    "punches and zeroes, in whole sectors only",
    async ({ path }, files) => {
      await using file = await files.open({ path, writable: true });
      expect(file.features).toMatchObject({ punchHole: true, zeroRange: true });
      const into = Buffer.alloc(MIB);
      expect(await file.punchHole(MIB, MIB)).toBe(true);
      expect(await file.zeroRange(4 * MIB, MIB)).toBe(true);
      for (const offset of [MIB, 4 * MIB]) {
        await file.read(offset, into);
        expect(into.equals(Buffer.alloc(MIB))).toBe(true);
      }
      expect(await file.punchHole(8 * MIB + 1, 100)).toBe(false);
      expect(await file.zeroRange(8 * MIB + 1, 100)).toBe(false);
      expect(file.features).toMatchObject({ punchHole: true, zeroRange: true });
      for (const offset of [2 * MIB, 3 * MIB, 5 * MIB, 8 * MIB]) {
        await file.read(offset, into);
        expect(into.equals(pattern(offset, MIB))).toBe(true);
      }
    },
    withNative,
  );

  itOnDevice(
    "punches and zeroes what has just been written, also while we hold the claim",
    async ({ path }, files) => {
      await using file = await files.open({ path, writable: true });
      await file.lock("exclusive");
      await file.write(MIB, pattern(3 * MIB, 2 * MIB));
      expect(await file.punchHole(MIB, MIB)).toBe(true);
      expect(await file.zeroRange(2 * MIB, MIB)).toBe(true);
      const into = Buffer.alloc(2 * MIB);
      await file.read(MIB, into);
      expect(into.equals(Buffer.alloc(2 * MIB))).toBe(true);
    },
    withNative,
  );

  itOnDevice(
    "reads from the disk again what was taken out of the page cache",
    async ({ path, image }, files) => {
      await using file = await files.open({ path, writable: true });
      const into = Buffer.alloc(MIB);
      await file.read(MIB, into);
      const below = openSync(image, "r+");
      writeSync(below, pattern(MIB, MIB, 6), 0, MIB, MIB);
      closeSync(below);
      expect(await file.dropClean?.(MIB, MIB)).toBe(true);
      await file.read(MIB, into);
      expect(into.equals(pattern(MIB, MIB, 6))).toBe(true);
    },
    withNative,
  );

  itOnDevice(
    "is locked like a file, and a claim keeps it from being mounted",
    async ({ path }, files) => {
      execFileSync("mkfs.ext4", ["-q", "-F", path]);
      using folder = tempDir();
      const holder = await files.open({ path, writable: true });
      await holder.lock("exclusive");
      await using other = await files.open({ path, writable: true });
      await expect(other.lock("exclusive")).rejects.toMatchObject({ name: "FileError", code: "EAGAIN" });
      expect(spawnSync("qemu-io", ["-f", "raw", "-c", "write 0 4k", path], { encoding: "utf8" }).stderr).toContain(
        "lock",
      );
      expect(spawnSync("mount", [path, folder.path]).status).not.toBe(0);
      await holder.close();
      // And the other way round.
      execFileSync("mount", [path, folder.path]);
      try {
        await expect(other.lock("exclusive")).rejects.toThrow(/it is mounted/);
      } finally {
        execFileSync("umount", [path]);
      }
      await other.lock("exclusive");
    },
    withNative,
  );

  itOnDevice(
    "is patient with somebody who only looks at it, as udev does with a shared flock",
    async ({ path }, files) => {
      if (withNative.state === "off") throw new Error(withNative.reason);
      const [LOCK_SH, LOCK_NB] = [1, 4];
      const fd = openSync(path, "r");
      expect(await new NativeCalls(withNative.native).flock(fd, LOCK_SH | LOCK_NB)).toBe(0);
      await using file = await files.open({ path, writable: true });
      using flock = vi.spyOn(NativeCalls.prototype, "flockNow");
      const told = (): unknown[] => flock.mock.results.map(({ value }) => value as unknown);
      const locking = file.lock("exclusive");
      await expect.poll(() => told().length).toBeGreaterThanOrEqual(2);
      expect(told()).toEqual(told().map(() => -EAGAIN));
      closeSync(fd);
      await locking;
      expect(told().at(-1)).toBe(0);
    },
    withNative,
  );
});
