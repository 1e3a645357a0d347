/**
 * Clusters of a QED image that nothing refers to: what a crash leaves of allocations under way. The format has no way to
 * give them back, but whoever allocates next can use them.
 */

import type { ClusterRange } from "../tables/cluster-pool.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { rewriteTable, scanTable } from "../tables/scan.ts";
import { Turns } from "../tables/turns.ts";
import { readU64LE } from "../tables/u64.ts";
import type { QedGeometry } from "./header.ts";
import { QED_ZERO_CLUSTER } from "./tables.ts";

const ENTRY_BYTES = 8;
/** 16 MiB of bits. What a larger file has lost stays lost. */
const CLUSTERS_MAX = 2 ** 27;
/** A crash leaves a few. What lies between more of them stays lost. */
const RANGES_MAX = 4096;

/**
 * Takes the lost space of an image that nobody uses: cuts it off where it is last, and makes the rest read as zeroes,
 * durably. Resolves to the latter. With `rewrite`, what the tables hold is durable too, whoever wrote it. Throws
 * `BlockError`.
 */
export async function reclaimLostSpace(
  file: ImageFile,
  geometry: QedGeometry,
  rewrite: boolean,
): Promise<ClusterRange[]> {
  const { clusterBytes } = geometry;
  if (rewrite) await rewriteTables(file, geometry);
  const clusters = Math.ceil(file.sizeBytes / clusterBytes);
  if (clusters > CLUSTERS_MAX) {
    await file.sync();
    return [];
  }
  const used = await findUsed(file, geometry, clusters);
  const ranges: ClusterRange[] = [];
  let end = 0;
  const turns = new Turns(file);
  for (let cluster = 0; cluster < clusters; cluster++) {
    if (turns.over()) await turns.next();
    if (!isMarked(used, cluster)) continue;
    if (cluster > end && ranges.length < RANGES_MAX) ranges.push({ first: end, count: cluster - end });
    end = cluster + 1;
  }
  await file.shrink(end * clusterBytes);
  for (const { first, count } of ranges) await file.zero(first * clusterBytes, count * clusterBytes);
  await file.sync();
  return ranges;
}

async function findUsed(file: ImageFile, geometry: QedGeometry, clusters: number): Promise<Uint8Array> {
  const { clusterBytes, tableBytes, l1Offset, headerEnd } = geometry;
  const used = new Uint8Array(Math.ceil(clusters / 8));
  const mark = (offset: number, length: number, at: number): void => {
    for (let cluster = offset / clusterBytes; cluster * clusterBytes < offset + length; cluster++) {
      const wrong = !Number.isInteger(cluster) || cluster >= clusters || isMarked(used, cluster);
      const why = "points to no place where it may, or to one that something else refers to";
      if (wrong) throw new ImageCorruptError(file.path, { field: "table entry", at, why });
      used[cluster >>> 3] = (used[cluster >>> 3] ?? 0) | (1 << (cluster & 7));
    }
  };
  mark(0, headerEnd, 0);
  mark(l1Offset, tableBytes, 0);
  await eachEntry(file, { offset: l1Offset, length: tableBytes }, async (table, at) => {
    mark(table, tableBytes, at);
    await eachEntry(file, { offset: table, length: tableBytes }, (data, entryAt) => {
      // 1 is a zero cluster, which has no place.
      if (data !== QED_ZERO_CLUSTER) mark(data, clusterBytes, entryAt);
    });
  });
  return used;
}

async function rewriteTables(file: ImageFile, geometry: QedGeometry): Promise<void> {
  const { tableBytes, l1Offset, headerEnd } = geometry;
  await rewriteTable(file, { offset: 0, length: headerEnd });
  await rewriteTable(file, { offset: l1Offset, length: tableBytes });
  await eachEntry(file, { offset: l1Offset, length: tableBytes }, (offset) =>
    rewriteTable(file, { offset, length: tableBytes }),
  );
}

async function eachEntry(
  file: ImageFile,
  range: { offset: number; length: number },
  visit: (value: number, at: number) => void | Promise<void>,
): Promise<void> {
  await scanTable(file, range, async ({ at, bytes }) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i + ENTRY_BYTES <= bytes.length; i += ENTRY_BYTES) {
      const value = readU64LE(view, i);
      const under = value === 0 ? undefined : visit(value, at + i);
      if (under !== undefined) await under;
    }
  });
}

function isMarked(bits: Uint8Array, cluster: number): boolean {
  return ((bits[cluster >>> 3] ?? 0) & (1 << (cluster & 7))) !== 0;
}
