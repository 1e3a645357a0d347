/** Writing to an open qcow2 image. Clusters that have a place of their own are written in place; the others by allocation. */
import type { ZeroOptions } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import { ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import type { PutOptions, Range } from "../tables/table-image.ts";
import { writeAllocating, zeroAllocating } from "./allocation.ts";
import type { Qcow2Session } from "./session.ts";
import { newRun, type Run } from "./tables.ts";

/** For calls that await nothing. */
const scratch = newRun();

/** As `writeBytes`, when it is one write in place: the length, or −1. */
export function writeNow(session: Qcow2Session, offset: number, from: Uint8Array): number {
  if (!session.guard.writesNow || from.length === 0) return -1;
  if (!session.tables.lookupNow(offset, from.length, scratch)) return -1;
  if (!isOwn(scratch) || scratch.length !== from.length) return -1;
  return session.file.writeNow(scratch.fileOffset, from);
}

export async function writeBytes(
  session: Qcow2Session,
  offset: number,
  from: Uint8Array,
  options?: PutOptions,
): Promise<void> {
  await session.guard.prepare();
  const { tables, inPlace, file } = session;
  const run = newRun();
  for (let done = 0; done < from.length; ) {
    // In one turn with what follows: by the next one the entry may have changed.
    while (!tables.lookupNow(offset + done, from.length - done, run)) {
      await tables.lookup(offset + done, from.length - done, run);
    }
    const { length, fileOffset } = run;
    const part = from.subarray(done, done + length);
    if (isOwn(run)) await inPlace.run(fileOffset, length, () => file.write(fileOffset, part, options));
    else await writeAllocating(session, offset + done, part, options);
    done += part.length;
  }
}

export async function writeZeroes(session: Qcow2Session, range: Range, options: ZeroOptions): Promise<void> {
  const { noHole = false, fastOnly = false } = options;
  await session.guard.prepare();
  if (fastOnly) await checkFast(session, range, noHole);
  if (noHole) {
    await writeOut(session, range);
    return;
  }
  const run = newRun();
  for (let at = range.offset; at < range.offset + range.length; ) {
    await session.tables.lookup(at, range.offset + range.length - at, run);
    const piece = { offset: at, length: run.length };
    const inPlace = isOwn(run) ? run.fileOffset : 0;
    if (!isZeroAlready(session, run)) {
      const { head, whole, tail } = split(session, piece);
      await zeroPart(session, head, inPlace);
      if (whole.length > 0) await zeroAllocating(session, whole.offset, whole.length);
      await zeroPart(session, tail, inPlace && inPlace + (tail.offset - at));
    }
    at += piece.length;
  }
}

/**
 * Gives back the space under data. Whole clusters read as zeroes from then on and keep their place in the file, so that
 * writing to them again needs none.
 */
export async function discardRange(session: Qcow2Session, { offset, length }: Range): Promise<void> {
  await session.guard.prepare();
  const run = newRun();
  for (let at = offset; at < offset + length; ) {
    await session.tables.lookup(at, offset + length - at, run);
    const piece = { offset: at, length: run.length };
    if (isOwn(run)) {
      const { fileOffset } = run;
      const { head, whole, tail } = split(session, piece);
      await session.file.discard(fileOffset, head.length);
      if (whole.length > 0) await zeroAllocating(session, whole.offset, whole.length);
      await session.file.discard(fileOffset + (tail.offset - at), tail.length);
    }
    at += piece.length;
  }
}

/** May be written in place. */
function isOwn(run: Run): boolean {
  return run.kind === "data" && run.copied;
}

function isZeroAlready({ backing }: Qcow2Session, run: Run): boolean {
  return run.kind === "zero" || (run.kind === "unallocated" && backing === undefined);
}

/** Whole clusters of version 3 can be zeroed in the tables; the disk's last one is whole where the disk ends. */
function split({ geometry }: Qcow2Session, { offset, length }: Range): { head: Range; whole: Range; tail: Range } {
  const { clusterBytes, sizeBytes, version } = geometry;
  const end = offset + length;
  const start = Math.ceil(offset / clusterBytes) * clusterBytes;
  const stop = end === sizeBytes ? end : Math.floor(end / clusterBytes) * clusterBytes;
  if (version < 3 || start >= stop) {
    return { head: { offset, length }, whole: { offset: end, length: 0 }, tail: { offset: end, length: 0 } };
  }
  return {
    head: { offset, length: start - offset },
    whole: { offset: start, length: stop - start },
    tail: { offset: stop, length: end - stop },
  };
}

/** `inPlace`: where it is in the file, if it may be zeroed there; otherwise 0. */
async function zeroPart(session: Qcow2Session, range: Range, inPlace: number): Promise<void> {
  if (range.length === 0) return;
  if (inPlace !== 0) await session.inPlace.run(inPlace, range.length, () => session.file.zero(inPlace, range.length));
  else await writeOut(session, range);
}

/** Writes zeroes as data. */
async function writeOut(session: Qcow2Session, { offset, length }: Range): Promise<void> {
  for (let done = 0; done < length; done += ZEROES_BYTES) {
    await writeBytes(session, offset + done, ZEROES.subarray(0, Math.min(ZEROES_BYTES, length - done)));
  }
}

/** Throws "not-supported" if any part of the range would have to be written out. */
async function checkFast(session: Qcow2Session, { offset, length }: Range, noHole: boolean): Promise<void> {
  const slow = (): BlockError => new BlockError("not-supported", `${session.file.path} cannot be zeroed fast there`);
  if (noHole) throw slow();
  const run = newRun();
  for (let at = offset; at < offset + length; at += run.length) {
    await session.tables.lookup(at, offset + length - at, run);
    if (isZeroAlready(session, run)) continue;
    const { whole } = split(session, { offset: at, length: run.length });
    const inPlace = isOwn(run) && session.file.zeroesFast;
    if (whole.length !== run.length && !inPlace) throw slow();
  }
}
