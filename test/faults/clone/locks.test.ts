/** A copy that is not finished, and one that is being made, are nobody else's; and nobody else's image becomes a copy. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, existsSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import { placeIn } from "../../support/clone-checks.ts";
import { blockferry, runClone, startClone } from "../../support/clone-process.ts";
import { nbdkit } from "../../support/peers.ts";
import { type RunResult, run } from "../../support/run.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MiB = 2 ** 20;

function refused(outcome: RunResult, status: number, why: RegExp): void {
  expect(outcome.stderr).toMatch(why);
  expect(outcome.stderr).toMatch(/^blockferry: .+\n {2}why: .+\n {2}do: {2}.+\n$/);
  expect(outcome.status).toBe(status);
}

itWith(["nbdkit", "qemu-io", "qemu-img"], "a running clone keeps every other program from its image", async () => {
  await using source = await nbdkit("pattern", String(4 * MiB));
  using folder = tempDir();
  const place = placeIn(folder, source);
  await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
  const { image } = place;
  refused(await runClone({ ...place, socket: folder.file("s2") }), 75, /in use|locked/);
  refused(await blockferry("serve", "--run", "true", image), 75, /blocks are missing|locked/);
  refused(await blockferry("serve", "-r", "--run", "true", image), 75, /blocks are missing|locked/);
  refused(await blockferry("image", "info", image), 75, /blocks are missing/);
  refused(await blockferry("image", "map", image), 75, /blocks are missing/);
  for (const command of [
    ["qemu-io", "-f", "raw", "-c", "read 0 512", image],
    ["qemu-img", "convert", "-f", "raw", "-O", "raw", image, folder.file("out")],
    ["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image],
  ]) {
    const qemu = await run(command);
    expect(qemu.stderr).toMatch(/Failed to get .*lock/);
    expect(qemu.status).not.toBe(0);
  }
  // None of that has disturbed it.
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.hydrated();
  expect(await clone.stop()).toBe(0);
});

itWith(
  ["nbdkit", "qemu-io"],
  "a clone does not open an image that QEMU has open, and does when it is free",
  async () => {
    await using source = await nbdkit("pattern", String(4 * MiB));
    using folder = tempDir();
    const place = placeIn(folder, source);
    {
      await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
      expect(await clone.stop()).toBe(0);
    }
    const before = readFileSync(`${place.image}.map`);
    const qemu = spawn("qemu-io", ["-f", "raw", place.image], { stdio: ["pipe", "pipe", "inherit"] });
    qemu.stdin.write("read 0 512\n");
    await once(qemu.stdout, "data");
    refused(await runClone(place), 75, /qemu-io|lock/);
    expect(readFileSync(`${place.image}.map`).equals(before)).toBe(true);
    qemu.stdin.end("quit\n");
    await once(qemu, "close");
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
  },
);

itWith(
  ["nbdkit"],
  "an unfinished copy that nobody has open is opened by clone alone, which others are told",
  async () => {
    await using source = await nbdkit("pattern", String(4 * MiB));
    using folder = tempDir();
    const place = placeIn(folder, source);
    {
      await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
      await clone.kill();
    }
    refused(await blockferry("serve", "--run", "true", place.image), 75, /finish it: blockferry clone/);
    refused(await blockferry("image", "info", place.image), 75, /finish it: blockferry clone/);
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
    expect((await blockferry("image", "info", place.image)).status).toBe(0);
    // Done is done: the source is not needed, and clients are served.
    await source.kill();
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
  },
);

itWith(["nbdkit"], "an image and a map that do not belong together are refused, and left as they were", async () => {
  await using source = await nbdkit("pattern", String(MiB));
  using folder = tempDir();
  using other = tempDir();
  const place = placeIn(folder, source);
  const { image } = place;
  for (const where of [place, placeIn(other, source)]) {
    await using clone = await startClone({ ...where, flags: ["--rate=64K"] });
    await clone.kill();
  }
  const bytes = readFileSync(image);
  const map = readFileSync(`${image}.map`);

  renameSync(`${image}.map`, folder.file("kept"));
  refused(await runClone(place), 74, /there is such a file already/);
  expect(existsSync(`${image}.map`)).toBe(false);

  copyFileSync(other.file("copy.raw.map"), `${image}.map`);
  refused(await runClone(place), 74, /not the image that its map was made for/);
  writeFileSync(`${image}.map`, map);
  rmSync(image);
  refused(await runClone(place), 74, /copy\.raw/);
  expect(existsSync(image)).toBe(false);
  copyFileSync(other.file("copy.raw"), image);
  refused(await runClone(place), 74, /not the image that its map was made for/);

  writeFileSync(image, bytes);
  writeFileSync(`${image}.map`, Buffer.alloc(map.length, 0x5a));
  refused(await runClone(place), 74, /map/);
  expect(readFileSync(image).equals(bytes)).toBe(true);
  writeFileSync(`${image}.map`, map);
  expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
});

itWith(["nbdkit"], "a symbolic link is no image, no map, and nothing to be written through", async () => {
  await using source = await nbdkit("pattern", String(MiB));
  using folder = tempDir();
  const place = placeIn(folder, source);
  const { image } = place;
  const mine = folder.file("mine");
  writeFileSync(mine, "something that is mine");
  for (const [link, why] of [
    [image, /link|ELOOP/],
    [`${image}.map`, /cannot be read, or is no presence map/],
  ] as const) {
    symlinkSync(mine, link);
    refused(await runClone(place), 74, why);
    expect(readFileSync(mine, "utf8")).toBe("something that is mine");
    rmSync(link);
    rmSync(image, { force: true });
    rmSync(`${image}.map`, { force: true });
  }
  // A link to nowhere is not followed to make a file there.
  symlinkSync(folder.file("nowhere"), image);
  refused(await runClone(place), 74, /link|ELOOP/);
  expect(existsSync(folder.file("nowhere"))).toBe(false);
});
