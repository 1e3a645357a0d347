/** A real file system on a copy that is not finished: mounted, read, written, trimmed; and in order when it stands alone. */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { diskOf, letPass, placeIn, untilDisk } from "../../support/clone-checks.ts";
import { startClone } from "../../support/clone-process.ts";
import { attachExport, itMounts, mountDevice, writeSynced } from "../../support/mounted-export.ts";
import { pattern } from "../../support/patterns.ts";
import { nbdkit, nbdkitIn } from "../../support/peers.ts";
import { runOk } from "../../support/run.ts";
import { counts } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { KiB, MiB } from "../serve/layout.ts";

const SIZE = counts({ local: 48, ci: 256 }) * MiB;
const FILE_BYTES_MAX = counts({ local: 4, ci: 32 }) * MiB;

type Files = Map<string, Buffer>;

/** Files of many sizes, none of which is alike. */
function someFiles(prefix: string, firstSalt: number): Files {
  const sizes = [1, 100, 4 * KiB, 4 * KiB + 1, 70_000, 300_000, FILE_BYTES_MAX + 3];
  return new Map(sizes.map((size, i) => [`${prefix}-${i}`, pattern(i * 64 * MiB, size, firstSalt + i)]));
}

/** An ext4 image that holds `files`, made by mke2fs alone. */
async function makeFileSystem(folder: TempDir, files: Files): Promise<string> {
  mkdirSync(folder.file("tree"));
  for (const [name, contents] of files) writeFileSync(join(folder.file("tree"), name), contents);
  const image = folder.file("source.raw");
  writeFileSync(image, "");
  await runOk(["truncate", "-s", String(SIZE), image]);
  await runOk(["mkfs.ext4", "-q", "-d", folder.file("tree"), image]);
  return image;
}

function sum(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function expectFiles(directory: string, files: Files): void {
  for (const [name, contents] of files) {
    const bytes = readFileSync(join(directory, name));
    expect({ name, length: bytes.length, sum: sum(bytes) }).toEqual({
      ...{ name, length: contents.length, sum: sum(contents) },
    });
  }
}

itMounts(["nbdkit", "debugfs"], "an ext4 is used while it is copied, and is whole afterwards", async () => {
  using folder = tempDir();
  const old = someFiles("old", 100);
  const made = someFiles("new", 200);
  const image = await makeFileSystem(folder, old);
  await using source = await nbdkit("-r", "file", image);
  const place = placeIn(folder, source);
  {
    await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
    // What is left of the disk when all files were read and the rest was trimmed is little.
    await clone.call("pause", {});
    {
      await using device = await attachExport(clone.socket, SIZE, folder);
      await using mounted = await mountDevice(device.path, folder);
      expectFiles(mounted.path, old);
      for (const [name, contents] of made) writeSynced(join(mounted.path, name), contents);
      rmSync(join(mounted.path, "old-5"));
      await runOk(["sync", "-f", mounted.path]);
      await runOk(["fstrim", mounted.path]);
      expectFiles(mounted.path, made);
      // It was not all here before that.
      const { localBytes, sizeBytes, hydration } = await diskOf(clone);
      expect(hydration?.state).toBe("paused");
      expect(localBytes).toBeLessThan(sizeBytes);
    }
    await clone.call("resume", {});
    await clone.call("set-speed", { bytesPerSecond: null });
    await clone.hydrated();
    expect(await clone.stop()).toBe(0);
  }
  await source.kill();
  old.delete("old-5");
  expect(await runOk(["e2fsck", "-f", "-n", place.image])).toContain("Pass 5");
  mkdirSync(folder.file("out"));
  await runOk(["debugfs", "-R", `rdump / ${folder.file("out")}`, place.image]);
  expectFiles(folder.file("out"), old);
  expectFiles(folder.file("out"), made);
});

itMounts(
  ["nbdkit", "sha256sum"],
  "programs that read a mounted file system wait for a source that is away, and get no error",
  async () => {
    using folder = tempDir();
    const files = someFiles("old", 100);
    const image = await makeFileSystem(folder, files);
    let source = await nbdkitIn(folder, "-r", "file", image);
    const place = placeIn(folder, `nbd+unix:///?socket=${folder.file("nbd")}`);
    await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
    {
      await using device = await attachExport(clone.socket, SIZE, folder);
      await using mounted = await mountDevice(device.path, folder);
      await source.kill();
      await untilDisk(clone, (disk) => disk.source?.state === "disconnected");
      let done = false;
      const names = [...files.keys()].map((name) => join(mounted.path, name));
      const sums = runOk(["sha256sum", ...names], { timeoutMs: 60_000 }).finally(() => {
        done = true;
      });
      await letPass(clone, 0.5);
      expect(done).toBe(false);
      source = await nbdkitIn(folder, "-r", "file", image);
      const lines = [...files].map(([name, contents]) => `${sum(contents)}  ${join(mounted.path, name)}\n`);
      expect(await sums).toBe(lines.join(""));
    }
    await using _ = source;
    await clone.call("set-speed", { bytesPerSecond: null });
    await clone.hydrated();
    expect(await clone.stop()).toBe(0);
    expect(await runOk(["e2fsck", "-f", "-n", place.image])).toContain("Pass 5");
  },
);
