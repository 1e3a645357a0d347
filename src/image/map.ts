/**
 * `image map`: what `qemu-img map` tells, in its forms. Takes no lock and changes nothing. Entries come one by one, so
 * that an image in a million pieces takes no memory.
 */
import type { Env } from "../env/env.ts";
import { type Chain, type ChainLink, openChain } from "./chain.ts";
import type { OpenedImage } from "./format.ts";
import type { Image } from "./image.ts";

/** How many extents are asked for at a time. */
const EXTENTS_AT_ONCE = 256;

/** One run of the image. Neighbouring entries differ. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  /** How many backing images lie between the image and the data. */
  readonly depth: number;
  /** Of the image that says so. */
  readonly path: string;
  /** The image or one of its backing images says what is there. */
  readonly present: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
  /** Takes storage. */
  readonly data: boolean;
  /** Where in the file it is, when the format has one place for the whole run. */
  readonly offset?: number;
}

export interface ImageMapQuery extends ChainLink {
  /** What the operator says lies under it, the next one first. */
  readonly below?: readonly ChainLink[];
  readonly start?: number;
  readonly lengthMax?: number;
}

/** Throws `ImageOpenError` or `BlockError`. The images are open until the last entry was taken or the loop was left. */
export async function* imageMap(env: Pick<Env, "files">, query: ImageMapQuery): AsyncGenerator<MapEntry, void, void> {
  const { path, format, below = [], start = 0, lengthMax = Infinity } = query;
  const chain: Chain = [{ path, ...(format !== undefined && { format }) }, ...below];
  const { images, top, close } = await openChain(env, { chain, readOnly: true, lock: false, unfounded: true });
  try {
    const end = Math.min(start + lengthMax, top.image.sizeBytes);
    yield* joined(chainRuns({ images, paths: chain.map((link) => link.path) }, 0, { start, end }));
  } finally {
    await close();
  }
}

/** Neighbours of one kind as one. */
async function* joined(entries: AsyncIterable<MapEntry>): AsyncGenerator<MapEntry, void, void> {
  let last: MapEntry | undefined;
  for await (const entry of entries) {
    if (last !== undefined && belongTogether(last, entry)) {
      last = { ...last, length: last.length + entry.length };
      continue;
    }
    if (last !== undefined) yield last;
    last = entry;
  }
  if (last !== undefined) yield last;
}

interface Images {
  readonly images: readonly OpenedImage[];
  readonly paths: readonly string[];
}

/** What the image at `depth` says, and where it says nothing, the images below it. Zeroes lie behind the end of a backing. */
async function* chainRuns(
  chain: Images,
  depth: number,
  { start, end }: { start: number; end: number },
): AsyncGenerator<MapEntry, void, void> {
  const { images, paths } = chain;
  const opened = images[depth];
  const path = paths[depth];
  if (opened === undefined || path === undefined) return;
  const below = images[depth + 1]?.image.sizeBytes;
  for await (const run of runs(opened.image, start, end)) {
    const entry = { ...run, depth, path };
    if (run.present || below === undefined) {
      yield opened.format.flat ? { ...entry, offset: run.start } : entry;
      continue;
    }
    const stop = run.start + run.length;
    const inside = Math.max(run.start, Math.min(stop, below));
    if (inside > run.start) yield* chainRuns(chain, depth + 1, { start: run.start, end: inside });
    if (stop > inside) yield { ...entry, start: inside, length: stop - inside, zero: true };
  }
}

function belongTogether(last: MapEntry, next: MapEntry): boolean {
  if (last.depth !== next.depth) return false;
  if (last.present !== next.present || last.zero !== next.zero || last.data !== next.data) return false;
  return last.offset === undefined ? next.offset === undefined : last.offset + last.length === next.offset;
}

/** As the device tells them: two neighbours from different answers may be of one kind. */
async function* runs(
  image: Image,
  start: number,
  end: number,
): AsyncGenerator<Omit<MapEntry, "depth" | "path">, void, void> {
  for (let at = start; at < end; ) {
    for (const run of (await image.runs?.(at, end - at)) ?? []) {
      yield { start: at, ...run };
      at += run.length;
    }
    if (image.runs !== undefined) continue;
    for (const { length, hole, zero } of await image.extents(at, end - at, EXTENTS_AT_ONCE)) {
      yield { start: at, length, present: true, zero, data: !hole };
      at += length;
    }
  }
}

/** The form of `qemu-img map --output=json`, in pieces. For an empty image it is an empty list. */
export async function* renderMapJson(entries: AsyncIterable<MapEntry>): AsyncGenerator<string, void, void> {
  let before = "[";
  for await (const entry of entries) {
    const { start, length, depth, present, zero, data, offset } = entry;
    const place = offset === undefined ? "" : `, "offset": ${offset}`;
    yield `${before}{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}${place}}`;
    before = ",\n";
  }
  yield before === "[" ? "[]\n" : "]\n";
}

/** The form of `qemu-img map`, a line at a time: data only. `shown`: how a path is printed. */
export async function* renderMap(
  entries: AsyncIterable<MapEntry>,
  shown = (path: string): string => path,
): AsyncGenerator<string, void, void> {
  // Not before it is known that there is something to tell.
  let head = `${["Offset", "Length", "Mapped to"].map(column).join("")}File\n`;
  for await (const { start, length, zero, data, offset, path } of entries) {
    if (head !== "") yield head;
    head = "";
    if (!data || zero) continue;
    // What is compressed has no place of its own.
    const place = offset === undefined ? "-" : hex(offset);
    yield `${[hex(start), hex(length), place].map(column).join("")}${shown(path)}\n`;
  }
  if (head !== "") yield head;
}

function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

function column(text: string): string {
  return text.padEnd(16);
}
