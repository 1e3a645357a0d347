/**
 * Makes and opens overlays: IMAGE with IMAGE.map and IMAGE.log beside it. Who keeps the image is the caller's to say: it
 * brings a store that carries the map's uuid and refuses another one, so that an image and a map that do not belong
 * together are never used.
 *
 * Making one: the map, state "new" → the image, carrying its uuid → the map's state "clean" (published). A crash in
 * between leaves a map in state "new", of which nothing was ever served. `createOverlay` then takes its uuid and goes on;
 * where there is no image yet, the map itself may not have reached the disk whole, and is made anew.
 */
import type { BlockDevice } from "../block/device.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Env } from "../env/env.ts";
import { FileError } from "../env/files.ts";
import { isZero } from "../util/zeroes.ts";
import { Commit } from "./commit.ts";
import { OverlayRefusedError } from "./errors.ts";
import { type IntentLog, openIntentLog } from "./intent-log.ts";
import { createMap, isBlankMap, type MapFile, openMap } from "./map-file.ts";
import { clusterCount, isClusterSize, type Superblock, UUID_BYTES } from "./map-format.ts";
import { Overlay } from "./overlay.ts";
import { addTo, bytesOf, runOf } from "./parts.ts";
import { Presence } from "./presence.ts";

type OverlayEnv = Pick<Env, "files" | "random" | "chaos">;
type OpenEnv = OverlayEnv & Pick<Env, "clock">;

export const CLUSTER_BYTES_DEFAULT = 4096;
const REWRITE_BYTES = 1024 * 1024;

export interface CreateOverlayOptions {
  /** The image; the map is `IMAGE.map`. Of a device: what its records are named after. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly clusterBytes?: number;
  /** What tells the source's disk from another; empty when it has nothing that does. */
  readonly sourceIdentity: string;
  readonly term?: number;
  /**
   * Makes a new image that carries the uuid, durable with its directory when resolved; nothing is left of it when this
   * rejects. `begun`: an earlier call with the same uuid may have got anywhere; what it made is to be finished. Must
   * refuse to touch any other image.
   */
  readonly createImage: (uuid: Uint8Array, begun: boolean) => Promise<void>;
}

export interface OpenOverlayOptions {
  /** As `CreateOverlayOptions.path`. */
  readonly path: string;
  readonly backing: BlockDevice;
  readonly background?: BlockDevice;
  readonly ahead?: BlockDevice;
  /** When given, it must be what the map says. */
  readonly sourceIdentity?: string;
  readonly bootId: string;
  readonly fetchUnitBytes?: number;
  /** Guest writes of missing clusters until a commit is forced. */
  readonly logHalfRecords?: number;
  /** `publishMap` has resolved in this very process, and nobody has used the map since: what it says is durable. */
  readonly published?: boolean;
  /** Opens the store for the map. Must refuse an image that does not carry the map's uuid, unless the map is complete. */
  readonly openStore: (map: Superblock) => Promise<OverlayStore>;
}

export function mapPath(image: string): string {
  return `${image}.map`;
}

export function logPath(image: string): string {
  return `${image}.log`;
}

/** Makes image and map. Throws `OverlayRefusedError("exists")` when there is a map that has been used. */
export async function createOverlay(env: OverlayEnv, options: CreateOverlayOptions): Promise<void> {
  const { path, sizeBytes, clusterBytes = CLUSTER_BYTES_DEFAULT, sourceIdentity, term = 0 } = options;
  if (!isClusterSize(clusterBytes)) throw new RangeError(`bad cluster size ${clusterBytes}`);
  const uuid = new Uint8Array(UUID_BYTES);
  env.random.fill(uuid);
  const left = await unpublished(env, path);
  if (left === undefined) await createMap(env, mapPath(path), { uuid, sizeBytes, clusterBytes, sourceIdentity, term });
  const map = await openMap(env, mapPath(path));
  try {
    const now = map.superblock;
    if (now.sizeBytes !== sizeBytes || now.clusterBytes !== clusterBytes || now.sourceIdentity !== sourceIdentity) {
      const message = `${map.path} was begun for another disk`;
      throw new OverlayRefusedError("mismatch", message, `remove ${path} and ${map.path}, which hold nothing yet`);
    }
    await makeImage(env, map, { begun: left !== undefined, createImage: options.createImage });
    await map.update({ state: "clean" });
  } finally {
    await map.close();
  }
}

interface MakeImage extends Pick<CreateOverlayOptions, "createImage"> {
  readonly begun: boolean;
}

async function makeImage(env: OverlayEnv, map: MapFile, { begun, createImage }: MakeImage): Promise<void> {
  try {
    await createImage(map.superblock.uuid, begun);
  } catch (error) {
    // Only what this call has made is removed.
    if (!begun) await env.files.unlink(map.path).catch(() => undefined);
    throw error;
  }
}

/** The superblock of a map that an interrupted `createOverlay` left, with an image that it may have begun. */
async function unpublished(env: OverlayEnv, path: string): Promise<Superblock | undefined> {
  if (!(await env.files.exists(mapPath(path))) || (await isBlankMap(env, mapPath(path)))) return undefined;
  const map = await openUnpublished(env, path);
  if (map !== undefined && map.superblock.state !== "new") {
    await map.close();
    throw new OverlayRefusedError(
      "exists",
      `${map.path} exists already`,
      "resume that overlay, or choose another name",
    );
  }
  try {
    if (map !== undefined && (await env.files.exists(path))) return map.superblock;
    await env.files.unlink(mapPath(path));
    return undefined;
  } finally {
    await map?.close();
  }
}

/** `undefined`: it is not a map yet, and there is no image. */
async function openUnpublished(env: OverlayEnv, path: string): Promise<MapFile | undefined> {
  try {
    return await openMap(env, mapPath(path));
  } catch (error) {
    const unfinished = error instanceof OverlayRefusedError && error.code === "map-corrupt";
    if (!unfinished || (await env.files.exists(path))) throw error;
    return undefined;
  }
}

/** Opens an overlay and makes what survived durable, before anything is served. Throws `OverlayRefusedError`. */
export async function openOverlay(env: OpenEnv, options: OpenOverlayOptions): Promise<Overlay> {
  const { path, backing, background = backing, ahead = background, bootId, published = false } = options;
  const { fetchUnitBytes, logHalfRecords } = options;
  const unit = fetchUnitBytes === undefined ? {} : { fetchUnitBytes };
  const logOptions = logHalfRecords === undefined ? {} : { halfRecords: logHalfRecords };
  const map = await openPublished(env, path);
  const opened: { close(): Promise<void> }[] = [map];
  try {
    checkMatches(map, options);
    const store = await options.openStore(map.superblock);
    opened.push(store);
    const { uuid, state, sizeBytes, clusterBytes } = map.superblock;
    if (store.sizeBytes !== sizeBytes || store.clusterBytes !== clusterBytes || backing.sizeBytes !== sizeBytes) {
      const message = `${path}, its map and its backing do not have the same size`;
      throw new OverlayRefusedError("mismatch", message, "connect to the source that it was made from");
    }
    const { log, records } = await openIntentLog(env, { path: logPath(path), uuid, bootId, ...logOptions });
    opened.push(log);
    const presence = new Presence(map, clusterCount(sizeBytes, clusterBytes));
    const durable = published && state === "open";
    const trusted = durable || env.chaos.on("cor/rewrite-skipped");
    // "clean" and "complete" were written after all else was durable.
    await presence.open(state === "open" && !trusted);
    // Before the first change: from now on, whoever opens the map must not take its page cache for the disk. Nor must we:
    // that it is complete may have been written, and not synced, by somebody who was killed.
    const completed = state === "complete" && !trusted;
    if (completed || (state !== "complete" && !durable)) await map.update({ state: completed ? "complete" : "open" });
    const { clock, chaos } = env;
    await replay({ presence, records, store, map, log, clock, chaos });
    return new Overlay({ store, map, log, presence, backing, background, ahead, clock, chaos, ...unit });
  } catch (error) {
    for (const resource of opened.reverse()) await resource.close();
    throw error;
  }
}

interface Replay {
  readonly presence: Presence;
  readonly records: readonly { first: number; count: number }[];
  readonly store: OverlayStore;
  readonly map: MapFile;
  readonly log: IntentLog;
  readonly clock: Env["clock"];
  readonly chaos: Env["chaos"];
}

/**
 * What the log knows is local, and is made durable by a commit of its own. It is written anew before that: a sync that was
 * under way when the last process was killed may have failed unseen, and then the kernel takes for clean what the disk has
 * not got, as long as nobody writes it again. (A page that the kernel has dropped meanwhile is beyond help, and so is what
 * was written over a cluster that was durable before, of which there is no record.)
 */
async function replay({ presence, records, ...parts }: Replay): Promise<void> {
  const trusting = parts.chaos.on("cor/replay-not-rewritten");
  for (const { first, count } of records) {
    const last = first + count - 1;
    for (let at = first; last < presence.clusters && at <= last; ) {
      const run = await runOf(presence, at, last);
      if (!run.present && !trusting) await rewrite(parts.store, at, run.last);
      if (!run.present) await addTo(presence, at, run.last);
      at = run.last + 1;
    }
  }
  if (!presence.settled) await new Commit({ presence, ...parts }).full();
}

/** Makes dirty again what the store holds of [first, last]. Holes are in the file system's own journal. */
async function rewrite(store: OverlayStore, first: number, last: number): Promise<void> {
  const [start, end] = bytesOf(store, first, last);
  for (let at = start; at < end; ) {
    const [extent] = await store.extents(at, end - at, 1);
    if (extent === undefined) throw new Error("a store told no extent");
    const stop = at + extent.length;
    for (; at < stop && !extent.hole; at += REWRITE_BYTES) {
      const bytes = new Uint8Array(Math.min(REWRITE_BYTES, stop - at));
      await store.read(at, bytes);
      // A store that cannot tell its holes has them as zeroes, which stay holes.
      if (isZero(bytes)) await store.writeZeroes(at, bytes.length);
      else await store.putWritten(at, bytes);
    }
    at = stop;
  }
}

async function openPublished(env: OverlayEnv, path: string): Promise<MapFile> {
  let map: MapFile;
  try {
    map = await openMap(env, mapPath(path));
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    if (error.code !== "ENOENT") {
      throw new OverlayRefusedError("io", error.message, "stop whoever uses it, or check the file", { cause: error });
    }
    const hint = "restore the map: without it nobody can tell what the image holds";
    throw new OverlayRefusedError("map-missing", `there is no ${mapPath(path)}`, hint, { cause: error });
  }
  if (map.superblock.state !== "new") return map;
  await map.close();
  throw new OverlayRefusedError("map-missing", `${map.path} was never finished`, "create the overlay again");
}

function checkMatches(map: MapFile, { sourceIdentity }: OpenOverlayOptions): void {
  if (sourceIdentity === undefined || sourceIdentity === map.superblock.sourceIdentity) return;
  const message = `${map.path} belongs to another source disk`;
  throw new OverlayRefusedError("mismatch", message, "connect to the source that it was made from");
}
