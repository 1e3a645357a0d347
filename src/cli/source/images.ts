/** The images of a source: opened and locked, unless they are somebody else's. */
import { statSync } from "node:fs";
import type { BlockDevice } from "../../block/device.ts";
import type { Env } from "../../env/env.ts";
import { openChain } from "../../image/chain.ts";
import { ownerPath, readOwner, refuseUnlessOwned } from "../../migrate/owner-record.ts";
import type { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";
import { refuseIncomplete, refuseMissingBlocks } from "../image/overlay-guard.ts";
import type { Log } from "../log.ts";
import type { DiskPlan } from "../migration/disk-spec.ts";

export interface OpenedDisk {
  readonly name: string;
  readonly image: string;
  readonly format: string;
  readonly device: BlockDevice;
}

export async function openDisks(
  env: Env,
  disks: readonly DiskPlan[],
  { log, cleanup }: { readonly log: Log; readonly cleanup: Cleanup },
): Promise<OpenedDisk[]> {
  const opened: OpenedDisk[] = [];
  for (const { name, chain } of disks) {
    const [{ path }, ...below] = chain;
    refuseDevice(path);
    const owner = await readOwner(env, path);
    // What this host has given away is for the migration to judge: it may be about to come back.
    if (owner?.state === "PENDING" || owner?.state === "ACTIVE") refuseUnlessOwned(path, owner);
    await refuseMissingBlocks(env, path);
    for (const link of below) await refuseIncomplete(env, link.path);
    const { top, images, close } = await openChain(env, { chain, readOnly: false });
    cleanup.defer(close);
    for (const { notice } of images) if (notice !== undefined) log.warn(notice);
    if (top.image.sizeBytes === 0) throw empty(path);
    opened.push({ name, image: path, format: top.format.name, device: top.image });
  }
  return opened;
}

/** The folder of a device is made anew at each start of the host: the record of who owns the disk would be lost with it. */
function refuseDevice(path: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.isBlockDevice() !== true) return;
  throw new CliError({
    exitCode: EXIT_IO,
    code: "block-device",
    what: `cannot move ${path}`,
    why: `it is a block device: ${ownerPath(path)}, which says whose the disk is, would be gone after the next boot`,
    hint: "move disks that are files; a device can be copied with `blockferry serve` there and `clone` here",
  });
}

function empty(path: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "empty",
    what: `cannot move ${path}`,
    why: "it is 0 bytes long, so there is nothing to move",
    hint: "check the image's name",
  });
}
