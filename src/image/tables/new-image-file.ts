/** Making the file of a new image: what is in it, durable with its directory, or nothing at all. */
import { dirname } from "node:path";
import type { Env } from "../../env/env.ts";
import { type File, FileError } from "../../env/files.ts";
import { isZero } from "../../util/zeroes.ts";
import { imageOpenErrorFrom } from "../errors.ts";

/** Compared at a time. */
const PIECE_BYTES = 256 * 1024;
/** What a power cut leaves or loses whole. */
const SECTOR_BYTES = 512;

export interface NewImageContent {
  readonly fileBytes: number;
  /** The rest is a hole. */
  readonly parts: readonly NewImagePart[];
}

export interface NewImagePart {
  readonly offset: number;
  readonly bytes: Buffer;
}

type FilesEnv = Pick<Env, "files">;

/** The file is closed again. After a failure there is no file. Throws `ImageOpenError`. */
export async function createImageFile(env: FilesEnv, path: string, content: NewImageContent): Promise<void> {
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: true, create: true });
    await fill(file, content);
    await file.close();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    // Only what this call has made is removed: a file that was there before made `open` fail.
    if (file !== undefined) await discardFile(env, file);
    throw imageOpenErrorFrom(error, path, "create");
  }
}

/**
 * As `createImageFile`, for an image that begins as an overlay: it is locked meanwhile. With `begun`, what an interrupted
 * call with the same content left, at whatever point, is finished; any other file is left alone.
 */
export async function beginImageFile(
  env: FilesEnv,
  path: string,
  { begun, ...content }: NewImageContent & { readonly begun: boolean },
): Promise<void> {
  let file: File | undefined;
  let made = false;
  try {
    [file, made] = await openOrCreate(env, path);
    await file.lock("exclusive");
    if (!(made || (begun && (await isLeftOf(file, content))))) throw new FileError("EEXIST", `${path} exists`);
    await fill(file, content);
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    if (made) await env.files.unlink(path).catch(() => undefined);
    throw imageOpenErrorFrom(error, path, "create");
  } finally {
    await file?.close();
  }
}

async function fill(file: File, { fileBytes, parts }: NewImageContent): Promise<void> {
  await file.truncate(fileBytes);
  for (const { offset, bytes } of parts) await file.write(offset, bytes);
  await file.dataSync();
}

/** Never through a symbolic link. */
export async function openOrCreate({ files }: FilesEnv, path: string): Promise<[File, made: boolean]> {
  try {
    return [await files.open({ path, writable: true, create: true, noFollow: true }), true];
  } catch (error) {
    if (!(error instanceof FileError && error.code === "EEXIST")) throw error;
    return [await files.open({ path, writable: true, noFollow: true }), false];
  }
}

/** Every sector is what `fill` would write there, or zeroes. */
async function isLeftOf(file: File, content: NewImageContent): Promise<boolean> {
  const sizeBytes = await file.sizeBytes();
  if (sizeBytes > content.fileBytes) return false;
  const bytes = Buffer.alloc(Math.min(PIECE_BYTES, sizeBytes));
  for (let at = 0; at < sizeBytes; at += bytes.length) {
    const piece = bytes.subarray(0, Math.min(bytes.length, sizeBytes - at));
    if ((await file.read(at, piece)) !== piece.length) return false;
    if (!isZero(piece) && !isPartOf(piece, expected(content, at, piece.length))) return false;
  }
  return true;
}

function isPartOf(found: Buffer, whole: Buffer): boolean {
  for (let at = 0; at < found.length; at += SECTOR_BYTES) {
    const sector = found.subarray(at, at + SECTOR_BYTES);
    if (!sector.equals(whole.subarray(at, at + sector.length)) && !isZero(sector)) return false;
  }
  return true;
}

function expected({ parts }: NewImageContent, from: number, length: number): Buffer {
  const piece = Buffer.alloc(length);
  for (const { offset, bytes } of parts) {
    const start = Math.max(offset, from);
    const end = Math.min(offset + bytes.length, from + length);
    if (start < end) bytes.copy(piece, start - from, start - offset, end - offset);
  }
  return piece;
}

/** What fails here is of less interest than what failed before. */
async function discardFile(env: FilesEnv, file: File): Promise<void> {
  await file.close().catch(() => undefined);
  await env.files.unlink(file.path).catch(() => undefined);
}
