/** A guest's disk with files on it, as the guest itself would have written them: `f/NNNNNN`, and its MD5 in `s/NNNNNN`. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, open, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

/** Where Debian has the tools of file systems. */
export const WITH_SBIN = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };

export interface FilledDiskOptions {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of the files, from number 1 on. */
  readonly contents: Iterable<Uint8Array>;
  /** A folder that does not exist. It is used, and removed. */
  readonly scratch: string;
}

/** Needs "mkfs.ext4". Rejects with what it says. */
export async function makeFilledDisk({ path, sizeBytes, contents, scratch }: FilledDiskOptions): Promise<void> {
  try {
    for (const folder of ["", "f", "s"]) await mkdir(join(scratch, folder));
    let number = 0;
    for (const bytes of contents) {
      number += 1;
      const name = String(number).padStart(6, "0");
      await writeFile(join(scratch, "f", name), bytes);
      await writeFile(join(scratch, "s", name), `${createHash("md5").update(bytes).digest("hex")}\n`);
    }
    await using file = await open(path, "w");
    await file.truncate(sizeBytes);
    await promisify(execFile)("mkfs.ext4", ["-q", "-d", scratch, path], { env: WITH_SBIN });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
