/** The guest itself, on a disk that blockferry serves. */

import { writeFileSync } from "node:fs";
import { expect } from "vitest";
import { GuestLog } from "../../src/demo/vm/guest-log.ts";
import { itBoots, startGuest } from "../support/guest.ts";
import { DISK_TOOLS, emptyDisk, expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { nbdkit } from "../support/peers.ts";
import { runOk } from "../support/run.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { startServe } from "../support/serve-process.ts";
import { tempDir } from "../support/temp-dir.ts";
import { itWith } from "../support/tools.ts";

itBoots([], "a guest's host that dies leaves a sound file system, and every file that was synced", async () => {
  using folder = tempDir();
  const [vda, vdb] = [folder.file("vda.raw"), folder.file("vdb.raw")];
  for (const path of [vda, vdb]) emptyDisk(path);
  await using first = await startServe({ image: vda, socket: folder.file("a") });
  await using second = await startServe({ image: vdb, socket: folder.file("b") });
  const disks = [{ socket: first.socket }, { socket: second.socket }];
  await using guest = await startGuest({ folder, disks });
  await Promise.all([guest.log.more("synced", 12, "vda"), guest.log.more("verified", 5, "vdb")]);
  await guest.kill();
  // What has been replied is in the page cache; the servers need not be asked to write it.
  await Promise.all([first.kill(), second.kill()]);
  expect(guest.log.complaints()).toEqual([]);
  await expectSoundDisk(vda, "vda", guest.log);
  await expectSoundDisk(vdb, "vdb", guest.log);
});

itBoots(["nbdkit"], "a disk that fails is noticed by the guest", async () => {
  using folder = tempDir();
  const [image, trigger] = [folder.file("vda.raw"), folder.file("fail")];
  emptyDisk(image);
  const failing = ["error=EIO", "error-rate=100%", `error-file=${trigger}`];
  await using nbd = await nbdkit("--filter=error", "file", image, ...failing);
  await using guest = await startGuest({ folder, disks: [{ socket: (nbd.address as { path: string }).path }] });
  await guest.log.more("verified", 3);
  expect(guest.log.complaints()).toEqual([]);
  const noticed = guest.log.more("io-error", 2);
  writeFileSync(trigger, "");
  await noticed;
  expect(guest.log.complaints()).not.toEqual([]);
});

itWith(
  DISK_TOOLS,
  "the checker of disks misses neither a lost file, nor a changed one, nor a broken file system",
  async () => {
    using folder = tempDir();
    const image = folder.file("vda.raw");
    await filledDisk(image, new Prng(runSeed(), "checked files"), { files: 5, sizeMib: 16 });
    const sums = await runOk(["debugfs", "-R", "cat /s/000003", image]);
    const check = (...lines: string[]): Promise<void> => {
      const log = new GuestLog();
      log.push(lines.map((line) => `${line}\r\n`).join(""));
      return expectSoundDisk(image, "vda", log);
    };
    await check(`GUEST-SYNCED vda 3 ${sums.trim()} 100`, "GUEST-SYNCED vda 9 00 1", "GUEST-REMOVING vda 9");
    await expect(check("GUEST-SYNCED vda 9 00 1")).rejects.toThrow("files that were synced");
    await expect(check("GUEST-SYNCED vda 3 00112233445566778899aabbccddeeff 100")).rejects.toThrow(
      "files that were synced",
    );
    await runOk(["debugfs", "-w", "-R", "rm /f/000002", image]);
    await check();
    await runOk(["debugfs", "-w", "-R", "clri /f/000003", image]);
    await expect(check()).rejects.toThrow("000003");
  },
);
