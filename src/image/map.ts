/**
 * `image map`: what `qemu-img map` tells, in its forms. Takes no lock and changes nothing. Entries come one by one, so
 * that an image in a million pieces takes no memory.
 */
import type { Env } from "../env/env.ts";
import { openImage } from "./format.ts";
import type { Image } from "./image.ts";
import type { ImageQuery } from "./info.ts";

/** How many extents are asked for at a time. */
const EXTENTS_AT_ONCE = 256;

/** One run of the image. Neighbouring entries differ. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  /** How many backing images lie between the image and the data. */
  readonly depth: number;
  /** The image or one of its backing images says what is there. */
  readonly present: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
  /** Takes storage. */
  readonly data: boolean;
  /** Where in the file it is, when the format has one place for the whole run. */
  readonly offset?: number;
}

export interface ImageMapQuery extends ImageQuery {
  readonly start?: number;
  readonly lengthMax?: number;
}

/** Throws `ImageOpenError` or `BlockError`. The image is open until the last entry was taken or the loop was left. */
export async function* imageMap(env: Pick<Env, "files">, query: ImageMapQuery): AsyncGenerator<MapEntry, void, void> {
  const { start = 0, lengthMax = Infinity, ...which } = query;
  const looking = { readOnly: true, lock: false, backing: "absent" } as const;
  const { image, format } = await openImage(env, { ...which, ...looking });
  await using _ = image;
  let last: MapEntry | undefined;
  for await (const run of runs(image, start, Math.min(start + lengthMax, image.sizeBytes))) {
    const entry = format.flat ? { ...run, offset: run.start } : run;
    if (last !== undefined && belongTogether(last, entry)) {
      last = { ...last, length: last.length + entry.length };
      continue;
    }
    if (last !== undefined) yield last;
    last = entry;
  }
  if (last !== undefined) yield last;
}

function belongTogether(last: MapEntry, next: MapEntry): boolean {
  if (last.present !== next.present || last.zero !== next.zero || last.data !== next.data) return false;
  return last.offset === undefined ? next.offset === undefined : last.offset + last.length === next.offset;
}

/** As the device tells them: two neighbours from different answers may be of one kind. */
async function* runs(image: Image, start: number, end: number): AsyncGenerator<MapEntry, void, void> {
  for (let at = start; at < end; ) {
    for (const run of (await image.runs?.(at, end - at)) ?? []) {
      yield { start: at, depth: 0, ...run };
      at += run.length;
    }
    if (image.runs !== undefined) continue;
    for (const { length, hole, zero } of await image.extents(at, end - at, EXTENTS_AT_ONCE)) {
      yield { start: at, length, depth: 0, present: true, zero, data: !hole };
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

/** The form of `qemu-img map`, a line at a time: data only. */
export async function* renderMap(entries: AsyncIterable<MapEntry>, path: string): AsyncGenerator<string, void, void> {
  yield `${["Offset", "Length", "Mapped to"].map(column).join("")}File\n`;
  for await (const { start, length, zero, data, offset } of entries) {
    if (!data || zero) continue;
    // What is compressed has no place of its own.
    const place = offset === undefined ? "-" : hex(offset);
    yield `${[hex(start), hex(length), place].map(column).join("")}${path}\n`;
  }
}

function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

function column(text: string): string {
  return text.padEnd(16);
}
