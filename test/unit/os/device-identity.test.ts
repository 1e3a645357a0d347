/** What a block device is known by, from what sysfs and udev say of it. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { expect, test } from "vitest";
import { deviceIdentity, identityOf } from "../../../src/os/device-identity.ts";
import { tempDir } from "../../support/temp-dir.ts";

/** `files`: those of the device in sysfs, and `udev`. */
async function known(files: Readonly<Record<string, string>>): Promise<string | undefined> {
  using folder = tempDir();
  for (const [name, content] of Object.entries(files)) {
    const path = folder.file(name === "udev" ? "udev/data/b8:1" : `sys/dev/block/8:1/${name}`);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, `${content}\n`);
  }
  return await identityOf("8:1", { sys: folder.file("sys"), udev: folder.file("udev") });
}

const PARTUUID = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const LUKS = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef";

test.each<[what: string, files: Record<string, string>, identity: string | undefined]>([
  ["a volume", { "dm/name": "vg-a", "dm/uuid": "LVM-abc" }, "dm:LVM-abc"],
  ["a mapping without a uuid", { "dm/name": "a", "dm/uuid": "", wwid: "naa.1" }, undefined],
  ["an encrypted volume, whatever it is called", { "dm/name": "x", "dm/uuid": `${LUKS}-x` }, `dm:${LUKS}`],
  ["an encrypted volume without a header", { "dm/name": "x", "dm/uuid": "CRYPT-PLAIN-x" }, undefined],
  ["a partition", { partition: "1", uevent: `MAJOR=8\nPARTUUID=${PARTUUID}` }, `partition:${PARTUUID}`],
  ["a partition, by udev", { partition: "1", udev: `E:ID_PART_ENTRY_UUID=${PARTUUID}` }, `partition:${PARTUUID}`],
  ["a partition without a uuid", { partition: "1", "device/wwid": "naa.1" }, undefined],
  ["an NVMe namespace", { wwid: "eui.0025388b01b2c3d4" }, "disk:eui.0025388b01b2c3d4"],
  ["a SCSI disk", { "device/wwid": "naa.5000c500a1b2c3d4" }, "disk:naa.5000c500a1b2c3d4"],
  ["a virtio disk", { serial: "disk-7" }, "disk:disk-7"],
  ["a virtio disk without a serial number", { serial: "" }, undefined],
  [
    "an array",
    { "md/level": "raid1", "md/uuid": "0a1b2c3d-00000000-11111111-22222222" },
    `md:0a1b2c3d${"0".repeat(8)}${"1".repeat(8)}${"2".repeat(8)}`,
  ],
  [
    "an array, by udev",
    { "md/level": "raid1", udev: "E:MD_UUID=0a1b2c3d:00000000:11111111:22222222" },
    `md:0a1b2c3d${"0".repeat(8)}${"1".repeat(8)}${"2".repeat(8)}`,
  ],
  ["a loop device whose file is gone", { "loop/backing_file": "/vm/a.raw (deleted)", "loop/offset": "0" }, undefined],
  ["nothing that is known", {}, undefined],
])("%s", async (_what, files, identity) => {
  expect(await known(files)).toBe(identity);
});

test("a loop device is its file, from where it begins; another file of that name is another device", async () => {
  using folder = tempDir();
  const file = folder.file("a.raw");
  const identity = (offset: string): Promise<string | undefined> =>
    known({ "loop/backing_file": file, "loop/offset": offset });
  writeFileSync(file, "a");
  const first = await identity("0");
  expect(first).toMatch(/^loop:/);
  writeFileSync(file, "longer, and later");
  expect(await identity("0")).toBe(first);
  expect(await identity("4096")).not.toBe(first);
  renameSync(file, folder.file("kept"));
  writeFileSync(file, "b");
  expect(await identity("0")).not.toBe(first);
  rmSync(file);
  expect(await identity("0")).toBeUndefined();
});

test("what is no block device, or not there, has none", async () => {
  using folder = tempDir();
  writeFileSync(folder.file("file"), "a");
  expect(await deviceIdentity(folder.file("file"))).toBeUndefined();
  expect(await deviceIdentity(folder.file("nothing"))).toBeUndefined();
  expect(await deviceIdentity("/dev/null")).toBeUndefined();
});
