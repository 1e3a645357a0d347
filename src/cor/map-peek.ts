/** Looks at what a map says of its image, without locking or changing anything: whoever is about to open an image asks. */
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { isBlankMap } from "./map-file.ts";
import { decodeSuperblock, PAGE_BYTES, SECTOR_BYTES, type Superblock } from "./map-format.ts";
import { mapPath } from "./overlay-files.ts";

/**
 * The newest superblock of the map beside `image`. "blank": a crash left it before anything was made; "unreadable": a file
 * is there, but no map; `undefined`: none is.
 */
export async function peekMap(
  env: Pick<Env, "files">,
  image: string,
): Promise<Superblock | "blank" | "unreadable" | undefined> {
  let file: File;
  try {
    file = await env.files.open({ path: mapPath(image), writable: false, noFollow: true });
  } catch (error) {
    if (error instanceof FileError)
      return error.code === "ENOENT" || error.code === "ENOTDIR" ? undefined : "unreadable";
    throw error;
  }
  try {
    const copies = await Promise.all([0, 1].map((slot) => readSuperblock(file, slot)));
    const valid = copies.filter((copy) => copy !== undefined).sort((a, b) => b.generation - a.generation);
    return valid[0] ?? ((await isBlankMap(env, mapPath(image))) ? "blank" : "unreadable");
  } catch (error) {
    if (error instanceof FileError) return "unreadable";
    throw error;
  } finally {
    await file.close();
  }
}

async function readSuperblock(file: File, slot: number): Promise<Superblock | undefined> {
  const bytes = new Uint8Array(SECTOR_BYTES);
  const length = await file.read(slot * PAGE_BYTES, bytes);
  const found = length === SECTOR_BYTES ? decodeSuperblock(bytes) : undefined;
  return found === "later" ? undefined : found;
}
