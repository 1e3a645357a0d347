/** `image create`, once its flags are known. */
import { dirname, isAbsolute, join } from "node:path";
import type { Env } from "../../env/env.ts";
import { type CreateImageOptions, chooseFormat, IMAGE_FORMATS, openImage } from "../../image/format.ts";
import { createdFields, renderCreated } from "../../image/render-create.ts";
import { createRealEnv } from "../../os/real-env.ts";
import { usageError } from "../cli-error.ts";
import { printable, printableJson } from "../printable.ts";
import { type ImageFlags, note } from "./action.ts";
import { parseCreateOptions } from "./create-options.ts";
import { refuseIncomplete } from "./overlay-guard.ts";

export interface CreateFlags extends ImageFlags {
  readonly options?: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly quiet?: boolean;
}

export async function createImage(path: string, sizeBytes: number | undefined, flags: CreateFlags): Promise<void> {
  const { format, notice } = chooseFormat(path, flags.format);
  const env = createRealEnv();
  const given = parseCreateOptions(flags.options ?? [], format);
  const backing = await lookAtBacking(env, path, flags);
  if (backing !== undefined && !format.createOptions?.includes("backing")) {
    const why = `a ${format.name} image lies over nothing`;
    throw usageError("cannot use --backing", why, "choose --format qcow2 or qed, or leave it out");
  }
  const size = sizeBytes ?? backing?.sizeBytes;
  if (size === undefined) throw usageError(`cannot create ${path}`, "nobody said how large", "add a size, such as 10G");
  const options: CreateImageOptions = {
    path,
    sizeBytes: size,
    ...given,
    ...(backing !== undefined && { backing: { name: backing.name, format: backing.format } }),
  };
  if (format.create === undefined) throw new Error(`${format.name} images cannot be created`);
  await format.create(env, options);
  note(notice);
  if (flags.json) process.stdout.write(`${printableJson(createdFields(format, options))}\n`);
  else if (flags.quiet !== true) process.stdout.write(renderCreated(format, options, printable));
}

interface Backing {
  /** As it was given: it is written down like that, and programs look for it from the image's folder. */
  readonly name: string;
  readonly format: string;
  readonly sizeBytes: number;
}

/** It has to be there: its size is the default for the new one, and a wrong name would show only later. */
async function lookAtBacking(env: Env, image: string, flags: CreateFlags): Promise<Backing | undefined> {
  const { backing: name, backingFormat } = flags;
  if (name === undefined) {
    if (backingFormat === undefined) return undefined;
    throw usageError("cannot use --backing-format", "there is no --backing", "name the backing image, or leave it out");
  }
  if (backingFormat === undefined) {
    const names = IMAGE_FORMATS.map((format) => format.name).join(", ");
    const why = "whoever opens the image must be told the format of its backing, and would guess it otherwise";
    throw usageError("cannot use --backing", why, `add --backing-format, one of ${names}`);
  }
  const path = isAbsolute(name) ? name : join(dirname(image), name);
  await refuseIncomplete(env, path);
  const looking = { readOnly: true, lock: false, backing: "absent" } as const;
  const opened = await openImage(env, { path, format: backingFormat, ...looking });
  await using backing = opened.image;
  return { name, format: backingFormat, sizeBytes: backing.sizeBytes };
}
