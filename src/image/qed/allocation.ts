/**
 * Allocating writes: to clusters that are not in the file yet. All of them pass the gate, then hold the lock of their
 * clusters, and look the clusters up again: somebody may have been there first.
 *
 * Order of one: NEED_CHECK durable (images without a backing) → space at the end of the file → data, filled up from the
 * backing → durable (images with a backing) → L2 entry. A new L2 table is durable before the L1 entry that points to it.
 */
import { isZero, ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import { makeOnce, withClusters } from "../tables/allocating.ts";
import { readBacking } from "../tables/backing.ts";
import type { PutOptions, Range } from "../tables/table-image.ts";
import type { QedSession } from "./session.ts";
import { newRun, QED_ZERO_CLUSTER, type Run } from "./tables.ts";

/** How much of a cluster is copied from the backing at a time. */
const COPY_BYTES_MAX = 1024 * 1024;

/** Writes `from` to a range that was unallocated, or zero clusters, when it was looked up. */
export async function writeAllocating(
  session: QedSession,
  offset: number,
  from: Uint8Array,
  options?: PutOptions,
): Promise<void> {
  await locked(session, { offset, length: from.length }, async () => {
    const run = newRun();
    for (let done = 0; done < from.length; ) {
      await session.tables.lookup(offset + done, from.length - done, run);
      const part = from.subarray(done, done + run.length);
      if (run.kind === "data") {
        await session.file.write(run.fileOffset, part, options);
        done += part.length;
      } else {
        done += await writeNewClusters(session, { kind: run.kind, offset: offset + done, options }, part);
      }
    }
  });
}

/** Makes a range of whole clusters, which hides a backing, read as zeroes. */
export async function zeroAllocating(session: QedSession, offset: number, length: number): Promise<void> {
  const { tables, file, flags, geometry } = session;
  await locked(session, { offset, length }, async () => {
    const run = newRun();
    for (let at = offset; at < offset + length; at += run.length) {
      await tables.lookup(at, offset + length - at, run);
      if (run.kind === "data") await file.zero(run.fileOffset, run.length);
      if (run.kind !== "unallocated") continue;
      const first = at / geometry.clusterBytes;
      await flags.mark();
      await ensureL2(session, first);
      await tables.update(first, Math.ceil(run.length / geometry.clusterBytes), QED_ZERO_CLUSTER);
    }
  });
}

function locked(session: QedSession, range: Range, act: () => Promise<void>): Promise<void> {
  return withClusters(session, range, session.chaos.on("qed/cluster-unlocked"), act);
}

/**
 * For clusters under one L2 table, all unallocated or all zero, as far as one place reaches. Resolves to how much of `from`
 * that is.
 */
async function writeNewClusters(
  session: QedSession,
  { kind, offset, options }: { kind: Run["kind"]; offset: number; options: PutOptions | undefined },
  from: Uint8Array,
): Promise<number> {
  const { geometry, tables, space, file, flags, chaos } = session;
  const { clusterBytes } = geometry;
  const first = Math.floor(offset / clusterBytes);
  const within = offset - first * clusterBytes;
  await flags.mark();
  await ensureL2(session, first);
  const place = await space.take(Math.ceil((within + from.length) / clusterBytes));
  const part = from.subarray(0, place.count * clusterBytes - within);
  const early = chaos.on("qed/entry-before-data");
  if (early) await tables.update(first, place.count, place.offset);
  try {
    if (kind === "unallocated") await fillEdges(session, { offset, length: part.length, fileOffset: place.offset });
    await file.write(place.offset + within, part, options);
    if (session.dataFirst && !early) await file.sync();
  } catch (error) {
    space.giveBack(place);
    throw error;
  }
  if (!early) await tables.update(first, place.count, place.offset);
  return part.length;
}

/** Copies what the backing has before and after the range, in its first and last cluster. */
async function fillEdges(
  session: QedSession,
  { offset, length, fileOffset }: { offset: number; length: number; fileOffset: number },
): Promise<void> {
  const { clusterBytes, sizeBytes } = session.geometry;
  if (session.backing === undefined || session.chaos.on("qed/no-copy")) return;
  const start = Math.floor(offset / clusterBytes) * clusterBytes;
  const end = offset + length;
  const clustersEnd = Math.min(Math.ceil(end / clusterBytes) * clusterBytes, sizeBytes);
  await copyFromBacking(session, { offset: start, end: offset, fileOffset });
  await copyFromBacking(session, { offset: end, end: clustersEnd, fileOffset: fileOffset + (end - start) });
}

async function copyFromBacking(
  { backing, file }: QedSession,
  { offset, end, fileOffset }: { offset: number; end: number; fileOffset: number },
): Promise<void> {
  if (backing === undefined) return;
  const stop = Math.min(end, backing.sizeBytes);
  if (offset >= stop) return;
  const buffer = Buffer.allocUnsafeSlow(Math.min(COPY_BYTES_MAX, stop - offset));
  for (let at = offset; at < stop; ) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, stop - at));
    await readBacking(backing, at, bytes);
    // New space reads as zeroes already.
    if (!isZero(bytes)) await file.write(fileOffset + (at - offset), bytes);
    at += bytes.length;
  }
}

async function ensureL2(session: QedSession, cluster: number): Promise<void> {
  const { tables } = session;
  if (tables.hasL2(cluster)) return;
  const index = tables.l1IndexOf(cluster);
  await makeOnce(session, index, () => makeL2(session, index));
}

async function makeL2(session: QedSession, l1Index: number): Promise<void> {
  const { space, geometry, file, tables, chaos } = session;
  const { tableBytes, clusterBytes } = geometry;
  const place = await space.takeWhole(tableBytes / clusterBytes);
  // New space reads as an empty table already. Written out, it cannot lack room for an entry when the data is there.
  if (tableBytes <= ZEROES_BYTES) {
    try {
      await file.write(place.offset, ZEROES.subarray(0, tableBytes));
    } catch (error) {
      space.giveBack(place);
      throw error;
    }
  }
  if (!chaos.on("qed/l1-before-l2")) await file.sync();
  await tables.addL2(l1Index, place.offset);
}
