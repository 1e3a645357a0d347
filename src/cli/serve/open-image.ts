/** Opens an image for serving. */
import type { Env } from "../../env/env.ts";
import { openImage } from "../../image/format.ts";
import type { Image } from "../../image/image.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";
import { refuseIncomplete } from "../image/overlay-guard.ts";
import type { Log } from "../log.ts";
import type { ServePlan } from "../serving/plan.ts";

/** The image, locked; the caller closes it. An image without a single byte is taken for a mistake. */
export async function openForServing(env: Env, plan: ServePlan, log: Log): Promise<{ device: Image; format: string }> {
  const { image: path, readOnly, format } = plan;
  await refuseIncomplete(env, path);
  const opened = await openImage(env, { path, readOnly, ...(format !== undefined && { format }) });
  if (opened.notice !== undefined) log.warn(opened.notice);
  if (opened.image.sizeBytes > 0) return { device: opened.image, format: opened.format.name };
  await opened.image.close();
  throw new CliError({
    exitCode: EXIT_IO,
    code: "empty",
    what: `cannot serve ${path}`,
    why: "it is 0 bytes long, so there is nothing to read or write",
    hint: `give it a size first: truncate -s 10G ${path}`,
  });
}
