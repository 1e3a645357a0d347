import { readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import type { File } from "../../../src/env/files.ts";
import { RealFiles } from "../../../src/os/files.ts";
import { pattern } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { PLACES, type Place, WITH_NATIVE, WITHOUT_NATIVE } from "./places.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

async function contents(file: File, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length, 0xee);
  const count = await file.read(offset, bytes);
  return bytes.subarray(0, count);
}

for (const place of PLACES) {
  for (const native of [WITH_NATIVE, WITHOUT_NATIVE]) {
    const title = `a file on ${place.name}, ${native.state === "loaded" ? "with" : "without"} native calls,`;
    describe(title, () => everyFile(place, new RealFiles(native)));
  }
  describe(`a file on ${place.name}, with native calls,`, () => nativeFile(place, new RealFiles(WITH_NATIVE)));
  describe(`a file on ${place.name}, without native calls,`, () => plainFile(place, new RealFiles(WITHOUT_NATIVE)));
}

async function created(files: RealFiles, folder: TempDir, sizeBytes = MIB): Promise<File> {
  const file = await files.open({ path: folder.file("image"), writable: true, create: true });
  await file.truncate(sizeBytes);
  return file;
}

function everyFile(place: Place, files: RealFiles): void {
  test("reads back what was written, also past the end", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 0);
    await file.write(5 * KIB + 1, pattern(5 * KIB + 1, 70_001));
    expect(await file.sizeBytes()).toBe(5 * KIB + 1 + 70_001);
    expect(await contents(file, 5 * KIB + 1, 70_001)).toEqual(pattern(5 * KIB + 1, 70_001));
    expect(await contents(file, 0, 5 * KIB + 1)).toEqual(Buffer.alloc(5 * KIB + 1));
  });

  test("reads fewer bytes only at its end", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 10_000);
    await file.write(0, pattern(0, 10_000));
    expect(await contents(file, 9_000, 4_096)).toEqual(pattern(9_000, 1_000));
    expect(await contents(file, 10_000, 4_096)).toHaveLength(0);
    expect(await contents(file, 20_000, 4_096)).toHaveLength(0);
    expect(await contents(file, 0, 0)).toHaveLength(0);
    expect(file.readNow(9_000, new Uint8Array(4_096))).toBe(-1);
  });

  test("reads into a view in the middle of a buffer, and touches nothing else", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    await file.write(0, pattern(0, 64 * KIB));
    const buffer = new Uint8Array(16 * KIB).fill(0xee);
    const view = buffer.subarray(3 * KIB, 7 * KIB);
    if (file.readNow(8 * KIB, view) < 0) await file.read(8 * KIB, view);
    expect(Buffer.from(view)).toEqual(pattern(8 * KIB, 4 * KIB));
    expect(buffer.subarray(0, 3 * KIB).every((byte) => byte === 0xee)).toBe(true);
    expect(buffer.subarray(7 * KIB).every((byte) => byte === 0xee)).toBe(true);
  });

  test("stores a whole block at once, where everybody sees it", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    expect(file.writeNow(12 * KIB, pattern(12 * KIB, 8 * KIB))).toBe(8 * KIB);
    expect(readFileSync(file.path).subarray(12 * KIB, 20 * KIB)).toEqual(pattern(12 * KIB, 8 * KIB));
  });

  test("does not extend itself at once, nor store more than a loop may wait for", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 2 * MIB);
    expect(file.writeNow(2 * MIB - 4 * KIB, pattern(0, 8 * KIB))).toBe(-1);
    expect(file.writeNow(2 * MIB, pattern(0, 4 * KIB))).toBe(-1);
    expect(file.writeNow(0, pattern(0, MIB + 4 * KIB))).toBe(-1);
    expect(statSync(file.path).size).toBe(2 * MIB);
    await file.write(2 * MIB, pattern(2 * MIB, 4 * KIB));
    expect(file.writeNow(2 * MIB, pattern(0, 4 * KIB))).toBe(4 * KIB);
  });

  test("takes its size from the file, whoever changed it", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 8 * KIB);
    truncateSync(file.path, 3 * MIB);
    expect(await file.sizeBytes()).toBe(3 * MIB);
    await file.truncate(KIB);
    expect(await file.sizeBytes()).toBe(KIB);
    expect(file.writeNow(0, pattern(0, 4 * KIB))).toBe(-1);
  });

  test("says how much storage it occupies", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 16 * MIB);
    expect(await file.allocatedBytes()).toBeLessThan(64 * KIB);
    await file.write(MIB, pattern(MIB, MIB));
    await file.dataSync();
    expect(await file.allocatedBytes()).toBeGreaterThanOrEqual(MIB);
    expect(await file.allocatedBytes()).toBeLessThan(2 * MIB);
  });

  test("takes hints without complaint", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    await file.write(0, pattern(0, MIB));
    for (let i = 0; i < 200; i++) {
      file.willNeed(i * 4 * KIB, 4 * KIB);
      file.startWriteback(i * 4 * KIB, 4 * KIB);
    }
    file.willNeed(0, 0);
    await file.dataSync();
  });

  test("waits for what is under way when it is closed, and does nothing afterwards", async () => {
    using folder = tempDir(place.directory);
    const file = await created(files, folder, 0);
    let written = 0;
    for (let i = 0; i < 32; i++) {
      void file.write(i * 256 * KIB, pattern(i * 256 * KIB, 256 * KIB)).then(() => {
        written += 1;
      });
    }
    const closing = file.close();
    expect(file.readNow(0, new Uint8Array(16))).toBe(-1);
    expect(file.writeNow(0, new Uint8Array(4_096))).toBe(-1);
    await closing;
    expect(written).toBe(32);
    await file.close();
    for (const late of [
      file.read(0, new Uint8Array(1)),
      file.write(0, new Uint8Array(1)),
      file.sizeBytes(),
      file.truncate(0),
      file.dataSync(),
      file.extentAt(0),
      file.lock("shared"),
    ]) {
      await expect(late).rejects.toMatchObject({ name: "FileError", code: "EBADF" });
    }
    file.willNeed(0, 1);
    file.startWriteback(0, 1);
  });

  test("refuses to change what was opened for reading", async () => {
    using folder = tempDir(place.directory);
    const path = folder.file("image");
    writeFileSync(path, pattern(0, 8 * KIB));
    await using file = await files.open({ path, writable: false });
    expect(file.writable).toBe(false);
    expect(file.writeNow(0, pattern(0, 4 * KIB))).toBe(-1);
    expect(await file.punchHole(0, 4 * KIB)).toBe(false);
    expect(await file.zeroRange(0, 4 * KIB)).toBe(false);
    const write = file.write(4 * KIB, pattern(0, 4 * KIB));
    await expect(write).rejects.toThrow(`cannot write 4096 bytes at 4096 of ${path}: bad file descriptor (EBADF)`);
    await expect(file.truncate(0)).rejects.toMatchObject({ name: "FileError" });
    expect(readFileSync(path)).toEqual(pattern(0, 8 * KIB));
  });

  test("says data of everything it cannot tell, and refuses offsets past its end", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 4 * MIB);
    await file.write(MIB, pattern(MIB, MIB));
    const extents: string[] = [];
    for (let offset = 0; offset < 4 * MIB; ) {
      const { kind, end } = await file.extentAt(offset);
      extents.push(`${kind} ${offset / MIB}-${end / MIB}`);
      expect(end).toBeGreaterThan(offset);
      offset = end;
    }
    expect(extents).toEqual(file.features.extents ? ["hole 0-1", "data 1-2", "hole 2-4"] : ["data 0-4"]);
    await expect(file.extentAt(4 * MIB)).rejects.toMatchObject({ name: "FileError", code: "EINVAL" });
  });
}

function nativeFile(place: Place, files: RealFiles): void {
  test("punches holes: they read as zeroes, are reported, and give space back", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 4 * MIB);
    await file.write(0, pattern(0, 4 * MIB));
    await file.dataSync();
    expect(await file.extentAt(MIB)).toEqual({ kind: "data", end: 4 * MIB });
    const before = await file.allocatedBytes();
    expect(await file.punchHole(MIB, 2 * MIB)).toBe(true);
    expect(await file.allocatedBytes()).toBe(before - 2 * MIB);
    expect(await file.extentAt(MIB + 4 * KIB)).toEqual({ kind: "hole", end: 3 * MIB });
    expect(await file.extentAt(0)).toEqual({ kind: "data", end: MIB });
    expect(await contents(file, MIB - 1, 2)).toEqual(Buffer.from([pattern(MIB - 1, 1)[0] ?? 0, 0]));
    expect(await contents(file, 3 * MIB - 1, 2)).toEqual(Buffer.from([0, pattern(3 * MIB, 1)[0] ?? 0]));
    expect(await file.sizeBytes()).toBe(4 * MIB);
  });

  test("writes nothing at once while it punches a hole, for which it would have to wait", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 4 * MIB);
    const punched = file.punchHole(0, MIB);
    expect(file.writeNow(2 * MIB, pattern(2 * MIB, 4 * KIB))).toBe(-1);
    await punched;
    expect(file.writeNow(2 * MIB, pattern(2 * MIB, 4 * KIB))).toBe(4 * KIB);
  });

  test("punches nothing out of nothing", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    expect(await file.punchHole(0, 0)).toBe(true);
    expect(await file.punchHole(8 * MIB, MIB)).toBe(true);
    expect(await file.sizeBytes()).toBe(MIB);
  });

  test("zeroes a range and keeps its space, or says that it cannot", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 4 * MIB);
    await file.write(0, pattern(0, 4 * MIB));
    await file.dataSync();
    const before = await file.allocatedBytes();
    const zeroed = await file.zeroRange(MIB, 2 * MIB);
    if (!place.inMemory) expect(zeroed).toBe(true);
    expect(file.features.zeroRange).toBe(zeroed);
    const expected = zeroed ? Buffer.alloc(2 * MIB) : pattern(MIB, 2 * MIB);
    expect((await contents(file, MIB, 2 * MIB)).equals(expected)).toBe(true);
    expect(await file.allocatedBytes()).toBeGreaterThanOrEqual(before);
    // Found out once, and not tried again.
    expect(await file.zeroRange(0, 4 * KIB)).toBe(zeroed);
  });

  test("never reports a hole where something was written, however it was written", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 8 * MIB);
    const write = async (offset: number) => {
      expect((await file.extentAt(offset)).kind).toBe("hole");
      if ((offset / MIB) % 2 === 0) expect(file.writeNow(offset, pattern(offset, 4 * KIB))).toBe(4 * KIB);
      else await file.write(offset, pattern(offset, 4 * KIB));
      expect((await file.extentAt(offset)).kind).toBe("data");
    };
    for (const offset of [0, 1, 2, 3, 4, 5, 6, 7]) await write(offset * MIB);
  });

  itSeeded("reports no hole over data, whatever goes on at the same time", async (rng) => {
    const BLOCKS = 64;
    const blockBytes = 64 * KIB;
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, BLOCKS * blockBytes);
    const full = new Array<boolean>(BLOCKS).fill(false);
    const busy = new Set<number>();
    const change = async (block: number): Promise<void> => {
      const offset = block * blockBytes;
      if (busy.has(block)) return;
      busy.add(block);
      if (full[block]) await file.punchHole(offset, blockBytes);
      else if (rng.chance(0.5) || file.writeNow(offset, pattern(offset, blockBytes)) < 0) {
        await file.write(offset, pattern(offset, blockBytes));
      }
      full[block] = !full[block];
      const { kind, end } = await file.extentAt(offset);
      if (full[block]) expect(`${block} ${kind}`).toBe(`${block} data`);
      else expect(end).toBeGreaterThan(offset);
      busy.delete(block);
    };
    const under: Promise<unknown>[] = [];
    for (let round = 0; round < 300; round++) {
      for (let i = 0; i < 4; i++) {
        const block = rng.integer(0, BLOCKS - 1);
        // Asked just before and just after the change was begun, the kernel answers from before it.
        if (rng.chance(0.5)) under.push(file.extentAt(block * blockBytes));
        under.push(change(block));
        if (rng.chance(0.5)) under.push(file.extentAt(block * blockBytes));
      }
      await Promise.all(under.splice(0, rng.integer(0, under.length)));
    }
    await Promise.all(under);
  });

  test("answers about the file as it is after truncation", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, MIB);
    await file.write(0, pattern(0, MIB));
    expect(await file.extentAt(0)).toEqual({ kind: "data", end: MIB });
    await file.truncate(0);
    await file.truncate(2 * MIB);
    expect(await file.extentAt(0)).toEqual({ kind: "hole", end: 2 * MIB });
  });

  // Without RWF_NOWAIT, nothing tells whether a block is in memory.
  if (!place.inMemory) {
    test("writes part of a cached block at once", async () => {
      using folder = tempDir(place.directory);
      await using file = await created(files, folder);
      await file.write(0, pattern(0, MIB));
      for (const [offset, length] of [
        [100, 50],
        [4_000, 200],
        [8_192, 10],
        [8_190, 2],
      ] as const) {
        expect(file.writeNow(offset, Buffer.alloc(length, 0xaa))).toBe(length);
        expect(await contents(file, offset, length)).toEqual(Buffer.alloc(length, 0xaa));
      }
      expect(await contents(file, 150, 100)).toEqual(pattern(150, 100));
    });
  }

  test("works on a file whose name is gone", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder, 32 * MIB);
    await files.unlink(file.path);
    // Enough for write-back to be started.
    for (let at = 0; at < 32 * MIB; at += MIB) await file.write(at, pattern(at, MIB));
    await file.dataSync();
    expect(await file.sizeBytes()).toBe(32 * MIB);
  });
}

function plainFile(place: Place, files: RealFiles): void {
  test("promises nothing that it lacks", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    await file.write(0, pattern(0, MIB));
    expect(file.features).toEqual({ readNow: false, punchHole: false, zeroRange: false, extents: false });
    expect(file.readNow(0, new Uint8Array(16))).toBe(-1);
    expect(await file.punchHole(0, 4 * KIB)).toBe(false);
    expect(await file.zeroRange(0, 4 * KIB)).toBe(false);
    expect(await contents(file, 0, MIB)).toEqual(pattern(0, MIB));
  });

  test("writes part of a block through the pool only, for it may have to be read first", async () => {
    using folder = tempDir(place.directory);
    await using file = await created(files, folder);
    expect(file.writeNow(100, pattern(100, 50))).toBe(-1);
    expect(file.writeNow(4_096, pattern(4_096, 100))).toBe(-1);
    await file.write(100, pattern(100, 50));
    expect(await contents(file, 100, 50)).toEqual(pattern(100, 50));
  });
}
