/** Opens an image for serving. */
import type { Env } from "../../env/env.ts";
import { type Chain, openChain } from "../../image/chain.ts";
import type { Image } from "../../image/image.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";
import { refuseIncomplete } from "../image/overlay-guard.ts";
import type { Log } from "../log.ts";
import type { ServePlan } from "../serving/plan.ts";

export interface OpenedForServing {
  readonly device: Image;
  readonly format: string;
  /** The image, and those that it lies over. */
  close(): Promise<void>;
}

/** The image, locked; the caller closes it. An image without a single byte is taken for a mistake. */
export async function openForServing(env: Env, plan: ServePlan, log: Log): Promise<OpenedForServing> {
  const { image: path, readOnly, format, below = [] } = plan;
  const chain: Chain = [{ path, ...(format !== undefined && { format }) }, ...below];
  for (const link of chain) await refuseIncomplete(env, link.path);
  const { top, images, close } = await openChain(env, { chain, readOnly });
  for (const { notice } of images) if (notice !== undefined) log.warn(notice);
  if (top.image.sizeBytes > 0) {
    // The sooner its tables are checked, the sooner it takes every write.
    if (top.image.dirty && !readOnly) void top.image.cache(0, 0).catch(() => undefined);
    return { device: top.image, format: top.format.name, close };
  }
  await close();
  throw new CliError({
    exitCode: EXIT_IO,
    code: "empty",
    what: `cannot serve ${path}`,
    why: "it is 0 bytes long, so there is nothing to read or write",
    hint: `give it a size first: truncate -s 10G ${path}`,
  });
}
