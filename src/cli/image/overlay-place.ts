/**
 * Where the image of an overlay is, and its records: a file, with the records beside it, or a block device, with the records
 * in the host's folder. A device is there before the overlay, and holds something: that is written over only when the
 * operator says so, and never if it is known to be a disk of this host's, or a part of one.
 */
import { dirname, resolve } from "node:path";
import { peekMap } from "../../cor/map-peek.ts";
import { mapPath } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import type { ImageFormat } from "../../image/format.ts";
import { createRawDeviceOverlay, openRawDeviceOverlay } from "../../image/raw-device-overlay.ts";
import type { StoreFormat } from "../../migrate/destination-options.ts";
import { ownerPath, readOwner, refuseUnlessOwned } from "../../migrate/owner-record.ts";
import { CliError, usageError } from "../cli-error.ts";
import { EXIT_IO, EXIT_TRY_AGAIN } from "../exit-codes.ts";
import { type DevicePlace, findDevice } from "./device-records.ts";

export interface OverlayPlace {
  readonly image: string;
  /** What map, log and the owner's record are named after. */
  readonly records: string;
  /** Undefined: it is a file, or will be one. */
  readonly device: DevicePlace | undefined;
  readonly store: StoreFormat;
}

/** Throws `CliError` for what cannot be the image of an overlay in this format. */
export async function findPlace(env: Env, image: string, format: ImageFormat): Promise<OverlayPlace> {
  const { overlay } = format;
  if (overlay === undefined)
    throw usageError(`cannot copy to ${image}`, `a copy cannot be ${format.name}`, "choose raw, qed or qcow2");
  const device = await findDevice(env, image);
  if (device === undefined) {
    await refuseMissingDevice(env, image);
    const store: StoreFormat = {
      create: (options) => overlay.create(env, { path: image, ...options }),
      open: (options) => overlay.open(env, { path: image, ...options }),
    };
    return { image, records: image, device, store };
  }
  if (format.name !== "raw") throw notRaw(image, format);
  const where = { path: image, head: headPath(device.records) };
  const store: StoreFormat = {
    create: ({ sizeBytes, uuid }) => createRawDeviceOverlay(env, { ...where, sizeBytes, uuid }),
    open: (options) => openRawDeviceOverlay(env, { ...where, ...options }),
  };
  return { image, records: device.records, device, store };
}

/** Of a device: its first bytes, until all of the disk is there. */
export function headPath(records: string): string {
  return `${records}.head`;
}

/** Throws unless what is on the device may be written over, by a new overlay. */
export async function refuseToWriteOver(
  env: Pick<Env, "files">,
  { path, records }: DevicePlace,
  overwrite: boolean,
): Promise<void> {
  const owner = await readOwner(env, records);
  if (owner?.state === "OWNER")
    throw inUse(path, ownerPath(records), "a disk that a migration has brought to this host");
  // Of what was moved away, the other host has everything.
  if (owner !== undefined && owner.state !== "RELEASED") refuseUnlessOwned(path, owner);
  const map = await peekMap(env, records);
  if (owner === undefined && map === "unreadable") throw inUse(path, mapPath(records), "a copy");
  if (owner === undefined && typeof map === "object" && map.state !== "new") {
    throw inUse(path, mapPath(records), map.state === "complete" ? "a copy" : "a part of a copy");
  }
  if (overwrite) return;
  throw new CliError({
    exitCode: EXIT_IO,
    code: "device-overwrite",
    what: `will not write over ${path}`,
    why: "it is a block device, and what is on it would be lost",
    hint: "add --overwrite-device, if nobody needs what is on it",
  });
}

/** A file made there would be in memory, and gone after the next boot. */
async function refuseMissingDevice({ files }: Pick<Env, "files">, image: string): Promise<void> {
  if (!resolve(image).startsWith("/dev/") || resolve(image).startsWith("/dev/shm/") || (await files.exists(image)))
    return;
  throw new CliError({
    exitCode: EXIT_IO,
    code: "not-found",
    what: `cannot begin a copy at ${image}`,
    why: `there is no such device, and ${dirname(resolve(image))} is no place for files`,
    hint: "make the volume first (lvcreate, for instance), or name a file elsewhere",
  });
}

function inUse(path: string, record: string, what: string): CliError {
  return new CliError({
    exitCode: EXIT_TRY_AGAIN,
    code: "exists",
    what: `will not write over ${path}`,
    why: `${record} says that it holds ${what}`,
    hint: `if nobody needs that any more, remove ${record}, or choose another device`,
  });
}

function notRaw(path: string, { name }: ImageFormat): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "block-device",
    what: `cannot make ${path} a ${name} image`,
    why: "it is a block device, and such an image may want to become longer than the device",
    hint: "bring the disk to the device as raw (--format raw, or ,format=raw), or to a file",
  });
}
