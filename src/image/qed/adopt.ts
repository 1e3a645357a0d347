/**
 * Gives clusters of the file that nothing refers to a use: the tables of a QED image cannot say that space is free, and
 * `qemu-img check` would call it lost. Each becomes the place of a cluster of the disk that has none, as zeroes.
 */
import type { ClusterRange } from "../tables/cluster-pool.ts";
import type { ImageFile } from "../tables/image-file.ts";
import type { QedGeometry } from "./header.ts";
import { newRun, type QedTables } from "./tables.ts";

/** As many as a reservation has, many times over; the rest stays lost. */
const ADOPTED_MAX = 65_536;

interface Adopting {
  readonly file: ImageFile;
  readonly geometry: QedGeometry;
  readonly tables: QedTables;
}

/** To be called while nothing is allocated. Where every cluster of the disk has a place, the rest stays lost. */
export async function adoptClusters(
  { tables, geometry, file }: Adopting,
  ranges: readonly ClusterRange[],
): Promise<void> {
  const { clusterBytes, l2Covers, sizeBytes } = geometry;
  const left: number[] = [];
  for (const { first, count } of ranges) {
    const some = Math.min(count, ADOPTED_MAX - left.length);
    for (let i = 0; i < some; i++) left.push(first + i);
  }
  if (left.length === 0) return;
  for (const cluster of left) await file.zero(cluster * clusterBytes, clusterBytes);
  await file.sync();
  const run = newRun();
  for (let at = 0; at < sizeBytes && left.length > 0; ) {
    const cluster = at / clusterBytes;
    if (!tables.hasL2(cluster)) {
      at = (tables.l1IndexOf(cluster) + 1) * l2Covers;
      continue;
    }
    await tables.lookup(at, sizeBytes - at, run);
    const count = run.kind === "unallocated" ? Math.min(Math.ceil(run.length / clusterBytes), left.length) : 0;
    for (const [i, place] of left.splice(0, count).entries()) await tables.update(cluster + i, 1, place * clusterBytes);
    at += Math.ceil(run.length / clusterBytes) * clusterBytes;
  }
}
