/** Raw images as QEMU's tools see them: maps, facts, contents, space on disk, locks. */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect } from "vitest";
import type { Image } from "../../../src/image/image.ts";
import { imageInfo, renderInfo, renderInfoJson } from "../../../src/image/info.ts";
import { imageMap, renderMap, renderMapJson } from "../../../src/image/map.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { loadNative } from "../../../src/os/native.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

const native = createRealEnv(loadNative({ disabled: false }));
const plain = createRealEnv(loadNative({ disabled: true }));
const disk = tempDir(tmpdir());
const memory = existsSync("/dev/shm") ? tempDir("/dev/shm") : undefined;
const places = new Map([["a disk", disk], ...(memory ? [["tmpfs", memory] as const] : [])]);

afterAll(() => {
  for (const folder of places.values()) folder[Symbol.dispose]();
});

async function text(pieces: AsyncIterable<string>): Promise<string> {
  let all = "";
  for await (const piece of pieces) all += piece;
  return all;
}

/** Our map and qemu-img's, in both forms, byte by byte. */
async function assertSameMap(path: string): Promise<void> {
  const ours = await text(renderMapJson(imageMap(native, { path })));
  expect(ours).toBe(await runOk(["qemu-img", "map", "-U", "-f", "raw", "--output=json", path]));
  const lines = await text(renderMap(imageMap(native, { path })));
  expect(lines).toBe(await runOk(["qemu-img", "map", "-U", "-f", "raw", path]));
}

for (const [place, folder] of places) {
  itWith(["qemu-img"], `info and map say what qemu-img says, on ${place}`, async () => {
    const path = folder.file("sparse.raw");
    makeImage(path, 10 * MIB, [
      { offset: 64 * KIB, length: 128 * KIB, salt: 1 },
      { offset: 3 * MIB, length: MIB + 512, salt: 2 },
      { offset: 10 * MIB - 4096, length: 4096, salt: 3 },
    ]);
    await assertSameMap(path);
    const info = await imageInfo(native, { path });
    expect(renderInfo(info)).toBe(await runOk(["qemu-img", "info", "-f", "raw", path]));
    expect(renderInfoJson(info)).toBe(await runOk(["qemu-img", "info", "-f", "raw", "--output=json", path]));
    // An image that is all hole, and one that is none.
    makeImage(path, 5 * MIB, []);
    await assertSameMap(path);
    makeImage(path, MIB);
    await assertSameMap(path);
  });

  itWith(["qemu-img", "qemu-io"], `zeroes and discards leave what qemu-io leaves, on ${place}`, async () => {
    const [ours, theirs] = [folder.file("ours.raw"), folder.file("theirs.raw")];
    for (const path of [ours, theirs]) makeImage(path, 8 * MIB);
    await using image = await openRaw(native, { path: ours, readOnly: false });
    const full = await image.allocatedBytes();
    await image.discard(MIB, 2 * MIB);
    await image.writeZeroes(4 * MIB, MIB);
    await image.writeZeroes(6 * MIB, MIB + 512, { noHole: true });
    await image.flush();
    const commands = ["discard 1M 2M", "write -z -u 4M 1M", "write -z 6M 1049088", "flush"];
    await runOk(["qemu-io", "-f", "raw", "-d", "unmap", ...commands.flatMap((command) => ["-c", command]), theirs]);
    await runOk(["qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", ours, theirs]);
    // The file system counts its own tables as well, which may come out one block larger or smaller.
    const left = await image.allocatedBytes();
    expect(Math.abs(left - (await imageInfo(native, { path: theirs })).diskBytes)).toBeLessThan(64 * KIB);
    expect(Math.abs(left - (full - 3 * MIB))).toBeLessThan(64 * KIB);
    await assertSameMap(ours);
  });

  itWith(["qemu-img", "qemu-io"], `without native calls zeroes are zeroes all the same, on ${place}`, async () => {
    const path = folder.file("plain.raw");
    makeImage(path, 4 * MIB);
    await using image = await openRaw(plain, { path, readOnly: false });
    await image.writeZeroes(MIB + 1, 2 * MIB);
    await image.discard(0, 4096);
    await image.flush();
    expect(image.capabilities).toMatchObject({ discard: false, fastZero: false, extents: false });
    const commands = [`read -P 0 ${MIB + 1} 2M`];
    await runOk(["qemu-io", "-U", "-r", "-f", "raw", ...commands.flatMap((command) => ["-c", command]), path]);
    expect(await read(image, 0, MIB + 1)).toEqual(pattern(0, MIB + 1));
    expect(await read(image, 3 * MIB + 1, 4096)).toEqual(pattern(3 * MIB + 1, 4096));
  });
}

itWith(["qemu-img"], "maps agree with qemu-img after random writes, zeroes and discards", async () => {
  const rng = new Prng(runSeed(), "maps");
  for (const folder of places.values()) {
    const path = folder.file("random.raw");
    makeImage(path, 16 * MIB, []);
    await using image = await openRaw(native, { path, readOnly: false });
    for (let turn = 0; turn < 40; turn++) {
      const offset = 512 * rng.integer(0, 16 * 2048 - 1);
      const length = Math.min(512 * rng.integer(1, 1000), image.sizeBytes - offset);
      const kind = rng.pick(["write", "zero", "discard"]);
      if (kind === "write") await image.write(offset, pattern(offset, length, 1 + turn));
      if (kind === "zero") await image.writeZeroes(offset, length);
      if (kind === "discard") await image.discard(offset, length);
    }
    await image.flush();
    await assertSameMap(path);
  }
});

itWith(["qemu-io", "qemu-img"], "QEMU may look at an image that we have open, and may not write it", async () => {
  const path = disk.file("locked.raw");
  makeImage(path, MIB);
  const write = ["qemu-io", "-f", "raw", "-c", "write -P 7 0 512", path];
  for (const readOnly of [true, false]) {
    await using _ = await openRaw(native, { path, readOnly });
    const refused = await run(write);
    expect(refused.status).not.toBe(0);
    expect(refused.stderr).toContain("lock");
    const looked = await run(["qemu-img", "info", "-f", "raw", path]);
    expect(looked.status).toBe(0);
  }
  expect((await run(write)).status).toBe(0);
});

itWith(["qemu-img"], "an odd number of bytes is told exactly, where qemu-img rounds up to sectors", async () => {
  const path = disk.file("odd.raw");
  makeImage(path, 1000, []);
  expect(JSON.parse(renderInfoJson(await imageInfo(native, { path })))["virtual-size"]).toBe(1000);
  const theirs = await runOk(["qemu-img", "info", "-f", "raw", "--output=json", path]);
  expect(JSON.parse(theirs)["virtual-size"]).toBe(1024);
});

async function read(image: Image, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await image.read(offset, into);
  return into;
}
