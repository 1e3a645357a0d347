/** Raw images on this host's file systems and block devices, with the native calls and without. */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect, test } from "vitest";
import type { ConformanceTarget } from "../../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../../src/block/device.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { createRaw } from "../../../src/image/raw-create.ts";
import { loadNative } from "../../../src/os/native.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { describeConformance } from "../../support/conformance.ts";
import { pattern } from "../../support/patterns.ts";
import { makeFile, realRawTarget } from "../../support/real-raw-target.ts";
import { runOk } from "../../support/run.ts";
import { drawn } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";

const native = createRealEnv(loadNative({ disabled: false }));
const plain = createRealEnv(loadNative({ disabled: true }));
const disk = tempDir(tmpdir());
const memory = tempDir(existsSync("/dev/shm") ? "/dev/shm" : tmpdir());
const loops = new Set<string>();

afterAll(async () => {
  for (const loop of loops) await runOk(["losetup", "-d", loop]);
  disk[Symbol.dispose]();
  memory[Symbol.dispose]();
});

test("the native calls are there, so that the tests below test them", () => {
  expect(loadNative({ disabled: false }).state).toBe("loaded");
});

const FILES = [
  { where: "a disk's file system", env: native, folder: disk },
  { where: "a disk's file system without native calls", env: plain, folder: disk },
  { where: "tmpfs", env: native, folder: memory },
  { where: "tmpfs without native calls", env: plain, folder: memory },
];

for (const { where, env, folder } of drawn(FILES, 2)) {
  const tools = env === plain ? ["flock"] : [];
  describeConformance(`a raw image on ${where}`, realRawTarget(env, folder), { tools });
}
describeConformance("a raw image on a block device", loopTarget(), { tools: ["losetup"] });

test("a new image has its size, takes no space, and is refused a second time", async () => {
  const path = disk.file("created.raw");
  await createRaw(native, { path, sizeBytes: 2 ** 40 + 7 });
  await using image = await openRaw(native, { path, readOnly: false });
  expect(image.sizeBytes).toBe(2 ** 40 + 7);
  expect(await image.allocatedBytes()).toBeLessThan(65_536);
  await expect(createRaw(native, { path, sizeBytes: 1 })).rejects.toMatchObject({ code: "exists" });
});

test("an image is locked between two processes' worth of opens, native calls or not", async () => {
  const path = disk.file("locked.raw");
  makeFile(path, { sizeBytes: 65_536 });
  for (const [holder, comer] of [
    [native, native],
    [native, plain],
    [plain, native],
    [plain, plain],
  ] as const) {
    await using _ = await openRaw(holder, { path, readOnly: false });
    for (const readOnly of [true, false]) {
      await expect(openRaw(comer, { path, readOnly })).rejects.toMatchObject({ code: "locked", path });
    }
  }
});

test("a file that is cut off under an open image gives errors, not zeroes", async () => {
  for (const env of [native, plain]) {
    const path = disk.file("cut.raw");
    makeFile(path, { sizeBytes: 65_536, content: pattern(0, 65_536) });
    await using image = await openRaw(env, { path, readOnly: true });
    makeFile(path, { sizeBytes: 30_000 });
    const into = Buffer.alloc(4096, 0xee);
    expect(image.readNow(28_000, into)).toBe(-1);
    await expect(image.read(28_000, into)).rejects.toMatchObject({ name: "BlockError", code: "io" });
    await expect(image.read(40_000, into)).rejects.toMatchObject({ name: "BlockError", code: "io" });
  }
});

test("what is no image is refused by what it is", async () => {
  const cases = { "/dev/null": "not-an-image", [disk.path]: "not-an-image", [disk.file("none")]: "not-found" };
  for (const [path, code] of Object.entries(cases)) {
    await expect(openRaw(native, { path, readOnly: true }), path).rejects.toMatchObject({
      name: "ImageOpenError",
      code,
    });
  }
});

/** Loop devices, each over a file of its own. */
function loopTarget(): ConformanceTarget {
  let made = 0;
  return {
    sizeMultiple: 512,
    async make(wanted): Promise<BlockDevice> {
      made += 1;
      const path = disk.file(`loop-${made}.raw`);
      makeFile(path, wanted);
      const flags = wanted.readOnly ? ["-r"] : [];
      const loop = (await runOk(["losetup", "-f", "--show", ...flags, path])).trim();
      loops.add(loop);
      return openRaw(native, { path: loop, readOnly: wanted.readOnly ?? false });
    },
  };
}
