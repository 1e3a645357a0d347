import { closeSync, openSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { RealFiles } from "../../../src/os/files.ts";
import { NativeCalls } from "../../../src/os/native-calls.ts";
import { NowaitReader } from "../../../src/os/native-now.ts";
import { pattern } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { requireHost } from "../../support/tools.ts";
import { diskDirectory, native, PLACES, WITH_NATIVE } from "./places.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

describe("reading without waiting", () => {
  test("is refused by a cold file, which then is read all the same, and is granted by a warm one", async () => {
    using folder = tempDir(diskDirectory());
    const path = folder.file("image");
    await using file = await new RealFiles(WITH_NATIVE).open({ path, writable: true, create: true });
    await file.write(0, pattern(0, 64 * MIB));
    await file.dataSync();
    const calls = new NativeCalls(native());
    const fd = openSync(path, "r");
    const into = Buffer.alloc(32 * KIB);
    // The kernel keeps pages that somebody happens to look at: of 64 places, nearly all must be cold.
    let cold = 0;
    try {
      expect(await calls.dropCached(fd, 0, 0)).toBe(0);
      for (let at = 0; at < 64 * MIB; at += MIB) if (file.readNow(at, into) === -1) cold += 1;
    } finally {
      closeSync(fd);
    }
    expect(cold).toBeGreaterThan(32);
    expect(file.features.readNow).toBe(true);
    for (let at = 0; at < 64 * MIB; at += 8 * MIB) {
      expect(await file.read(at, into)).toBe(32 * KIB);
      expect(into.equals(pattern(at, 32 * KIB))).toBe(true);
      into.fill(0xee);
      expect(file.readNow(at, into)).toBe(32 * KIB);
      expect(into.equals(pattern(at, 32 * KIB))).toBe(true);
    }
  });

  test("is given up for a file whose file system cannot do it", async (context) => {
    const place = PLACES.find(({ inMemory }) => inMemory);
    requireHost(context, place ? undefined : "needs a tmpfs at /dev/shm");
    using folder = tempDir(place?.directory);
    const path = folder.file("image");
    await using file = await new RealFiles(WITH_NATIVE).open({ path, writable: true, create: true });
    await file.write(0, pattern(0, 4 * KIB));
    // Where tmpfs can, both are fine; what must not be is a file that fails each time and goes on trying.
    const count = file.readNow(0, Buffer.alloc(4 * KIB));
    expect(file.features.readNow).toBe(count === 4 * KIB);
  });

  test("follows a buffer that is transferred, and reads nothing into what is left of it", async () => {
    using folder = tempDir(diskDirectory());
    const path = folder.file("image");
    await using file = await new RealFiles(WITH_NATIVE).open({ path, writable: true, create: true });
    await file.write(0, pattern(0, 64 * KIB));
    const first = new Uint8Array(8 * KIB);
    expect(file.readNow(0, first)).toBe(8 * KIB);
    const moved = new Uint8Array(first.buffer.transfer(16 * KIB));
    expect(file.readNow(0, first)).toBe(0);
    expect(file.readNow(32 * KIB, moved)).toBe(16 * KIB);
    expect(Buffer.from(moved).equals(pattern(32 * KIB, 16 * KIB))).toBe(true);
  });

  test("reads into small arrays, which V8 may keep on its heap at first", async () => {
    using folder = tempDir(diskDirectory());
    const path = folder.file("image");
    await using file = await new RealFiles(WITH_NATIVE).open({ path, writable: true, create: true });
    await file.write(0, pattern(0, 64 * KIB));
    for (let length = 1; length < 128; length++) {
      const into = new Uint8Array(length);
      expect(file.readNow(length, into)).toBe(length);
      expect(Buffer.from(into).equals(pattern(length, length))).toBe(true);
    }
  });

  test("tells errors by their numbers", () => {
    const reader = NowaitReader.create(native());
    expect(reader?.read(-1, 0, new Uint8Array(16))).toBe(-9);
    const fd = openSync(process.execPath, "r");
    expect(reader?.read(fd, -5, new Uint8Array(16))).toBe(-22);
    expect(reader?.read(fd, 2 ** 50, new Uint8Array(16))).toBe(0);
    closeSync(fd);
  });
});
