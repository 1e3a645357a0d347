/**
 * What `clone` finds beside IMAGE, and what it makes of it: a new overlay, one that is gone on with, or an image that has
 * long been complete. Nothing is served yet.
 */
import { dirname } from "node:path";
import type { BlockDevice } from "../../block/device.ts";
import { peekMap } from "../../cor/map-peek.ts";
import type { Overlay } from "../../cor/overlay.ts";
import { createOverlay, mapPath, openOverlay } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import { FileError } from "../../env/files.ts";
import { readBootId } from "../../os/boot-id.ts";
import { compareSources, identifySource } from "../../stream/source-identity.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_UNAVAILABLE } from "../exit-codes.ts";
import { takeDevice } from "../image/device-records.ts";
import { refuseForeign } from "../image/overlay-guard.ts";
import { findPlace, type OverlayPlace, refuseToWriteOver } from "../image/overlay-place.ts";
import type { ClonePlan } from "./plan.ts";
import type { ConnectSource } from "./source.ts";

export interface Begun {
  readonly state: "begun" | "complete";
  /** Of the disk. */
  readonly sizeBytes: number;
  /** What every session with the source has to be. */
  readonly identity: string;
  /** There was an overlay already. */
  readonly resumed: boolean;
  readonly place: OverlayPlace;
}

/** Afterwards there is an overlay beside IMAGE, or the image is complete. The source is asked only for a new one. */
export async function beginOverlay(env: Env, plan: ClonePlan, connect: ConnectSource): Promise<Begun> {
  const path = plan.serve.image;
  const place = await findPlace(env, path, plan.format);
  const { records, device } = place;
  await refuseForeign(env, path);
  const map = await peekMap(env, records);
  if (map === "unreadable") throw unreadable(path, records);
  const begun = map !== undefined && map !== "blank" && map.state !== "new";
  if (device !== undefined && !begun) await refuseToWriteOver(env, device, plan.overwriteDevice);
  if (device !== undefined) await takeDevice(env, device);
  if (begun) {
    const { state, sizeBytes, sourceIdentity: identity } = map;
    return { state: state === "complete" ? "complete" : "begun", sizeBytes, identity, resumed: true, place };
  }
  await using source = await connect();
  const { sizeBytes } = source;
  if (sizeBytes === 0) throw emptySource(plan);
  const identity = await identifySource(source);
  // Nobody could know it again, so nothing could ever be read from it.
  if (compareSources(identity, identity) === "unknown") throw unknowable(plan);
  try {
    await createOverlay(env, {
      path: records,
      sizeBytes,
      sourceIdentity: identity,
      ...(plan.clusterBytes !== undefined && { clusterBytes: plan.clusterBytes }),
      createImage: (uuid, begun) => place.store.create({ sizeBytes, uuid, begun }),
    });
  } catch (error) {
    throw error instanceof FileError ? besideImage(path, records, error) : error;
  }
  return { state: "begun", sizeBytes, identity, resumed: false, place };
}

export interface Backings {
  readonly demand: BlockDevice;
  readonly ahead: BlockDevice;
  readonly background: BlockDevice;
}

/** Opens, and locks, what `beginOverlay` has found or made. The sources stay the caller's. */
export async function openBegunOverlay(
  env: Env,
  { records, store }: OverlayPlace,
  { demand, ahead, background }: Backings,
): Promise<Overlay> {
  return await openOverlay(env, {
    path: records,
    backing: demand,
    ahead,
    background,
    bootId: await readBootId(),
    openStore: ({ sizeBytes, uuid, clusterBytes, state }) => store.open({ sizeBytes, uuid, clusterBytes, state }),
  });
}

const FOLDER_TROUBLE: Readonly<Record<string, readonly [code: string, why: string, hint: string]>> = {
  ENOENT: ["not-found", "there is no folder %", "create the folder first, or correct the name"],
  ENOTDIR: ["not-found", "% is no folder", "correct the name"],
  EACCES: ["permission", "% may not be written to by us", "check the permissions of that folder"],
  EROFS: ["permission", "% is on a file system that is read-only", "choose a place that can be written to"],
  ENOSPC: ["no-space", "% is on a file system that is full", "make room there, or choose another place"],
};

/** The map and the log go where the image goes, or, of a device, where its records are. */
function besideImage(path: string, records: string, error: FileError): CliError {
  const [code, why, hint] = FOLDER_TROUBLE[error.code] ?? [error.code, error.message, "look at the kernel log"];
  const what = `cannot begin a copy at ${path}`;
  return new CliError(
    { exitCode: EXIT_IO, code, what, why: why.replace("%", dirname(records)), hint },
    { cause: error },
  );
}

function unreadable(path: string, records: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "map-unreadable",
    what: `cannot go on with ${path}`,
    why: `${mapPath(records)} cannot be read, or is no presence map`,
    hint: "check the file; without it nobody can tell what the image holds, and it has to be copied anew",
  });
}

function emptySource(plan: ClonePlan): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "empty",
    what: `cannot copy ${plan.source.uri}`,
    why: "it is 0 bytes long, so there is nothing to copy",
    hint: "check the export's name",
  });
}

function unknowable(plan: ClonePlan): CliError {
  return new CliError({
    exitCode: EXIT_UNAVAILABLE,
    code: "source-unreadable",
    what: `cannot copy ${plan.source.uri}`,
    why: "it answers every read with an error",
    hint: "check the source's own disk and log",
  });
}
