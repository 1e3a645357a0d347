/**
 * Allocating writes: to clusters that are not in the file yet. All of them pass the gate, then hold the lock of their
 * clusters, and look the clusters up again: somebody may have been there first.
 *
 * Order of one: NEED_CHECK durable (images without a backing) → space at the end of the file → data, filled up from the
 * backing → durable (images with a backing) → L2 entry. A new L2 table is durable before the L1 entry that points to it.
 */
import { isZero, ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import { readBacking } from "../tables/backing.ts";
import { newRun } from "./reader.ts";
import type { QedSession } from "./session.ts";
import { QED_ZERO_CLUSTER, type Run } from "./tables.ts";

/** How much of a cluster is copied from the backing at a time. */
const COPY_BYTES_MAX = 1024 * 1024;

/** Writes `from` to a range that was unallocated, or zero clusters, when it was looked up. */
export async function writeAllocating(session: QedSession, offset: number, from: Uint8Array): Promise<void> {
  await withClusters(session, { offset, length: from.length }, async () => {
    const run = newRun();
    for (let done = 0; done < from.length; ) {
      await session.tables.lookup(offset + done, from.length - done, run);
      const part = from.subarray(done, done + run.length);
      if (run.kind === "data") await session.file.write(run.fileOffset, part);
      else await writeNewClusters(session, { kind: run.kind, offset: offset + done }, part);
      done += part.length;
    }
  });
}

/** Makes a range of whole clusters, which hides a backing, read as zeroes. */
export async function zeroAllocating(session: QedSession, offset: number, length: number): Promise<void> {
  const { tables, file, flags, geometry } = session;
  await withClusters(session, { offset, length }, async () => {
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

async function withClusters(
  session: QedSession,
  { offset, length }: { offset: number; length: number },
  act: () => Promise<void>,
): Promise<void> {
  const { clusterBytes } = session.geometry;
  const first = Math.floor(offset / clusterBytes);
  const last = Math.floor((offset + length - 1) / clusterBytes);
  await session.enterAllocation();
  try {
    if (session.chaos.on("qed/cluster-unlocked")) return await act();
    const unlock = await session.locks.take(first, last);
    try {
      await act();
    } finally {
      unlock();
    }
  } finally {
    session.leaveAllocation();
  }
}

/** For clusters under one L2 table, all unallocated or all zero. */
async function writeNewClusters(
  session: QedSession,
  { kind, offset }: { kind: Run["kind"]; offset: number },
  from: Uint8Array,
): Promise<void> {
  const { geometry, tables, allocator, file, flags, chaos } = session;
  const { clusterBytes } = geometry;
  const first = Math.floor(offset / clusterBytes);
  const count = Math.ceil((offset + from.length) / clusterBytes) - first;
  await flags.mark();
  await ensureL2(session, first);
  const fileOffset = await allocator.take(count);
  const early = chaos.on("qed/entry-before-data");
  if (early) await tables.update(first, count, fileOffset);
  try {
    if (kind === "unallocated") await fillEdges(session, { offset, length: from.length, fileOffset });
    await file.write(fileOffset + (offset - first * clusterBytes), from);
    if (session.ordered && !early) await file.sync();
  } catch (error) {
    allocator.giveBack(fileOffset, count);
    throw error;
  }
  if (!early) await tables.update(first, count, fileOffset);
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
  const { tables, newTables } = session;
  if (tables.hasL2(cluster)) return;
  const index = tables.l1IndexOf(cluster);
  const making = newTables.get(index) ?? makeL2(session, index);
  newTables.set(index, making);
  await making;
}

async function writeEmptyTable({ file, allocator, geometry }: QedSession, offset: number): Promise<void> {
  const { tableBytes, clusterBytes } = geometry;
  try {
    await file.write(offset, ZEROES.subarray(0, tableBytes));
  } catch (error) {
    allocator.giveBack(offset, tableBytes / clusterBytes);
    throw error;
  }
}

async function makeL2(session: QedSession, l1Index: number): Promise<void> {
  const { allocator, geometry, file, tables, newTables, chaos } = session;
  const { tableBytes, clusterBytes } = geometry;
  try {
    const offset = await allocator.take(tableBytes / clusterBytes);
    // New space reads as an empty table already. Written out, it cannot lack room for an entry when the data is there.
    if (tableBytes <= ZEROES_BYTES) await writeEmptyTable(session, offset);
    if (!chaos.on("qed/l1-before-l2")) await file.sync();
    await tables.addL2(l1Index, offset);
  } finally {
    newTables.delete(l1Index);
  }
}
