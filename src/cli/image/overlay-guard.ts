/**
 * Whether an image is this host's, and whole. One that a clone or a migration has not finished holds zeroes where blocks
 * are missing, and one that was given away is somebody else's: nobody but the command that began may open it.
 */
import { peekMap } from "../../cor/map-peek.ts";
import { mapPath } from "../../cor/overlay-files.ts";
import type { Env } from "../../env/env.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_TRY_AGAIN } from "../exit-codes.ts";

/**
 * Throws `MigrationError` when a record beside `image` says that it is not this host's, and `CliError("incomplete")` when
 * the map beside it says that blocks are missing, or cannot be read.
 */
export async function refuseIncomplete(env: Pick<Env, "files">, image: string): Promise<void> {
  await refuseForeign(env, image);
  await refuseMissingBlocks(env, image);
}

/** Throws `MigrationError` when the record beside `image` says that it is not this host's. */
export async function refuseForeign(env: Pick<Env, "files">, image: string): Promise<void> {
  // Most images have none, and whoever opens them need not load what reads one.
  if (!(await env.files.exists(`${image}.owner`))) return;
  const { checkOwned } = await import("../../migrate/owner-record.ts");
  await checkOwned(env, image);
}

/** As `refuseIncomplete`, whoever owns it. */
export async function refuseMissingBlocks(env: Pick<Env, "files">, image: string): Promise<void> {
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
