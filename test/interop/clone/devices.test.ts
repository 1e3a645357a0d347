/** Copies onto block devices, which are there before the copy and hold something else. */
import { existsSync, readdirSync } from "node:fs";
import { expect, type TestContext, vi } from "vitest";
import { placeIn, untilDisk } from "../../support/clone-checks.ts";
import { blockferry, runClone, startClone } from "../../support/clone-process.ts";
import { LoopDevice } from "../../support/loop-device.ts";
import { imageDifference, makeImage, pattern, type Region } from "../../support/patterns.ts";
import { qemuNbd } from "../../support/peers.ts";
import { type RunResult, runOk } from "../../support/run.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith, requireAsked, requireRoot } from "../../support/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 4 * MiB - 512;
const REGIONS: readonly Region[] = [
  { offset: 0, length: MiB, salt: 3 },
  { offset: 2 * MiB, length: 100 * KiB, salt: 4 },
];
const DEVICE_BYTES = 5 * MiB;
const OLD: Region = { offset: 0, length: DEVICE_BYTES, salt: 7 };
const FLAGS = ["--overwrite-device", "--exit-when-hydrated"];

function itOnDevices(title: string, body: (folder: TempDir, context: TestContext) => Promise<void>): void {
  itWith(["losetup", "qemu-nbd", "mkfs.ext4"], title, async (context: TestContext) => {
    requireRoot(context, "attaching a loop device");
    using folder = tempDir();
    vi.stubEnv("BLOCKFERRY_DEVICES_DIR", folder.file("devices"));
    try {
      await body(folder, context);
    } finally {
      vi.unstubAllEnvs();
    }
  });
}

function refused(outcome: RunResult, status: number, why: RegExp): void {
  expect(outcome.stderr).toMatch(why);
  expect(outcome.stderr).toMatch(/^blockferry: .+\n {2}why: .+\n {2}do: {2}.+\n$/m);
  expect(outcome.status).toBe(status);
}

itOnDevices(
  "a copy comes to a volume, though it is killed meanwhile, and nothing is left of what was there",
  async (folder) => {
    await using peer = await qemuNbd((path) => makeImage(path, SIZE, REGIONS), "-r");
    using device = LoopDevice.make(folder, "vda.raw", DEVICE_BYTES, [OLD]);
    const place = { ...placeIn(folder, peer), image: device.name };
    refused(await runClone(place), 74, /what is on it would be lost/);
    expect(imageDifference(device.backing, DEVICE_BYTES, [OLD])).toBeUndefined();
    const written = [
      { offset: 60 * KiB, length: 100 * KiB, salt: 5 },
      { offset: 3 * MiB + 100, length: 300, salt: 6 },
    ];
    {
      await using clone = await startClone({ ...place, flags: ["--overwrite-device", "--rate=8K"] });
      await using client = await clone.open();
      // What is asked for comes at once, all else takes long.
      await client.read(0, Buffer.alloc(512 * KiB));
      for (const { offset, length, salt } of written) await client.write(offset, pattern(offset, length, salt));
      await untilDisk(clone, ({ localBytes }) => localBytes >= 512 * KiB);
      await clone.kill();
    }
    device.attachAgain();
    refused(await blockferry("serve", "--run", "true", device.node), 75, /blocks are missing/);
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
    // The end of the device is as it was.
    const expected = [OLD, { offset: 0, length: SIZE, salt: 0 }, ...REGIONS, ...written];
    expect(imageDifference(device.backing, DEVICE_BYTES, expected)).toBeUndefined();
    await runOk(["cmp", device.backing, device.node]);
    expect((await blockferry("image", "info", device.name)).status).toBe(0);
    expect(readdirSync(folder.file("devices")).some((name) => name.endsWith(".head"))).toBe(false);
    for (const suffix of [".map", ".log"]) {
      for (const path of [device.name, device.node]) expect(existsSync(`${path}${suffix}`)).toBe(false);
    }
    // With or without leave to write over the device: it is complete.
    expect((await runClone({ ...place, flags: FLAGS })).status).toBe(0);
    expect(imageDifference(device.backing, DEVICE_BYTES, expected)).toBeUndefined();
  },
);

itOnDevices("a copy is not made on a device that is too small, mounted or not there", async (folder, context) => {
  requireAsked(context, "BLOCKFERRY_DEVICES", "refusals, one by one");
  await using peer = await qemuNbd((path) => makeImage(path, SIZE, REGIONS), "-r");
  const place = placeIn(folder, peer);
  const onto = (image: string) => runClone({ ...place, image, flags: FLAGS });
  using small = LoopDevice.make(folder, "small.raw", 2 * MiB);
  refused(await onto(small.name), 74, /the disk has \d+ bytes, and the device only 2097152/);
  expect(imageDifference(small.backing, 2 * MiB, [{ offset: 0, length: 2 * MiB, salt: 1 }])).toBeUndefined();
  using used = LoopDevice.make(folder, "used.raw", DEVICE_BYTES);
  await runOk(["mkfs.ext4", "-q", "-F", used.node]);
  await runOk(["mkdir", folder.file("mnt")]);
  await runOk(["mount", used.node, folder.file("mnt")]);
  try {
    refused(await onto(used.name), 75, /it is mounted/);
  } finally {
    await runOk(["umount", used.node]);
  }
  await runOk(["e2fsck", "-fn", used.node]);
  refused(await onto("/dev/blockferry-has-no-such-volume"), 74, /there is no such device/);
  expect(existsSync("/dev/blockferry-has-no-such-volume")).toBe(false);
});

itOnDevices(
  "a copy does not go on with another device of the same name, nor with one that was written over",
  async (folder) => {
    await using peer = await qemuNbd((path) => makeImage(path, SIZE, REGIONS), "-r");
    using device = LoopDevice.make(folder, "vda.raw", DEVICE_BYTES, [OLD]);
    using other = LoopDevice.make(folder, "other.raw", DEVICE_BYTES, [OLD]);
    const place = { ...placeIn(folder, peer), image: device.name };
    {
      await using clone = await startClone({ ...place, flags: ["--overwrite-device", "--rate=8K"] });
      expect(await clone.stop()).toBe(0);
    }
    device.linkTo(other.node);
    refused(await runClone({ ...place, flags: FLAGS }), 74, /another device than the one of that name/);
    expect(imageDifference(other.backing, DEVICE_BYTES, [OLD])).toBeUndefined();
    device.linkTo(device.node);
    await runOk(["mkfs.ext4", "-q", "-F", device.node]);
    refused(await runClone({ ...place, flags: FLAGS }), 74, /is not the copy that was begun/);
    await runOk(["e2fsck", "-fn", device.node]);
  },
);
