/** `image info`: what `qemu-img info` tells, in its words and in its order. Takes no lock and changes nothing. */
import type { Env } from "../env/env.ts";
import { openImage } from "./format.ts";
import type { BackingReference, FormatDetails } from "./image.ts";

export interface ImageQuery {
  readonly path: string;
  /** What the operator said; otherwise the extension decides. */
  readonly format?: string;
}

export interface ImageInfo {
  readonly path: string;
  readonly format: string;
  /** To be shown to the user: nobody said what the format is. */
  readonly notice?: string;
  /** Exact; qemu-img rounds a raw image's up to sectors. */
  readonly virtualBytes: number;
  /** Storage that the image takes. */
  readonly diskBytes: number;
  readonly dirty: boolean;
  /** Of formats that have clusters. */
  readonly clusterBytes?: number;
  /** What the image says it lies over: shown, never opened. */
  readonly backing?: BackingReference;
  readonly details?: FormatDetails;
}

/** Throws `ImageOpenError`. */
export async function imageInfo(env: Pick<Env, "files">, query: ImageQuery): Promise<ImageInfo> {
  const looking = { readOnly: true, lock: false, backing: "absent" } as const;
  const { image, format, notice } = await openImage(env, { ...query, ...looking });
  await using _ = image;
  const { clusterBytes, backingReference, formatDetails } = image;
  return {
    path: query.path,
    format: format.name,
    ...(notice !== undefined && { notice }),
    virtualBytes: image.sizeBytes,
    diskBytes: await image.allocatedBytes(),
    dirty: image.dirty,
    ...(clusterBytes !== undefined && { clusterBytes }),
    ...(backingReference !== undefined && { backing: backingReference }),
    ...(formatDetails !== undefined && { details: formatDetails }),
  };
}

/** The form of `qemu-img info`. */
export function renderInfo(info: ImageInfo): string {
  const lines = [
    `image: ${info.path}`,
    `file format: ${info.format}`,
    `virtual size: ${humanBytes(info.virtualBytes)} (${info.virtualBytes} bytes)`,
    `disk size: ${humanBytes(info.diskBytes)}`,
  ];
  if (info.clusterBytes !== undefined) lines.push(`cluster_size: ${info.clusterBytes}`);
  if (info.dirty) lines.push("cleanly shut down: no");
  if (info.backing !== undefined) {
    const { name, format } = info.backing;
    const full = fullBackingName(info.path, name);
    lines.push(`backing file: ${onOneLine(name)}${full === name ? "" : ` (actual path: ${onOneLine(full)})`}`);
    if (format !== undefined) lines.push(`backing file format: ${format}`);
  }
  if (info.details !== undefined) {
    lines.push("Format specific information:");
    for (const [name, value] of Object.entries(info.details.data))
      lines.push(`    ${name.replaceAll("-", " ")}: ${value}`);
  }
  return `${lines.join("\n")}\n`;
}

/** The form of `qemu-img info --output=json`; of several images, that of `--backing-chain`. */
export function renderInfoJson(info: ImageInfo | readonly ImageInfo[]): string {
  const told = "path" in info ? infoFields(info) : info.map(infoFields);
  // JSON writes out the other control characters anyhow, and the rest may be part of a path.
  return `${JSON.stringify(told, undefined, 4).replaceAll(OBEYED, writtenOut)}\n`;
}

function infoFields(info: ImageInfo): object {
  const { backing, clusterBytes, details } = info;
  return {
    ...(backing?.format !== undefined && { "backing-filename-format": backing.format }),
    "virtual-size": info.virtualBytes,
    filename: info.path,
    ...(clusterBytes !== undefined && { "cluster-size": clusterBytes }),
    format: info.format,
    "actual-size": info.diskBytes,
    ...(details !== undefined && { "format-specific": { type: details.type, data: details.data } }),
    ...(backing !== undefined && { "full-backing-filename": fullBackingName(info.path, backing.name) }),
    ...(backing !== undefined && { "backing-filename": backing.name }),
    "dirty-flag": info.dirty,
  };
}

/** What terminals obey, as far as JSON leaves it alone: C1 controls, line separators, directional marks. */
const OBEYED = /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/gu;

/** For a name from inside an image: it says what it likes. */
function onOneLine(name: string): string {
  return name.replaceAll(/\p{Cc}/gu, writtenOut).replaceAll(OBEYED, writtenOut);
}

function writtenOut(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** As QEMU would find it: beside the image, unless the name begins with a slash or a protocol. */
function fullBackingName(path: string, name: string): string {
  if (name === "" || name.startsWith("/") || /^[^/]*:/.test(name)) return name;
  const folder = path.slice(0, path.lastIndexOf("/") + 1);
  return `${folder}${name}`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Three digits that count, as qemu writes sizes: "1.12 MiB", "977 KiB" for 1,000,000. */
function humanBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1024;
  return `${threeDigits(value)} ${UNITS[unit]}`;
}

/** As C's `%.3g` rounds: a half goes to the even digit, where `toPrecision` takes the larger one. */
function threeDigits(value: number): number {
  const scale = 10 ** (2 - Math.floor(Math.log10(Math.max(value, 1))));
  const whole = Math.floor(value * scale);
  const isHalf = value * scale - whole === 0.5;
  return isHalf && whole % 2 === 0 ? whole / scale : Number(value.toPrecision(3));
}
