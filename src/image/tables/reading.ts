/** Reading through tables, as far as formats do it alike. */
import type { BlockDevice } from "../../block/device.ts";
import { appendExtent, type Extent } from "../../block/extents.ts";
import type { ImageRun } from "../image.ts";
import { backingExtents } from "./backing.ts";
import type { ImageFile } from "./image-file.ts";

/** How many runs one call of `extentsOf` looks at. */
const RUNS_MAX = 1024;
/** How many runs `prefetchRuns` asks for, and `runsOf` lists. */
const PREFETCH_RUNS_MAX = 256;

/** A range of the disk of which one thing is true. */
export interface TableRun {
  kind: "data" | "zero" | "unallocated" | "compressed";
  length: number;
  /** Where in the file it is. Of zeroes: the place that is kept for them, or 0. Of a compressed cluster: its first byte. */
  fileOffset: number;
  /** Of a compressed cluster: how much of the file may be part of it. */
  compressedBytes: number;
}

/** Tables, and what lies under them. */
export interface Readable<R extends TableRun> {
  readonly file: ImageFile;
  readonly backing: BlockDevice | undefined;
  readonly tables: { lookup(offset: number, length: number, run: R): Promise<void> };
}

/** Asks for the tables, and for as much of the data as a few runs reach. */
export async function prefetchRuns<R extends TableRun>(
  { tables, file }: Readable<R>,
  { offset, length }: { offset: number; length: number },
  run: R,
): Promise<void> {
  let done = 0;
  for (let runs = 0; done < length && runs < PREFETCH_RUNS_MAX; runs++) {
    await tables.lookup(offset + done, length - done, run);
    if (run.kind === "data") file.file.willNeed(run.fileOffset, run.length);
    if (run.kind === "compressed") file.file.willNeed(run.fileOffset, run.compressedBytes);
    done += run.length;
  }
}

export async function extentsOf<R extends TableRun>(
  { tables, backing }: Readable<R>,
  { offset, end, countMax }: { offset: number; end: number; countMax: number },
  run: R,
): Promise<Extent[]> {
  const list: Extent[] = [];
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
export async function runsOf<R extends TableRun>(
  { tables }: Readable<R>,
  { offset, end, standsAlone }: { offset: number; end: number; standsAlone: boolean },
  run: R,
): Promise<ImageRun[]> {
  const list: ImageRun[] = [];
  let at = offset;
  for (let runs = 0; at < end && runs < PREFETCH_RUNS_MAX; runs++) {
    await tables.lookup(at, end - at, run);
    const { kind, length, fileOffset } = run;
    const data = kind === "data" || kind === "compressed";
    const zero = kind === "zero" || (kind === "unallocated" && standsAlone);
    const placed = fileOffset !== 0 && kind !== "compressed";
    list.push({ length, present: kind !== "unallocated", zero, data, ...(placed && { offset: fileOffset }) });
    at += length;
  }
  return list;
}
