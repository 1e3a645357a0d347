/**
 * Clusters of a QED image that nothing refers to: what a crash leaves of allocations under way. The format has no way to
 * give them back, but whoever allocates next can use them.
 */

import type { ClusterRange } from "../tables/cluster-pool.ts";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { rewriteTable, scanTable } from "../tables/scan.ts";
import { readU64LE } from "../tables/u64.ts";
import type { QedGeometry } from "./header.ts";
import { QED_ZERO_CLUSTER } from "./tables.ts";

const ENTRY_BYTES = 8;
/** 32 MiB of bits. What a larger file has lost stays lost. */
const CLUSTERS_MAX = 2 ** 28;

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
  for (let cluster = 0; cluster < clusters; cluster++) {
    if (!isMarked(used, cluster)) continue;
    if (cluster > end) ranges.push({ first: end, count: cluster - end });
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
  for (const [table, at] of await l2Tables(file, geometry)) {
    mark(table, tableBytes, at);
    await eachEntry(file, { offset: table, length: tableBytes }, (data, entryAt) => {
      // 1 is a zero cluster, which has no place.
      if (data !== QED_ZERO_CLUSTER) mark(data, clusterBytes, entryAt);
    });
  }
  return used;
}

async function rewriteTables(file: ImageFile, geometry: QedGeometry): Promise<void> {
  const { tableBytes, l1Offset, headerEnd } = geometry;
  await rewriteTable(file, { offset: 0, length: headerEnd });
  await rewriteTable(file, { offset: l1Offset, length: tableBytes });
  for (const [offset] of await l2Tables(file, geometry)) await rewriteTable(file, { offset, length: tableBytes });
}

/** Each with the place of its entry. */
async function l2Tables(
  file: ImageFile,
  { l1Offset, tableBytes }: QedGeometry,
): Promise<[table: number, at: number][]> {
  const tables: [table: number, at: number][] = [];
  await eachEntry(file, { offset: l1Offset, length: tableBytes }, (table, at) => tables.push([table, at]));
  return tables;
}

async function eachEntry(
  file: ImageFile,
  range: { offset: number; length: number },
  visit: (value: number, at: number) => void,
): Promise<void> {
  await scanTable(file, range, async ({ at, bytes }) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i + ENTRY_BYTES <= bytes.length; i += ENTRY_BYTES) {
      const value = readU64LE(view, i);
      if (value !== 0) visit(value, at + i);
    }
  });
}

function isMarked(bits: Uint8Array, cluster: number): boolean {
  return ((bits[cluster >>> 3] ?? 0) & (1 << (cluster & 7))) !== 0;
}
