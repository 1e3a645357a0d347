/**
 * Small records that must be on the disk before something else happens: JSON for people to read, and a checksum. A record
 * is replaced as a whole: written beside its place → fsync → rename → fsync of the directory. Whoever reads one after a
 * crash finds the old or the new one.
 */
import { dirname } from "node:path";
import { crc32 } from "node:zlib";
import type * as z from "zod";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { MigrationError } from "./errors.ts";

/** More than 32 disks with the longest paths take. */
const RECORD_BYTES_MAX = 1024 * 1024;
const TRAILER = /^(.*\n)crc32 ([0-9a-f]{8})\n$/s;

type RecordEnv = Pick<Env, "files">;

/**
 * Durable when resolved. When it rejects, the old record, the new one, or either after the next crash may be there; the same
 * may be written again, as a new file, until it is durable.
 */
export async function writeRecord({ files }: RecordEnv, path: string, record: object): Promise<void> {
  const text = `${JSON.stringify(record, null, 1)}\n`;
  const bytes = Buffer.from(`${text}crc32 ${checksum(text)}\n`, "utf8");
  if (bytes.length > RECORD_BYTES_MAX) {
    throw new MigrationError("io", `${path} would be too long to be read again`, "use shorter paths, or fewer disks");
  }
  const beside = `${path}.new`;
  if (await files.exists(beside)) await files.unlink(beside);
  const file = await files.open({ path: beside, writable: true, create: true, noFollow: true });
  try {
    await file.write(0, bytes);
    await file.dataSync();
  } finally {
    await file.close();
  }
  await files.rename(beside, path);
  await files.syncDirectory(dirname(path));
}

/** `undefined`: there is none. Throws `MigrationError("bad-record")` for anything that is not a whole record. */
export async function readRecord<S extends z.ZodType>(
  { files }: RecordEnv,
  path: string,
  schema: S,
): Promise<z.output<S> | undefined> {
  const text = await readText({ files }, path);
  if (text === undefined) return undefined;
  const [, body, sum] = TRAILER.exec(text) ?? [];
  if (body === undefined || checksum(body) !== sum) throw badRecord(path, "it is damaged");
  let parsed: unknown;
  try {
    parsed = JSON.parse(body);
  } catch (error) {
    throw badRecord(path, "it is damaged", error);
  }
  const checked = schema.safeParse(parsed);
  if (checked.success) return checked.data;
  throw badRecord(path, "it is not as this version writes it", checked.error);
}

/** Gone, durably. Idempotent. */
export async function removeRecord({ files }: RecordEnv, path: string): Promise<void> {
  for (const each of [path, `${path}.new`]) if (await files.exists(each)) await files.unlink(each);
  await files.syncDirectory(dirname(path));
}

async function readText({ files }: RecordEnv, path: string): Promise<string | undefined> {
  let file: File;
  try {
    file = await files.open({ path, writable: false, noFollow: true });
  } catch (error) {
    if (error instanceof FileError && (error.code === "ENOENT" || error.code === "ENOTDIR")) return undefined;
    throw error;
  }
  try {
    const bytes = Buffer.alloc(Math.min(await file.sizeBytes(), RECORD_BYTES_MAX));
    const length = await file.read(0, bytes);
    return bytes.toString("utf8", 0, length);
  } finally {
    await file.close();
  }
}

function badRecord(path: string, why: string, cause?: unknown): MigrationError {
  const hint = "restore it from a backup; without it nobody can tell who owns the disk";
  return new MigrationError("bad-record", `cannot use ${path}: ${why}`, hint, { cause });
}

function checksum(text: string): string {
  return crc32(Buffer.from(text, "utf8")).toString(16).padStart(8, "0");
}
