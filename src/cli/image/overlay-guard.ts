/** An image that a clone has not finished holds zeroes where blocks are missing: nobody but `clone` may open it. */
import { peekMap } from "../../cor/map-peek.ts";
import { mapPath } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_TRY_AGAIN } from "../exit-codes.ts";

/** Throws `CliError("incomplete")` when the map beside `image` says that blocks are missing, or cannot be read. */
export async function refuseIncomplete(env: Pick<Env, "files">, image: string): Promise<void> {
  const map = await peekMap(env, image);
  if (map === undefined) return;
  if (map === "unreadable" || map === "blank") {
    throw new CliError({
      exitCode: EXIT_IO,
      code: "map-unreadable",
      what: `cannot open ${image}`,
      why: `${mapPath(image)}, which should say whether blocks are missing, says nothing`,
      hint: `restore it, or remove it if you know that ${image} is whole`,
    });
  }
  if (map.state === "complete") return;
  throw new CliError({
    exitCode: EXIT_TRY_AGAIN,
    code: "incomplete",
    what: `cannot open ${image}`,
    why: "it is a copy that is not finished: blocks are missing, which would read as zeroes",
    hint: `finish it: blockferry clone --exit-when-hydrated SOURCE-URI ${image}`,
  });
}
