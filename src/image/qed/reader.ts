/** Reading an open QED image: data from the file, the rest from the backing, or zeroes. */
import { appendExtent, type Extent } from "../../block/extents.ts";
import type { ImageRun } from "../image.ts";
import { backingExtents, readBacking, readBackingNow } from "../tables/backing.ts";
import type { QedSession } from "./session.ts";
import type { Run } from "./tables.ts";

/** How many runs one call of `extents` looks at. */
const RUNS_MAX = 1024;
/** How many runs `prefetch` asks for. */
const PREFETCH_RUNS_MAX = 256;

export function newRun(): Run {
  return { kind: "unallocated", length: 0, fileOffset: 0 };
}

/** For calls that await nothing. */
const scratch = newRun();

/** Fills all of `into` from what is in memory: its length, or −1. Throws `ImageCorruptError`. */
export function readNow(session: QedSession, offset: number, into: Uint8Array): number {
  const { tables, file, backing } = session;
  for (let done = 0; done < into.length; ) {
    if (!tables.lookupNow(offset + done, into.length - done, scratch)) return -1;
    const { kind, length, fileOffset } = scratch;
    const part = length === into.length ? into : into.subarray(done, done + length);
    if (kind === "data") {
      if (file.file.readNow(fileOffset, part) === -1) return -1;
    } else if (kind === "unallocated" && backing !== undefined) {
      if (readBackingNow(backing, offset + done, part) === -1) return -1;
    } else {
      part.fill(0);
    }
    done += length;
  }
  return into.length;
}

export async function readBytes(session: QedSession, offset: number, into: Uint8Array): Promise<void> {
  const { tables, file, backing } = session;
  const run = newRun();
  for (let done = 0; done < into.length; ) {
    await tables.lookup(offset + done, into.length - done, run);
    const part = into.subarray(done, done + run.length);
    if (run.kind === "data") await file.read(run.fileOffset, part);
    else if (run.kind === "unallocated" && backing !== undefined) await readBacking(backing, offset + done, part);
    else part.fill(0);
    done += part.length;
  }
}

/** Asks for the tables, and for as much of the data as a few runs reach. */
export async function prefetch(session: QedSession, offset: number, length: number): Promise<void> {
  const run = newRun();
  let done = 0;
  for (let runs = 0; done < length && runs < PREFETCH_RUNS_MAX; runs++) {
    await session.tables.lookup(offset + done, length - done, run);
    if (run.kind === "data") session.file.file.willNeed(run.fileOffset, run.length);
    done += run.length;
  }
}

export async function extentsOf(
  session: QedSession,
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
    const hole = run.kind !== "data";
    appendExtent(list, { length: run.length, hole, zero: hole });
    at += run.length;
  }
  return list;
}

/** What the image itself says, for `image map`. Neighbouring runs may be of one kind. */
export async function runsOf(
  session: QedSession,
  { offset, end, standsAlone }: { offset: number; end: number; standsAlone: boolean },
): Promise<ImageRun[]> {
  const list: ImageRun[] = [];
  const run = newRun();
  let at = offset;
  for (let runs = 0; at < end && runs < PREFETCH_RUNS_MAX; runs++) {
    await session.tables.lookup(at, end - at, run);
    const { kind, length, fileOffset } = run;
    const data = kind === "data";
    const zero = kind === "zero" || (kind === "unallocated" && standsAlone);
    list.push({ length, present: kind !== "unallocated", zero, data, ...(data && { offset: fileOffset }) });
    at += length;
  }
  return list;
}
