/** A guest's disk, from the outside: made with files on it, and looked into afterwards, without mounting anything. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import { makeFilledDisk, WITH_SBIN } from "../../src/demo/vm/filled-disk.ts";
import type { GuestLog } from "../../src/demo/vm/guest-log.ts";
import { run, runOk } from "./run.ts";
import type { Prng } from "./seed.ts";
import { tempDir } from "./temp-dir.ts";

export const DISK_TOOLS = ["mkfs.ext4", "e2fsck", "debugfs"];

const MiB = 2 ** 20;
/** `e2fsck`: the file system was changed. That is what it was asked for. */
const FSCK_CHANGED = 1;
/** What is right to be done after a crash: the journal, files that were being removed, totals that are not in the journal. */
const AFTER_A_CRASH = /: (recovering journal|clean, .*|Clearing orphaned inode .*|Setting free \w+ count to .*)$/;

export function emptyDisk(path: string, sizeMib = 128): void {
  writeFileSync(path, "");
  truncateSync(path, sizeMib * MiB);
}

/** A disk with `files` files of at most `kib` KiB on it, as the guest itself would have written them. */
export async function filledDisk(
  path: string,
  rng: Prng,
  { sizeMib = 128, files = 100, kib = 256 } = {},
): Promise<void> {
  const contents = Array.from({ length: files }, () => {
    const bytes = Buffer.alloc(rng.integer(1, kib * 1024));
    rng.fill(bytes);
    return bytes;
  });
  await makeFilledDisk({ path, sizeBytes: sizeMib * MiB, contents, scratch: `${path}.files` });
}

/**
 * The file system on `path` is sound once its journal was replayed, and every file that the guest has said to be on it to
 * stay is there, as it was written; and so is every other one with its sum beside it, but for the one that the guest was
 * writing. Nobody may have `path` open.
 */
export async function expectSoundDisk(path: string, disk: string, log: GuestLog): Promise<void> {
  // Without -f this does what mounting does, and no more; with it, it would repair what the check is to find.
  const replay = await run(["e2fsck", "-p", path], { env: WITH_SBIN });
  const said = replay.stdout.split("\n").filter((line) => line !== "" && !AFTER_A_CRASH.test(line));
  expect(said, "what had to be repaired").toEqual([]);
  expect(replay.status, replay.stdout + replay.stderr).toBeLessThanOrEqual(FSCK_CHANGED);
  const check = await run(["e2fsck", "-fn", path], { env: WITH_SBIN });
  expect(check.status, check.stdout + check.stderr).toBe(0);
  using tree = tempDir();
  await runOk(["debugfs", "-R", `rdump /f /s ${tree.path}`, path], { env: WITH_SBIN });
  const found = new Map<number, string>();
  for (const name of readdirSync(tree.file("f"))) {
    const sum = md5(readFileSync(tree.file(`f/${name}`)));
    found.set(Number(name), sum);
    // Its name may have come to the disk before what is in it, and before its sum.
    if (Number(name) === log.unfinishedOn(disk)) continue;
    expect(sum, `the sum beside ${name}`).toBe(readFileSync(tree.file(`s/${name}`), "latin1").trim());
  }
  const missing = [...log.syncedOn(disk)].filter(([number, sum]) => found.get(number) !== sum);
  expect(missing, "files that were synced and are not there").toEqual([]);
}

function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("hex");
}
