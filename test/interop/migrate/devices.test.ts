/** Disks that are block devices: whose they are is known by what they are, not by what they are called. */
import { existsSync, readdirSync, symlinkSync } from "node:fs";
import { expect, type TestContext, vi } from "vitest";
import { blockferry } from "../../support/clone-process.ts";
import { LoopDevice } from "../../support/loop-device.ts";
import { makeImage, pattern, type Region } from "../../support/patterns.ts";
import { type RunResult, run, runOk } from "../../support/run.ts";
import { TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith, requireAsked, requireRoot } from "../../support/tools.ts";
import { MiB } from "../serve/layout.ts";
import { linkOf, Rig } from "./rig.ts";

const SIZE = 8 * MiB;
const REGIONS: readonly Region[] = [{ offset: 0, length: 6 * MiB, salt: 3 }];

/** Two hosts of which the records of devices are in `folder`; A's disk is a device. */
function itOnDevices(title: string, body: (rig: Rig, folder: TempDir, context: TestContext) => Promise<void>): void {
  itWith(["losetup", "qemu-img", "mkfs.ext4"], title, async (context: TestContext) => {
    requireRoot(context, "attaching a loop device");
    using folder = tempDir();
    vi.stubEnv("BLOCKFERRY_DEVICES_DIR", folder.file("devices"));
    try {
      await body(new Rig(folder), folder, context);
    } finally {
      vi.unstubAllEnvs();
    }
  });
}

/** One that is expected to end by itself. */
function runSource(rig: Rig, folder: TempDir, image: string): Promise<RunResult> {
  const own = ["-U", rig.socket("a"), "--state-dir", folder.file("s"), "--link", "127.0.0.1:0"];
  return blockferry("source", ...own, `vda=${image}`);
}

async function expectSame(one: string, other: string): Promise<void> {
  expect(await runOk(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other])).toContain("identical");
}

itOnDevices(
  "a volume that is given away is nobody's here, whatever it is called, and gone on with by its killed source alone",
  async (rig, folder) => {
    using disk = LoopDevice.make(folder, "a/vda.raw", SIZE, REGIONS);
    using other = LoopDevice.make(folder, "other.raw", SIZE);
    await using source = await rig.source();
    {
      await using client = await source.open({ exportName: "vda" });
      await client.write(MiB, pattern(MiB, MiB, 9));
    }
    const link = await linkOf(source);
    await using dest = await rig.dest(link, { flags: ["--rate", "64K"] });
    await dest.switchover();
    await source.kill();
    disk.attachAgain();
    const alias = folder.file("alias.raw");
    symlinkSync(disk.node, alias);
    // Under its own name there is another device for a while.
    disk.linkTo(other.node);
    const [another, ...others] = await Promise.all([
      runSource(rig, folder, disk.name),
      blockferry("serve", "--format=raw", disk.node),
      blockferry("image", "info", alias),
      blockferry("clone", "--overwrite-device", "nbd://127.0.0.1:1/", alias),
    ]);
    expect(another.status).toBe(74);
    expect(another.stderr).toContain("another device than the one of that name");
    expect(others.map(({ status }) => status)).toEqual([75, 75, 75]);
    for (const { stderr } of others) expect(stderr).toContain("was given to destination");
    disk.linkTo(disk.node);
    await using again = await rig.source({ link });
    await dest.ask("set-speed", "unlimited");
    await dest.reached("complete");
    await again.expectPhase("released");
    expect(await dest.stop()).toBe(0);
    await expectSame(disk.name, rig.image("b"));
    const kinds = readdirSync(folder.file("devices")).map((name) => name.split(".").at(-1));
    expect(kinds.sort()).toEqual(["device", "owner"]);
    for (const path of [disk.name, disk.node]) expect(existsSync(`${path}.owner`)).toBe(false);
  },
);

itOnDevices("a volume moves to another one, whose sidecar is killed meanwhile, and back again", async (rig, folder) => {
  const back = new Rig(new TempDir(folder.file("c")));
  using near = LoopDevice.make(folder, "a/vda.raw", SIZE, REGIONS);
  using far = LoopDevice.make(folder, "b/vda.raw", SIZE, [{ offset: 0, length: SIZE, salt: 7 }]);
  const written = { offset: 5 * MiB, length: 2 * MiB, salt: 9 };
  {
    await using source = await rig.source();
    const address = await linkOf(source);
    const refused = await rig.runDest(address);
    expect(refused.status).toBe(74);
    expect(refused.stderr).toContain("what is on it would be lost");
    {
      await using dest = await rig.dest(address, { flags: ["--overwrite-device", "--rate", "64K"] });
      await dest.switchover();
      await using client = await dest.open({ exportName: "vda" });
      await client.write(written.offset, pattern(written.offset, written.length, written.salt));
      await dest.kill();
    }
    far.attachAgain();
    expect((await blockferry("serve", "--format=raw", "--run", "true", far.node)).status).toBe(75);
    await using dest = await rig.dest(address);
    await dest.reached("complete");
    await source.expectPhase("released");
    expect([await dest.stop(), await source.stop()]).toEqual([0, 0]);
  }
  makeImage(folder.file("expected"), SIZE, [...REGIONS, written]);
  await expectSame(far.name, folder.file("expected"));
  // What is at home now is not needed any more, and may be written over.
  symlinkSync(far.node, back.image("a"));
  symlinkSync(near.node, back.image("b"));
  await using source = await back.source();
  await using dest = await back.dest(await linkOf(source), { flags: ["--overwrite-device"] });
  await dest.switchover();
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  await expectSame(near.name, folder.file("expected"));
});

itOnDevices(
  "a source refuses a mounted volume, one that cannot be known again, and a qcow2 image on one",
  async (rig, folder, context) => {
    requireAsked(context, "BLOCKFERRY_DEVICES", "refusals, one by one");
    using disk = LoopDevice.make(folder, "a/vda.raw", SIZE);
    const source = (image: string) => runSource(rig, folder, image);
    await runOk(["mkfs.ext4", "-q", "-F", disk.node]);
    await runOk(["mount", disk.node, folder.file("c")]);
    try {
      const refused = await source(disk.name);
      expect(refused.status).toBe(75);
      expect(refused.stderr).toContain("it is mounted");
    } finally {
      await runOk(["umount", disk.node]);
    }
    expect((await source(`${disk.name},format=qcow2`)).stderr).toContain("no raw disk");
    // Nobody could tell what this one shows when it is gone.
    makeImage(folder.file("gone"), SIZE);
    const gone = (await runOk(["losetup", "--find", "--show", folder.file("gone")])).trim();
    try {
      await runOk(["rm", folder.file("gone")]);
      const refused = await source(`${gone},format=raw`);
      expect(refused.status).toBe(74);
      expect(refused.stderr).toContain("neither a uuid nor a serial number");
      expect((await run(["ls", `${gone}.owner`])).status).not.toBe(0);
    } finally {
      await runOk(["losetup", "-d", gone]);
    }
  },
);
