/** A file system on an export: made, used, synced, unmounted, checked; and still there for the next server. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { attachExport, itMounts, mountDevice, writeSynced } from "../../support/mounted-export.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { KiB, MiB } from "./layout.ts";

const SIZE = 64 * MiB;

/** Files of many sizes, none of which is alike; name → contents. */
function someFiles(): Map<string, Buffer> {
  const sizes = [1, 100, 4 * KiB, 4 * KiB + 1, 70_000, 300_000, 5 * MiB + 3];
  return new Map(sizes.map((size, i) => [`file-${i}`, pattern(i * 16 * MiB, size, i + 1)]));
}

itMounts([], "ext4 on an export survives unmounting, and a restart of the server, file by file", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SIZE, []);
  const files = someFiles();
  {
    await using server = await startServe({ image, socket: folder.file("s") });
    {
      await using device = await attachExport(server.socket, SIZE, folder);
      await runOk(["mkfs.ext4", "-q", "-E", "nodiscard", device.path]);
      await using mounted = await mountDevice(device.path, folder);
      mkdirSync(join(mounted.path, "some"));
      for (const [name, contents] of files) writeSynced(join(mounted.path, "some", name), contents);
      writeFileSync(join(mounted.path, "goes"), pattern(0, MiB));
      await runOk(["rm", join(mounted.path, "goes")]);
      // Tells the export which blocks are free: discards, down to holes in the image.
      await runOk(["fstrim", mounted.path]);
    }
    expect(await server.stop()).toBe(0);
  }
  const check = await runOk(["e2fsck", "-f", "-n", image]);
  expect(check).toContain("Pass 5");
  await using server = await startServe({ image, socket: folder.file("s") });
  await using device = await attachExport(server.socket, SIZE, folder);
  await using mounted = await mountDevice(device.path, folder);
  expect(readdirSync(join(mounted.path, "some")).sort()).toEqual([...files.keys()].sort());
  for (const [name, contents] of files) {
    expect(readFileSync(join(mounted.path, "some", name)).equals(contents), name).toBe(true);
  }
});

itMounts([], "what was synced is in the image when the server is killed under a mounted ext4", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SIZE, []);
  const files = someFiles();
  {
    const server = await startServe({ image, socket: folder.file("s") });
    await using device = await attachExport(server.socket, SIZE, folder);
    await runOk(["mkfs.ext4", "-q", device.path]);
    await using mounted = await mountDevice(device.path, folder);
    for (const [name, contents] of files) writeSynced(join(mounted.path, name), contents);
    await server.kill();
  }
  // The journal is replayed on a copy of what the killed server left behind; then everything must be in order.
  const copy = folder.file("copy.img");
  await runOk(["cp", "--sparse=always", image, copy]);
  await runOk(["sh", "-c", `e2fsck -p -E journal_only ${copy} >&2; e2fsck -f -n ${copy}`]);
  await using server = await startServe({ image, socket: folder.file("s") });
  await using device = await attachExport(server.socket, SIZE, folder);
  await using mounted = await mountDevice(device.path, folder);
  for (const [name, contents] of files) {
    expect(readFileSync(join(mounted.path, name)).equals(contents), name).toBe(true);
  }
});
