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

export interface PublishedMap extends Omit<Superblock, "generation" | "state"> {
  /** The image; the map is `IMAGE.map`, and replaces one that is there. */
  readonly image: string;
  /** Sets in `bits` (bit n % 8 of byte n / 8) those of the clusters [first, first + count) that are local; all are zero. */
  readonly fill: (bits: Uint8Array, first: number, count: number) => void;
}

/** Durable with its directory when resolved. The term is in both superblocks. */
export async function publishMap({ files }: Pick<Env, "files">, map: PublishedMap): Promise<void> {
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
