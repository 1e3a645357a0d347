/**
 * Allocating writes: to clusters that have no place of their own in the file yet, and changes of table entries. All of them
 * pass the gate, then hold the lock of their clusters, and look the clusters up again: somebody may have been there first.
 *
 * Order of one: a place, counted durably and reading as zeroes (`ClusterPool`) → data, filled up with what was there before
 * → durable, unless zeroes were there before → L2 entry. What the old entry pointed to is given up when the new one is
 * durable. A new L2 table is in the file, as zeroes, before an L1 entry can point to it.
 */
import { isZero, ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import { makeOnce, withClusters } from "../tables/allocating.ts";
import { readBacking } from "../tables/backing.ts";
import type { Place } from "../tables/cluster-pool.ts";
import type { PutOptions, Range } from "../tables/table-image.ts";
import type { Qcow2Session } from "./session.ts";
import { newRun, type Run } from "./tables.ts";

/** How much of a cluster is copied at a time. */
const COPY_BYTES_MAX = 1024 * 1024;

/** Writes `from` to a range that had no place of its own when it was looked up. */
export async function writeAllocating(
  session: Qcow2Session,
  offset: number,
  from: Uint8Array,
  options?: PutOptions,
): Promise<void> {
  await locked(session, { offset, length: from.length }, async () => {
    const run = newRun();
    for (let done = 0; done < from.length; ) {
      await session.tables.lookup(offset + done, from.length - done, run);
      const part = from.subarray(done, done + run.length);
      if (run.kind !== "data" || !run.copied) {
        done += await writeNewClusters(session, { run, offset: offset + done, options }, part);
        continue;
      }
      await session.file.write(run.fileOffset, part, options);
      done += part.length;
    }
  });
}

/** Makes a range of whole clusters read as zeroes, in the tables. What has a place of its own keeps it. Version 3 only. */
export async function zeroAllocating(session: Qcow2Session, offset: number, length: number): Promise<void> {
  const { tables, file, geometry } = session;
  await locked(session, { offset, length }, async () => {
    const run = newRun();
    for (let at = offset; at < offset + length; at += run.length) {
      await tables.lookup(at, offset + length - at, run);
      if (run.kind === "zero") continue;
      const first = at / geometry.clusterBytes;
      const count = Math.ceil(run.length / geometry.clusterBytes);
      const keeps = run.kind === "data" && run.copied;
      await ensureL2(session, first);
      await tables.update(first, count, { offset: keeps ? run.fileOffset : 0, zero: true });
      if (!keeps) {
        await releaseOld(session, run, count);
        continue;
      }
      if (!session.chaos.on("qcow2/writes-not-drained")) await session.inPlace.drained(run.fileOffset, run.length);
      await file.discard(run.fileOffset, run.length);
    }
  });
}

function locked(session: Qcow2Session, range: Range, act: () => Promise<void>): Promise<void> {
  return withClusters(session, range, session.chaos.on("qcow2/cluster-unlocked"), act);
}

/** For clusters under one L2 table that are alike, as far as one place reaches. Resolves to how much of `from` that is. */
async function writeNewClusters(
  session: Qcow2Session,
  { run, offset, options }: { run: Run; offset: number; options: PutOptions | undefined },
  from: Uint8Array,
): Promise<number> {
  const { geometry, tables, pool, file, chaos } = session;
  const { clusterBytes } = geometry;
  const first = Math.floor(offset / clusterBytes);
  const within = offset - first * clusterBytes;
  const wanted = Math.ceil((within + from.length) / clusterBytes);
  await ensureL2(session, first);
  const keeps = run.kind === "zero" && run.fileOffset !== 0 && run.copied;
  const place = keeps ? { offset: run.fileOffset - within, count: wanted } : await pool.take(wanted);
  const part = from.subarray(0, place.count * clusterBytes - within);
  const early = chaos.on("qcow2/entry-before-data");
  if (early) await tables.update(first, place.count, { offset: place.offset, zero: false });
  try {
    await fillEdges(session, { run, place, keeps }, { offset, length: part.length });
    await file.write(place.offset + within, part, options);
    // In a new place there are zeroes until the data is there.
    const zeroBefore = !keeps && (run.kind === "zero" || (run.kind === "unallocated" && session.zeroesBelow));
    if (!zeroBefore && !early) await file.sync();
  } catch (error) {
    if (!keeps) pool.giveBack(place);
    throw error;
  }
  if (!early) await tables.update(first, place.count, { offset: place.offset, zero: false });
  const isPlaced = run.fileOffset !== 0 && run.kind !== "compressed";
  const old = { ...run, fileOffset: run.fileOffset - (isPlaced ? within : 0) };
  if (!keeps) await releaseOld(session, old, place.count);
  return part.length;
}

/** What the entries of `count` clusters pointed to; `run` begins with the first of them. */
async function releaseOld(session: Qcow2Session, run: Run, count: number): Promise<void> {
  if (run.fileOffset === 0) return;
  const compressed = run.kind === "compressed";
  const length = compressed ? run.compressedBytes : count * session.geometry.clusterBytes;
  await session.release({ offset: run.fileOffset, length, compressed });
}

interface NewPlace {
  /** What was there before. */
  readonly run: Run;
  readonly place: Place;
  /** The place is not new, and may hold anything. */
  readonly keeps: boolean;
}

/** Copies what was there before and after the range, in its first and last cluster. */
async function fillEdges(session: Qcow2Session, to: NewPlace, { offset, length }: Range): Promise<void> {
  const { clusterBytes, sizeBytes } = session.geometry;
  const start = Math.floor(offset / clusterBytes) * clusterBytes;
  const end = offset + length;
  const clustersEnd = Math.ceil(end / clusterBytes) * clusterBytes;
  const { keeps, run, place } = to;
  if (keeps) {
    if (session.chaos.on("qcow2/place-not-cleared")) return;
    if (offset > start) await session.file.zero(place.offset, offset - start);
    if (clustersEnd > end) await session.file.zero(place.offset + (end - start), clustersEnd - end);
    return;
  }
  const zeroes = run.kind === "zero" || (run.kind === "unallocated" && session.backing === undefined);
  if (zeroes || session.chaos.on("qcow2/no-copy")) return;
  await copyOld(session, { offset: start, end: offset, to: place.offset });
  await copyOld(session, { offset: end, end: Math.min(clustersEnd, sizeBytes), to: place.offset + (end - start) });
}

async function copyOld(
  session: Qcow2Session,
  { offset, end, to }: { offset: number; end: number; to: number },
): Promise<void> {
  if (offset >= end) return;
  const buffer = Buffer.allocUnsafeSlow(Math.min(COPY_BYTES_MAX, end - offset));
  for (let at = offset; at < end; ) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, end - at));
    await readOld(session, at, bytes);
    // New space reads as zeroes already.
    if (!isZero(bytes)) await session.file.write(to + (at - offset), bytes);
    at += bytes.length;
  }
}

/** Within one cluster, whose lock is held. */
async function readOld(session: Qcow2Session, offset: number, into: Uint8Array): Promise<void> {
  const { tables, file, backing, compressed } = session;
  const run = newRun();
  await tables.lookup(offset, into.length, run);
  if (run.kind === "data") await file.readPadded(run.fileOffset, into);
  else if (run.kind === "compressed") await compressed.read(offset, into);
  else if (run.kind === "unallocated" && backing !== undefined) await readBacking(backing, offset, into);
  else into.fill(0);
}

async function ensureL2(session: Qcow2Session, cluster: number): Promise<void> {
  const { tables } = session;
  if (tables.hasL2(cluster)) return;
  const index = tables.l1IndexOf(cluster);
  await makeOnce(session, index, () => makeL2(session, index));
}

async function makeL2({ pool, geometry, file, tables }: Qcow2Session, l1Index: number): Promise<void> {
  const { clusterBytes } = geometry;
  const place = await pool.take(1);
  try {
    // It reads as an empty table already. Written out, it cannot lack room for an entry when the data is there.
    for (let done = 0; done < clusterBytes; done += ZEROES_BYTES) {
      await file.write(place.offset + done, ZEROES.subarray(0, Math.min(ZEROES_BYTES, clusterBytes - done)));
    }
  } catch (error) {
    pool.giveBack(place);
    throw error;
  }
  await tables.addL2(l1Index, place.offset);
}
