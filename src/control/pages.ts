/** `map` and `missing`, a page at a time: a disk may have millions of runs, and a message has 64 KiB. */
import { ControlError } from "./errors.ts";
import { RUNS_PER_PAGE_MAX } from "./limits.ts";
import type { VerbRegistry } from "./registry.ts";
import { type ResultOf, VERBS } from "./verbs.ts";

/** What a disk can tell about presence. Offsets and lengths are bytes. */
export interface PresenceSource {
  readonly name: string;
  readonly sizeBytes: number;
  /** What is not here, ascending, from `offset` on; a run that begins before it may be given from its beginning. */
  missing(offset: number): AsyncIterable<ByteRun> | Iterable<ByteRun>;
}

export interface ByteRun {
  readonly offset: number;
  readonly length: number;
}

/** Adds the verbs `map` and `missing` over `disks`. */
export function registerPages(registry: VerbRegistry, disks: readonly PresenceSource[]): void {
  registry.register("map", VERBS.map, ({ disk, cursor }) => mapPage(chooseDisk(disks, disk), cursor));
  registry.register("missing", VERBS.missing, ({ disk, cursor }) => missingPage(chooseDisk(disks, disk), cursor));
}

/** The disk of that name, or the only one. Throws `ControlError` "unknown-disk" or "several-disks". */
export function chooseDisk<D extends { readonly name: string }>(disks: readonly D[], name: string | undefined): D {
  const hint = `there is: ${disks.map((disk) => JSON.stringify(disk.name)).join(", ")}`;
  if (name === undefined) {
    const [only, second] = disks;
    if (only !== undefined && second === undefined) return only;
    throw new ControlError("several-disks", "it is not clear which disk is meant", hint);
  }
  const found = disks.find((disk) => disk.name === name);
  if (found !== undefined) return found;
  throw new ControlError("unknown-disk", `there is no disk called ${JSON.stringify(name)}`, hint);
}

export async function missingPage(disk: PresenceSource, cursor: number): Promise<ResultOf<"missing">> {
  const runs: [number, number][] = [];
  const { name, sizeBytes } = disk;
  for await (const run of clipped(disk, cursor)) {
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === run.offset) {
      last[1] += run.length;
    } else if (runs.length === RUNS_PER_PAGE_MAX) {
      return { disk: name, sizeBytes, runs, next: run.offset };
    } else {
      runs.push([run.offset, run.length]);
    }
  }
  return { disk: name, sizeBytes, runs, next: null };
}

/** The missing runs, and between them the local ones. */
export async function mapPage(disk: PresenceSource, cursor: number): Promise<ResultOf<"map">> {
  const { name, sizeBytes } = disk;
  const runs: ResultOf<"map">["runs"] = [];
  let at = Math.min(cursor, sizeBytes);
  // One run may bring two entries with it.
  const hasRoom = (): boolean => runs.length + 2 <= RUNS_PER_PAGE_MAX;
  for await (const { offset, length } of clipped(disk, cursor)) {
    const last = runs.at(-1);
    if (offset === at && last?.[2] === MISSING) {
      last[1] += length;
    } else {
      if (!hasRoom()) return { disk: name, sizeBytes, runs, next: at };
      if (offset > at) runs.push([at, offset - at, LOCAL]);
      runs.push([offset, length, MISSING]);
    }
    at = offset + length;
  }
  if (at === sizeBytes) return { disk: name, sizeBytes, runs, next: null };
  if (runs.length === RUNS_PER_PAGE_MAX) return { disk: name, sizeBytes, runs, next: at };
  runs.push([at, sizeBytes - at, LOCAL]);
  return { disk: name, sizeBytes, runs, next: null };
}

export const LOCAL = 0;
export const MISSING = 1;

async function* clipped(disk: PresenceSource, cursor: number): AsyncGenerator<ByteRun> {
  const { sizeBytes } = disk;
  if (cursor >= sizeBytes) return;
  for await (const run of disk.missing(cursor)) {
    const offset = Math.max(run.offset, cursor);
    const end = Math.min(run.offset + run.length, sizeBytes);
    if (end > offset) yield { offset, length: end - offset };
  }
}
