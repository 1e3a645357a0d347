/**
 * Publishes a map that has bits from the start, for an image whose clusters were brought before there was a map: after a
 * handover, say. It is written beside its place, synced, and renamed: whoever looks finds the map that was there before, or
 * all of this one. The image's data must be durable before: a map never speaks of data that is not.
 *
 * It is published in state "open", as one that is about to be used: `openOverlay` with `published` then writes nothing.
 */
import { dirname } from "node:path";
import type { Env } from "../env/env.ts";
import type { File } from "../env/files.ts";
import { isZero } from "../util/zeroes.ts";
import { openMap } from "./map-file.ts";
import {
  clusterCount,
  encodePage,
  encodeSuperblock,
  isClusterSize,
  PAGE_BITS_BYTES,
  PAGE_BYTES,
  PAGE_CLUSTERS,
  pageCount,
  SLOTS_OFFSET,
  type Superblock,
} from "./map-format.ts";
import { mapPath } from "./overlay-files.ts";
import { Presence } from "./presence.ts";

type MapEnv = Pick<Env, "files" | "chaos">;

export interface PublishedMap extends Omit<Superblock, "generation" | "state"> {
  /** The image, or what its records are named after; the map is `IMAGE.map`, and replaces one that is there. */
  readonly image: string;
  /** Sets in `bits` (bit n % 8 of byte n / 8) those of the clusters [first, first + count) that are local; all are zero. */
  readonly fill: (bits: Uint8Array, first: number, count: number) => void;
}

/** Durable with its directory when resolved. The term is in both superblocks. */
export async function publishMap({ files }: Pick<MapEnv, "files">, map: PublishedMap): Promise<void> {
  const { image, fill, ...fields } = map;
  if (!isClusterSize(fields.clusterBytes)) throw new RangeError(`bad cluster size ${fields.clusterBytes}`);
  const path = mapPath(image);
  const beside = `${path}.new`;
  if (await files.exists(beside)) await files.unlink(beside);
  const file = await files.open({ path: beside, writable: true, create: true, noFollow: true });
  try {
    await writePages(file, fields, fill);
    await file.write(0, encodeSuperblock({ ...fields, state: "open", generation: 1 }));
    await file.write(PAGE_BYTES, encodeSuperblock({ ...fields, state: "open", generation: 2 }));
    await file.dataSync();
  } finally {
    await file.close();
  }
  await files.rename(beside, path);
  await files.syncDirectory(dirname(path));
}

/**
 * Publishes a map that says nothing, reads it as whoever opens an overlay does, and takes it away again. What does not work
 * with these files shows now; and when it has to work while a guest waits, none of it is done for the first time.
 */
export async function rehearseMap(env: MapEnv, fields: Omit<PublishedMap, "fill">): Promise<void> {
  await publishMap(env, { ...fields, fill: () => undefined });
  const map = await openMap(env, mapPath(fields.image));
  try {
    await new Presence(map, clusterCount(fields.sizeBytes, fields.clusterBytes)).open(false);
    await env.files.unlink(map.path);
  } finally {
    await map.close();
  }
}

async function writePages(
  file: File,
  { sizeBytes, clusterBytes }: Pick<Superblock, "sizeBytes" | "clusterBytes">,
  fill: PublishedMap["fill"],
): Promise<void> {
  const clusters = clusterCount(sizeBytes, clusterBytes);
  const pages = pageCount(clusters);
  await file.truncate(SLOTS_OFFSET + 2 * pages * PAGE_BYTES);
  const bits = new Uint8Array(PAGE_BITS_BYTES);
  for (let page = 0; page < pages; page++) {
    const first = page * PAGE_CLUSTERS;
    fill(bits.fill(0), first, Math.min(PAGE_CLUSTERS, clusters - first));
    if (!isZero(bits)) await file.write(SLOTS_OFFSET + page * PAGE_BYTES, encodePage(bits, page, 1));
  }
}
