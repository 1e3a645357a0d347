/**
 * What `clone` finds beside IMAGE, and what it makes of it: a new overlay, one that is gone on with, or an image that has
 * long been complete. Nothing is served yet.
 */

import { statSync } from "node:fs";
import { dirname } from "node:path";
import type { BlockDevice } from "../../block/device.ts";
import { peekMap } from "../../cor/map-peek.ts";
import type { Overlay } from "../../cor/overlay.ts";
import { createOverlay, mapPath, openOverlay } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import { FileError } from "../../env/files.ts";
import type { OverlayFormat } from "../../image/format.ts";
import { readBootId } from "../../os/boot-id.ts";
import { compareSources, identifySource } from "../../stream/source-identity.ts";
import { CliError, usageError } from "../cli-error.ts";
import { EXIT_IO, EXIT_UNAVAILABLE } from "../exit-codes.ts";
import { refuseForeign } from "../image/overlay-guard.ts";
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
}

/** Afterwards there is an overlay beside IMAGE, or the image is complete. The source is asked only for a new one. */
export async function beginOverlay(env: Env, plan: ClonePlan, connect: ConnectSource): Promise<Begun> {
  const path = plan.serve.image;
  if (isBlockDevice(path)) throw onDevice(path);
  await refuseForeign(env, path);
  const map = await peekMap(env, path);
  if (map === "unreadable") throw unreadable(path);
  if (map !== undefined && map !== "blank" && map.state !== "new") {
    const { state, sizeBytes, sourceIdentity: identity } = map;
    return { state: state === "complete" ? "complete" : "begun", sizeBytes, identity, resumed: true };
  }
  await using source = await connect();
  const { sizeBytes } = source;
  if (sizeBytes === 0) throw emptySource(plan);
  const identity = await identifySource(source);
  // Nobody could know it again, so nothing could ever be read from it.
  if (compareSources(identity, identity) === "unknown") throw unknowable(plan);
  try {
    await createOverlay(env, {
      path,
      sizeBytes,
      sourceIdentity: identity,
      ...(plan.clusterBytes !== undefined && { clusterBytes: plan.clusterBytes }),
      createImage: (uuid, begun) => overlayFormat(plan).create(env, { path, sizeBytes, uuid, begun }),
    });
  } catch (error) {
    throw error instanceof FileError ? besideImage(path, error) : error;
  }
  return { state: "begun", sizeBytes, identity, resumed: false };
}

export interface Backings {
  readonly demand: BlockDevice;
  readonly ahead: BlockDevice;
  readonly background: BlockDevice;
}

/** Opens, and locks, what `beginOverlay` has found or made. The sources stay the caller's. */
export async function openBegunOverlay(
  env: Env,
  plan: ClonePlan,
  { demand, ahead, background }: Backings,
): Promise<Overlay> {
  const path = plan.serve.image;
  return await openOverlay(env, {
    path,
    backing: demand,
    ahead,
    background,
    bootId: await readBootId(),
    openStore: ({ sizeBytes, uuid, clusterBytes, state }) =>
      overlayFormat(plan).open(env, { path, sizeBytes, uuid, clusterBytes, state }),
  });
}

function overlayFormat({ format, serve }: ClonePlan): OverlayFormat {
  if (format.overlay !== undefined) return format.overlay;
  throw usageError(`cannot copy to ${serve.image}`, `a copy cannot be ${format.name}`, "choose raw, qed or qcow2");
}

function isBlockDevice(path: string): boolean {
  try {
    return statSync(path).isBlockDevice();
  } catch {
    // Whoever opens it has more to say about it.
    return false;
  }
}

/** A device's name is in a folder that is made anew at each start, its length is fixed, and it holds what was there before. */
function onDevice(path: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "block-device",
    what: `cannot copy onto ${path}`,
    why: "it is a block device: a copy under way keeps its map and log beside the image, and marks the image as unfinished",
    hint: `clone to a file with --exit-when-hydrated, then \`qemu-img convert -n -f raw -O raw FILE ${path}\``,
  });
}

const FOLDER_TROUBLE: Readonly<Record<string, readonly [code: string, why: string, hint: string]>> = {
  ENOENT: ["not-found", "there is no folder %", "create the folder first, or correct the name"],
  ENOTDIR: ["not-found", "% is no folder", "correct the name"],
  EACCES: ["permission", "% may not be written to by us", "check the permissions of that folder"],
  EROFS: ["permission", "% is on a file system that is read-only", "choose a place that can be written to"],
  ENOSPC: ["no-space", "% is on a file system that is full", "make room there, or choose another place"],
};

/** The map and the log go where the image goes. */
function besideImage(path: string, error: FileError): CliError {
  const [code, why, hint] = FOLDER_TROUBLE[error.code] ?? [error.code, error.message, "look at the kernel log"];
  const what = `cannot begin a copy at ${path}`;
  return new CliError({ exitCode: EXIT_IO, code, what, why: why.replace("%", dirname(path)), hint }, { cause: error });
}

function unreadable(path: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "map-unreadable",
    what: `cannot go on with ${path}`,
    why: `${mapPath(path)} cannot be read, or is no presence map`,
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
