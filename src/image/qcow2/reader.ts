/** Reading an open qcow2 image: data from the file, the rest from the backing, or zeroes. */
import { appendExtent, type Extent } from "../../block/extents.ts";
import type { ImageRun } from "../image.ts";
import { backingExtents, readBacking, readBackingNow } from "../tables/backing.ts";
import { NotCompressedError } from "./compressed.ts";
import type { Qcow2Session } from "./session.ts";
import { newRun, type Run } from "./tables.ts";

/** How many runs one call of `extents` looks at. */
const RUNS_MAX = 1024;
/** How many runs `prefetch` asks for. */
const PREFETCH_RUNS_MAX = 256;

/** For calls that await nothing. */
const scratch = newRun();

/** Fills all of `into` from what is in memory: its length, or −1. Throws `ImageCorruptError`. */
export function readNow(session: Qcow2Session, offset: number, into: Uint8Array): number {
  for (let done = 0; done < into.length; ) {
    if (!session.tables.lookupNow(offset + done, into.length - done, scratch)) return -1;
    const { length } = scratch;
    const part = length === into.length ? into : into.subarray(done, done + length);
    if (!readRunNow(session, offset + done, part)) return -1;
    done += length;
  }
  return into.length;
}

/** What `scratch` describes. */
function readRunNow({ file, backing, compressed }: Qcow2Session, offset: number, part: Uint8Array): boolean {
  switch (scratch.kind) {
    case "data":
      return file.file.readNow(scratch.fileOffset, part) !== -1;
    case "compressed":
      return compressed.readNow(offset, part);
    case "unallocated":
      if (backing !== undefined) return readBackingNow(backing, offset, part) !== -1;
      break;
    case "zero":
      break;
  }
  part.fill(0);
  return true;
}

export async function readBytes(session: Qcow2Session, offset: number, into: Uint8Array): Promise<void> {
  const run = newRun();
  for (let done = 0; done < into.length; ) {
    await session.tables.lookup(offset + done, into.length - done, run);
    const part = into.subarray(done, done + run.length);
    if (await readRun(session, run, { offset: offset + done, part })) done += part.length;
  }
}

/** False: what `run` says is not true any more. */
async function readRun(
  { file, backing, compressed }: Qcow2Session,
  { kind, fileOffset }: Run,
  { offset, part }: { offset: number; part: Uint8Array },
): Promise<boolean> {
  // The last cluster of the file need not be whole.
  if (kind === "data") await file.readPadded(fileOffset, part);
  else if (kind === "compressed") return await readCompressed(compressed, offset, part);
  else if (kind === "unallocated" && backing !== undefined) await readBacking(backing, offset, part);
  else part.fill(0);
  return true;
}

async function readCompressed(
  compressed: Qcow2Session["compressed"],
  offset: number,
  part: Uint8Array,
): Promise<boolean> {
  try {
    await compressed.read(offset, part);
    return true;
  } catch (error) {
    if (error instanceof NotCompressedError) return false;
    throw error;
  }
}

/** Asks for the tables, and for as much of the data as a few runs reach. */
export async function prefetch(session: Qcow2Session, offset: number, length: number): Promise<void> {
  const run = newRun();
  let done = 0;
  for (let runs = 0; done < length && runs < PREFETCH_RUNS_MAX; runs++) {
    await session.tables.lookup(offset + done, length - done, run);
    if (run.kind === "data") session.file.file.willNeed(run.fileOffset, run.length);
    if (run.kind === "compressed") session.file.file.willNeed(run.fileOffset, run.compressedBytes);
    done += run.length;
  }
}

export async function extentsOf(
  session: Qcow2Session,
  { offset, end, countMax }: { offset: number; end: number; countMax: number },
): Promise<Extent[]> {
  const { tables, backing } = session;
  const list: Extent[] = [];
  const run = newRun();
  let at = offset;
  for (let runs = 0; at < end && runs < RUNS_MAX && list.length < countMax; runs++) {
    await tables.lookup(at, end - at, run);
    if (run.kind === "unallocated" && backing !== undefined) {
      const below = await backingExtents(backing, { offset: at, length: run.length, countMax: countMax - list.length });
      for (const extent of below) appendExtent(list, extent);
      at += below.reduce((sum, extent) => sum + extent.length, 0);
      continue;
    }
    const hole = run.kind === "zero" || run.kind === "unallocated";
    appendExtent(list, { length: run.length, hole, zero: hole });
    at += run.length;
  }
  return list;
}

/** What the image itself says, for `image map`. Neighbouring runs may be of one kind. */
export async function runsOf(
  session: Qcow2Session,
  { offset, end, standsAlone }: { offset: number; end: number; standsAlone: boolean },
): Promise<ImageRun[]> {
  const list: ImageRun[] = [];
  const run = newRun();
  let at = offset;
  for (let runs = 0; at < end && runs < PREFETCH_RUNS_MAX; runs++) {
    await session.tables.lookup(at, end - at, run);
    const { kind, length, fileOffset } = run;
    const data = kind === "data" || kind === "compressed";
    const zero = kind === "zero" || (kind === "unallocated" && standsAlone);
    const placed = fileOffset !== 0 && kind !== "compressed";
    list.push({ length, present: kind !== "unallocated", zero, data, ...(placed && { offset: fileOffset }) });
    at += length;
  }
  return list;
}
