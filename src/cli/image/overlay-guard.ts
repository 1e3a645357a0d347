/**
 * Whether an image is this host's, and whole. One that a clone or a migration has not finished holds zeroes where blocks
 * are missing, and one that was given away is somebody else's: nobody but the command that began may open it.
 */
import { statSync } from "node:fs";
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

/** Throws `MigrationError` when the record of `image` says that it is not this host's. */
export async function refuseForeign(env: Pick<Env, "files">, image: string): Promise<void> {
  const records = await recordsBeside(env, image);
  // Most images have none, and whoever opens them need not load what reads one.
  if (records === undefined || !(await env.files.exists(`${records}.owner`))) return;
  const { checkOwned } = await import("../../migrate/owner-record.ts");
  await checkOwned(env, image, records);
}

/** As `refuseIncomplete`, whoever owns it. */
export async function refuseMissingBlocks(env: Pick<Env, "files">, image: string): Promise<void> {
  const records = await recordsBeside(env, image);
  const map = records === undefined ? undefined : await peekMap(env, records);
  if (records === undefined || map === undefined) return;
  if (map === "unreadable" || map === "blank") {
    throw new CliError({
      exitCode: EXIT_IO,
      code: "map-unreadable",
      what: `cannot open ${image}`,
      why: `${mapPath(records)}, which should say whether blocks are missing, says nothing`,
      hint: `restore it, or remove it if you know that ${image} is whole`,
    });
  }
  // Of a device, the first blocks come to it last.
  if (map.state === "complete" && (records === image || !(await env.files.exists(`${records}.head`)))) return;
  throw new CliError({
    exitCode: EXIT_TRY_AGAIN,
    code: "incomplete",
    what: `cannot open ${image}`,
    why: "it is a copy that is not finished: blocks are missing, which would read as zeroes",
    hint: `finish it: blockferry clone --exit-when-hydrated SOURCE-URI ${image}`,
  });
}

/** What the records of an image are named after; undefined: nothing is known of it. */
async function recordsBeside({ files }: Pick<Env, "files">, image: string): Promise<string | undefined> {
  if (!isBlockDevice(image)) return image;
  const { recordsOfImage } = await import("./device-records.ts");
  return await recordsOfImage({ files }, image);
}

function isBlockDevice(path: string): boolean {
  try {
    return statSync(path).isBlockDevice();
  } catch {
    // Whoever opens it has more to say about it.
    return false;
  }
}
