/** `source --late-open` asks QEMU itself whether the images that were named are the guest's. */
import { readFileSync, renameSync, symlinkSync } from "node:fs";
import { expect } from "vitest";
import { realClock } from "../../../src/os/clock.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { QmpClient } from "../../../src/qmp/client.ts";
import { runOk } from "../../support/run.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { linkOf, type MigrationProcess, Rig } from "./rig.ts";

const MiB = 2 ** 20;

/** A QEMU with two disks, whose guest never begins. */
async function startQemu(folder: TempDir, images: readonly string[]): Promise<Disposable> {
  const pidFile = folder.file("qemu.pid");
  const disks = images.flatMap((filename, index) => {
    const blockdev = { "node-name": `d${index}`, driver: "raw", file: { driver: "file", filename } };
    return ["-blockdev", JSON.stringify(blockdev), "-device", `virtio-blk-pci,drive=d${index}`];
  });
  const monitor = ["-qmp", `unix:${folder.file("qmp")},server=on,wait=off`];
  const quiet = ["-S", "-display", "none", "-nodefaults", "-m", "64", "-accel", "tcg"];
  await runOk(["qemu-system-x86_64", "-daemonize", "-pidfile", pidFile, ...quiet, ...monitor, ...disks]);
  const pid = Number(readFileSync(pidFile, "latin1"));
  return { [Symbol.dispose]: () => void process.kill(pid, "SIGKILL") };
}

async function obstacle(source: MigrationProcess): Promise<string> {
  return (await source.call("switchover", { dryRun: true })).obstacle ?? "";
}

itWith(["qemu-system-x86_64"], "an image that is not the one QEMU writes to is not moved", async () => {
  using folder = tempDir();
  const rig = new Rig(folder, ["vda", "vdb"]);
  rig.makeDisks(MiB);
  // The same file by another name.
  renameSync(rig.image("a", "vdb"), folder.file("real"));
  symlinkSync(folder.file("real"), rig.image("a", "vdb"));
  using _qemu = await startQemu(folder, [rig.image("a", "vda"), folder.file("real")]);
  const flags = ["--late-open", "--qmp", folder.file("qmp")];
  await using a = await rig.source({ flags, ownSocket: false });
  await using b = await rig.dest(await linkOf(a), { flags: ["--qmp", folder.file("nobody")] });
  await b.reached("ready");
  expect(await obstacle(a)).toMatch(/^on the destination: [^;]*$/);
  {
    const monitor = { kind: "unix", path: folder.file("qmp") } as const;
    using qemu = await QmpClient.dial({ clock: realClock, links: realLinks }, monitor);
    const snapshot = { "node-name": "d0", "snapshot-file": folder.file("over.qcow2"), "snapshot-node-name": "over" };
    await qemu.execute("blockdev-snapshot-sync", { ...snapshot, format: "qcow2" });
  }
  const why = `vda: QEMU writes to ${folder.file("over.qcow2")}, which lies over ${rig.image("a", "vda")}`;
  expect(await obstacle(a)).toContain(why);
  const { status, stderr } = await a.tryAsk("switchover");
  expect(stderr).toContain(why);
  expect(status).toBe(75);
  expect((await a.status()).migration).toMatchObject({ owner: "source", phase: "ready" });
});
