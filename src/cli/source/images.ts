/** The images of a source: opened and locked, unless they are somebody else's. */
import { accessSync, constants, statSync } from "node:fs";
import { dirname } from "node:path";
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
import { LateDevice } from "./late-device.ts";
import type { LateImage } from "./late-images.ts";

export interface OpenedDisk {
  readonly name: string;
  readonly image: string;
  readonly format: string;
  readonly device: BlockDevice;
}

interface OpenOptions {
  readonly log: Log;
  readonly cleanup: Cleanup;
}

export async function openDisks(
  env: Env,
  disks: readonly DiskPlan[],
  { log, cleanup }: OpenOptions,
): Promise<OpenedDisk[]> {
  const opened: OpenedDisk[] = [];
  for (const { name, chain } of disks) {
    const [{ path }] = chain;
    await refuseUnfit(env, chain);
    const { top, images, close } = await openChain(env, { chain, readOnly: false });
    cleanup.defer(close);
    for (const { notice } of images) if (notice !== undefined) log.warn(notice);
    if (top.image.sizeBytes === 0) throw empty(path);
    opened.push({ name, image: path, format: top.format.name, device: top.image });
  }
  return opened;
}

export type LateDisk = OpenedDisk & LateImage;

/**
 * For `--late-open`: looks at images that their guest's own QEMU has open. What could hinder us from opening them when it
 * has let go of them is told now, as far as that can be known.
 */
export async function peekDisks(
  env: Env,
  disks: readonly DiskPlan[],
  { log, cleanup }: OpenOptions,
): Promise<LateDisk[]> {
  const known: LateDisk[] = [];
  for (const { name, chain } of disks) {
    const [{ path }, ...below] = chain;
    await refuseUnfit(env, chain);
    refuseWithoutAccess(chain);
    const looked = await openChain(env, { chain, readOnly: true, lock: false });
    const { format, image, notice } = looked.top;
    const { sizeBytes } = image;
    await looked.close();
    if (notice !== undefined) log.warn(notice);
    if (sizeBytes === 0) throw empty(path);
    const device = new LateDevice(sizeBytes, async () => {
      const { top, close } = await openChain(env, { chain, readOnly: true });
      return { device: top.image, close };
    });
    cleanup.defer(() => device.close());
    const paths = [path, ...below.map((link) => link.path)] as const;
    known.push({ name, image: path, paths, format: format.name, device });
  }
  return known;
}

async function refuseUnfit(env: Env, [{ path }, ...below]: DiskPlan["chain"]): Promise<void> {
  refuseDevice(path);
  const owner = await readOwner(env, path);
  // What this host has given away is for the migration to judge: it may be about to come back.
  if (owner?.state === "PENDING" || owner?.state === "ACTIVE") refuseUnlessOwned(path, owner);
  await refuseMissingBlocks(env, path);
  for (const link of below) await refuseIncomplete(env, link.path);
}

/** The images are to be read; beside the first of them it is to be written down whose the disk is. */
function refuseWithoutAccess(chain: DiskPlan["chain"]): void {
  const [{ path: top }] = chain;
  const wanted = [...chain.map(({ path }) => [path, constants.R_OK] as const), [dirname(top), constants.W_OK] as const];
  for (const [path, mode] of wanted) {
    try {
      accessSync(path, mode);
    } catch (cause) {
      throw new CliError(
        {
          exitCode: EXIT_IO,
          code: (cause as NodeJS.ErrnoException).code ?? "io",
          what: `cannot move ${top} later`,
          why: `${path} ${mode === constants.R_OK ? "cannot be read" : "cannot be written to"} (${(cause as Error).message})`,
          hint: "run blockferry as a user who may, or correct the permissions",
        },
        { cause },
      );
    }
  }
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
