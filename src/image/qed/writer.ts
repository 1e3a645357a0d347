/** Writing to an open QED image. Clusters that are in the file are written in place; the others by allocation. */
import type { ZeroOptions } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import { ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import type { PutOptions, Range } from "../tables/table-image.ts";
import { writeAllocating, zeroAllocating } from "./allocation.ts";
import type { QedSession } from "./session.ts";
import { newRun } from "./tables.ts";

/** For calls that await nothing. */
const scratch = newRun();

/** As `writeBytes`, when it is one write in place: the length, or −1. */
export function writeNow(session: QedSession, offset: number, from: Uint8Array): number {
  if (!session.guard.writesNow || from.length === 0) return -1;
  if (!session.tables.lookupNow(offset, from.length, scratch)) return -1;
  if (scratch.kind !== "data" || scratch.length !== from.length) return -1;
  return session.file.writeNow(scratch.fileOffset, from);
}

export async function writeBytes(
  session: QedSession,
  offset: number,
  from: Uint8Array,
  options?: PutOptions,
): Promise<void> {
  await session.guard.prepare();
  const run = newRun();
  for (let done = 0; done < from.length; ) {
    await session.tables.lookup(offset + done, from.length - done, run);
    const part = from.subarray(done, done + run.length);
    if (run.kind === "data") await session.file.write(run.fileOffset, part, options);
    else await writeAllocating(session, offset + done, part, options);
    done += part.length;
  }
}

export async function writeZeroes(session: QedSession, { offset, length }: Range, options: ZeroOptions): Promise<void> {
  const { noHole = false, fastOnly = false } = options;
  await session.guard.prepare();
  if (fastOnly) await checkFast(session, { offset, length, noHole });
  if (noHole) {
    await writeOut(session, offset, length);
    return;
  }
  const run = newRun();
  for (let at = offset; at < offset + length; ) {
    await session.tables.lookup(at, offset + length - at, run);
    const piece = run.length;
    if (run.kind === "data") await session.file.zero(run.fileOffset, piece);
    if (run.kind === "unallocated" && session.backing !== undefined) await hideBacking(session, at, piece);
    at += piece;
  }
}

/** Gives back the space under data. It stays allocated in the tables, which cannot say otherwise, and reads as zeroes. */
export async function discardRange(session: QedSession, { offset, length }: Range): Promise<void> {
  await session.guard.prepare();
  const run = newRun();
  for (let at = offset; at < offset + length; at += run.length) {
    await session.tables.lookup(at, offset + length - at, run);
    if (run.kind === "data") await session.file.discard(run.fileOffset, run.length);
  }
}

/** Unallocated clusters over a backing: whole ones become zero clusters, at the edges zeroes are written. */
async function hideBacking(session: QedSession, offset: number, length: number): Promise<void> {
  const { clusterBytes, sizeBytes } = session.geometry;
  const end = offset + length;
  const wholeStart = Math.ceil(offset / clusterBytes) * clusterBytes;
  const wholeEnd = end === sizeBytes ? end : Math.floor(end / clusterBytes) * clusterBytes;
  if (wholeStart >= wholeEnd) {
    await writeOut(session, offset, length);
    return;
  }
  await writeOut(session, offset, wholeStart - offset);
  await zeroAllocating(session, wholeStart, wholeEnd - wholeStart);
  await writeOut(session, wholeEnd, end - wholeEnd);
}

/** Writes zeroes as data. */
async function writeOut(session: QedSession, offset: number, length: number): Promise<void> {
  for (let done = 0; done < length; done += ZEROES_BYTES) {
    await writeBytes(session, offset + done, ZEROES.subarray(0, Math.min(ZEROES_BYTES, length - done)));
  }
}

/** Throws "not-supported" if any part of the range would have to be written out. */
async function checkFast(
  session: QedSession,
  { offset, length, noHole }: { offset: number; length: number; noHole: boolean },
): Promise<void> {
  const { clusterBytes, sizeBytes } = session.geometry;
  const slow = (): BlockError => new BlockError("not-supported", `${session.file.path} cannot be zeroed fast there`);
  if (noHole || !session.file.zeroesFast) throw slow();
  if (session.backing === undefined) return;
  const run = newRun();
  for (let at = offset; at < offset + length; at += run.length) {
    await session.tables.lookup(at, offset + length - at, run);
    const end = at + run.length;
    const whole = at % clusterBytes === 0 && (end % clusterBytes === 0 || end === sizeBytes);
    if (run.kind === "unallocated" && !whole) throw slow();
  }
}
