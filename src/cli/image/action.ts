/** `image info` and `image map`, once their flags are known. */
import { once } from "node:events";
import { chooseFormat } from "../../image/format.ts";
import { type ImageInfo, imageInfo, renderInfo, renderInfoJson } from "../../image/info.ts";
import { imageMap, renderMap, renderMapJson } from "../../image/map.ts";
import { createRealEnv } from "../../os/real-env.ts";
import { printable } from "../printable.ts";
import { parseImageSpec } from "./image-spec.ts";
import { refuseIncomplete } from "./overlay-guard.ts";

export interface ImageFlags {
  readonly format?: string;
  readonly json?: boolean;
}

interface MapFlags extends ImageFlags {
  readonly startOffset?: number;
  readonly maxLength?: number;
}

/** Of a chain, every image, as `qemu-img info --backing-chain` does it. */
export async function printInfo(text: string, flags: ImageFlags): Promise<void> {
  const env = createRealEnv();
  const chain = parseImageSpec(text, flags.format);
  const infos: ImageInfo[] = [];
  for (const link of chain) {
    await refuseIncomplete(env, link.path);
    const info = await imageInfo(env, link);
    note(info.notice);
    infos.push(info);
  }
  const [only = infos] = infos.length === 1 ? infos : [];
  if (flags.json) process.stdout.write(renderInfoJson(only));
  else process.stdout.write(infos.map((info) => renderInfo({ ...info, path: printable(info.path) })).join("\n"));
}

export async function printMap(text: string, flags: MapFlags): Promise<void> {
  const { startOffset: start, maxLength: lengthMax } = flags;
  const [top, ...below] = parseImageSpec(text, flags.format);
  const env = createRealEnv();
  for (const { path, format } of [top, ...below]) {
    note(chooseFormat(path, format).notice);
    await refuseIncomplete(env, path);
  }
  const entries = imageMap(env, {
    ...top,
    below,
    ...(start !== undefined && { start }),
    ...(lengthMax !== undefined && { lengthMax }),
  });
  for await (const line of flags.json ? renderMapJson(entries) : renderMap(entries, printable)) {
    // A map may have millions of lines: never more of it in memory than the reader is behind.
    if (!process.stdout.write(line)) await once(process.stdout, "drain");
  }
}

export function note(notice: string | undefined): void {
  if (notice !== undefined) process.stderr.write(`blockferry: note: ${printable(notice)}\n`);
}
