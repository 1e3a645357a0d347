/** `image info` and `image map`, once their flags are known. */
import { once } from "node:events";
import { chooseFormat } from "../../image/format.ts";
import { imageInfo, renderInfo, renderInfoJson } from "../../image/info.ts";
import { imageMap, renderMap, renderMapJson } from "../../image/map.ts";
import { createRealEnv } from "../../os/real-env.ts";
import { printable } from "../printable.ts";
import { refuseIncomplete } from "./overlay-guard.ts";

interface ImageFlags {
  readonly format?: string;
  readonly json?: boolean;
}

interface MapFlags extends ImageFlags {
  readonly startOffset?: number;
  readonly maxLength?: number;
}

export async function printInfo(path: string, flags: ImageFlags): Promise<void> {
  const env = createRealEnv();
  await refuseIncomplete(env, path);
  const info = await imageInfo(env, { path, ...named(flags) });
  note(info.notice);
  process.stdout.write(flags.json ? renderInfoJson(info) : renderInfo({ ...info, path: printable(path) }));
}

export async function printMap(path: string, flags: MapFlags): Promise<void> {
  const { startOffset: start, maxLength: lengthMax } = flags;
  note(chooseFormat(path, flags.format).notice);
  const env = createRealEnv();
  await refuseIncomplete(env, path);
  const entries = imageMap(env, {
    path,
    ...named(flags),
    ...(start !== undefined && { start }),
    ...(lengthMax !== undefined && { lengthMax }),
  });
  for await (const text of flags.json ? renderMapJson(entries) : renderMap(entries, printable(path))) {
    // A map may have millions of lines: never more of it in memory than the reader is behind.
    if (!process.stdout.write(text)) await once(process.stdout, "drain");
  }
}

function named({ format }: ImageFlags): { format?: string } {
  return format === undefined ? {} : { format };
}

function note(notice: string | undefined): void {
  if (notice !== undefined) process.stderr.write(`blockferry: note: ${printable(notice)}\n`);
}
