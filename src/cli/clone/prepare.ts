/**
 * What `clone` finds beside IMAGE, and what it makes of it: a new overlay, one that is gone on with, or an image that has
 * long been complete. Nothing is served yet.
 */

import type { BlockDevice } from "../../block/device.ts";
import { peekMap } from "../../cor/map-peek.ts";
import type { Overlay } from "../../cor/overlay.ts";
import { createOverlay, mapPath, openOverlay } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import { createRawOverlay, openRawOverlay } from "../../image/raw-overlay.ts";
import { readBootId } from "../../os/boot-id.ts";
import { compareSources, identifySource } from "../../stream/source-identity.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_UNAVAILABLE } from "../exit-codes.ts";
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
  await createOverlay(env, {
    path,
    sizeBytes,
    sourceIdentity: identity,
    ...(plan.clusterBytes !== undefined && { clusterBytes: plan.clusterBytes }),
    createImage: (uuid, begun) => createRawOverlay(env, { path, sizeBytes, uuid, begun }),
  });
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
  path: string,
  { demand, ahead, background }: Backings,
): Promise<Overlay> {
  return await openOverlay(env, {
    path,
    backing: demand,
    ahead,
    background,
    bootId: await readBootId(),
    openStore: ({ sizeBytes, uuid, clusterBytes, state }) =>
      openRawOverlay(env, { path, sizeBytes, uuid, clusterBytes, complete: state === "complete" }),
  });
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
