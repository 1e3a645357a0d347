/** The images of a source: opened and locked, unless they are somebody else's. */
import { accessSync, constants } from "node:fs";
import { dirname } from "node:path";
import type { BlockDevice } from "../../block/device.ts";
import type { Env } from "../../env/env.ts";
import { openChain } from "../../image/chain.ts";
import { chooseFormat } from "../../image/format.ts";
import { readOwner, refuseUnlessOwned } from "../../migrate/owner-record.ts";
import type { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";
import { findDevice, takeDevice } from "../image/device-records.ts";
import { refuseIncomplete, refuseMissingBlocks } from "../image/overlay-guard.ts";
import type { Log } from "../log.ts";
import type { DiskPlan } from "../migration/disk-spec.ts";
import { LateDevice } from "./late-device.ts";
import type { LateImage } from "./late-images.ts";

export interface OpenedDisk {
  readonly name: string;
  readonly image: string;
  /** What its owner's record is named after. */
  readonly records: string;
  readonly format: string;
  readonly device: BlockDevice;
}

interface OpenOptions {
  readonly log: Log;
  readonly cleanup: Cleanup;
}

/** The late ones are among the disks. */
export async function openImages(
  { disks, lateOpen }: { readonly disks: readonly DiskPlan[]; readonly lateOpen: boolean },
  env: Env,
  options: OpenOptions,
): Promise<{ disks: readonly OpenedDisk[]; late: readonly LateDisk[] | undefined }> {
  if (!lateOpen) return { disks: await openDisks(env, disks, options), late: undefined };
  const late = await peekDisks(env, disks, options);
  return { disks: late, late };
}

async function openDisks(env: Env, disks: readonly DiskPlan[], { log, cleanup }: OpenOptions): Promise<OpenedDisk[]> {
  const opened: OpenedDisk[] = [];
  for (const { name, chain } of disks) {
    const [{ path }] = chain;
    const records = await takeRecords(env, chain);
    const { top, images, close } = await openChain(env, { chain, readOnly: false });
    cleanup.defer(close);
    for (const { notice } of images) if (notice !== undefined) log.warn(notice);
    if (top.image.sizeBytes === 0) throw empty(path);
    opened.push({ name, image: path, records, format: top.format.name, device: top.image });
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
    const records = await takeRecords(env, chain);
    refuseWithoutAccess(chain, dirname(records));
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
    known.push({ name, image: path, records, paths, format: format.name, device });
  }
  return known;
}

/** Refuses what is not to be moved. Resolves to what the image's records are named after. */
async function takeRecords(env: Env, chain: DiskPlan["chain"]): Promise<string> {
  const [{ path, format }, ...below] = chain;
  const device = await findDevice(env, path);
  if (device !== undefined && chooseFormat(path, format).format.name !== "raw") throw notRaw(path);
  const records = device?.records ?? path;
  const owner = await readOwner(env, records);
  // What this host has given away is for the migration to judge: it may be about to come back.
  if (owner?.state === "PENDING" || owner?.state === "ACTIVE") refuseUnlessOwned(path, owner);
  await refuseMissingBlocks(env, path);
  for (const link of below) await refuseIncomplete(env, link.path);
  if (device !== undefined) await takeDevice(env, device);
  return records;
}

/** The images are to be read; in `folder` it is to be written down whose the disk is. */
function refuseWithoutAccess(chain: DiskPlan["chain"], folder: string): void {
  const [{ path: top }] = chain;
  const wanted = [...chain.map(({ path }) => [path, constants.R_OK] as const), [folder, constants.W_OK] as const];
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

function notRaw(path: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "block-device",
    what: `cannot move ${path}`,
    why: "it is a block device, and no raw disk: an image in another format may want to become longer than the device",
    hint: "move it as a file, or, once it was made raw with `qemu-img convert`, as a device",
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
