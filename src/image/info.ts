/** `image info`: what `qemu-img info` tells, in its words and in its order. Takes no lock and changes nothing. */
import type { Env } from "../env/env.ts";
import { openImage } from "./format.ts";

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
}

/** Throws `ImageOpenError`. */
export async function imageInfo(env: Pick<Env, "files">, query: ImageQuery): Promise<ImageInfo> {
  const { image, format, notice } = await openImage(env, { ...query, readOnly: true, lock: false });
  await using _ = image;
  return {
    path: query.path,
    format: format.name,
    ...(notice !== undefined && { notice }),
    virtualBytes: image.sizeBytes,
    diskBytes: await image.allocatedBytes(),
    dirty: image.dirty,
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
  if (info.dirty) lines.push("cleanly shut down: no");
  return `${lines.join("\n")}\n`;
}

/** The form of `qemu-img info --output=json`. */
export function renderInfoJson(info: ImageInfo): string {
  const fields = {
    "virtual-size": info.virtualBytes,
    filename: info.path,
    format: info.format,
    "actual-size": info.diskBytes,
    "dirty-flag": info.dirty,
  };
  return `${JSON.stringify(fields, undefined, 4)}\n`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Three digits that count, as qemu writes sizes: "1.12 MiB", "977 KiB" for 1,000,000. */
function humanBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1024;
  return `${Number(value.toPrecision(3))} ${UNITS[unit]}`;
}
