/**
 * What each side writes down in its state directory.
 *
 * `destination` is the destination's one record for all disks of a migration: to write it is to take the disks (ACTIVE),
 * to refuse them (DECLINED) or to give them back (RETURNED). It names the presence map of each disk, so that no other map
 * is ever taken for it. Beside it lies `destination.unwritten`, until a guest of this host changes a disk: a file that is to
 * go then, for that takes no room. `source` holds no more than names, so that a source that was restarted is known as the same one;
 * who owns what is in the `IMAGE.owner` records, which outlive the state directory.
 */
import { join } from "node:path";
import * as z from "zod";
import type { Env } from "../env/env.ts";
import { FileError } from "../env/files.ts";
import { DISKS_MAX, DiskName, ID, Term } from "./owner-record.ts";
import { readRecord, removeRecord, writeRecord } from "./record-file.ts";

const DestinationDiskEntry = z.strictObject({
  name: DiskName,
  image: z.string().min(1).max(4096),
  sizeBytes: z.int().min(1),
  clusterBytes: z.int().min(512),
  /** Of the map, and of the image that belongs to it. */
  uuid: ID,
});
export type DestinationDiskEntry = z.output<typeof DestinationDiskEntry>;

/**
 * JOINED: nothing was granted. ACTIVE: the owner. DECLINED: whatever was granted at this term is void. RETURNED: the disks
 * go back, at this term. COMPLETE: the owner, and everything is here.
 */
export const DestinationRecord = z.strictObject({
  version: z.literal(1),
  state: z.enum(["JOINED", "ACTIVE", "DECLINED", "RETURNED", "COMPLETE"]),
  destinationId: ID,
  /** Absent until the source was met. */
  migrationId: ID.optional(),
  term: Term,
  disks: z.array(DestinationDiskEntry).max(DISKS_MAX),
});
export type DestinationRecord = z.output<typeof DestinationRecord>;

export const SourceRecord = z.strictObject({
  version: z.literal(1),
  sourceId: ID,
  migrationId: ID,
});
export type SourceRecord = z.output<typeof SourceRecord>;

export function destinationRecordPath(stateDirectory: string): string {
  return join(stateDirectory, "destination.record");
}

export function sourceRecordPath(stateDirectory: string): string {
  return join(stateDirectory, "source.record");
}

export function readDestination(
  env: Pick<Env, "files">,
  stateDirectory: string,
): Promise<DestinationRecord | undefined> {
  return readRecord(env, destinationRecordPath(stateDirectory), DestinationRecord);
}

export function writeDestination(
  env: Pick<Env, "files">,
  stateDirectory: string,
  record: DestinationRecord,
): Promise<void> {
  return writeRecord(env, destinationRecordPath(stateDirectory), record);
}

export async function removeDestination(env: Pick<Env, "files">, stateDirectory: string): Promise<void> {
  const note = unwrittenPath(stateDirectory);
  if (await env.files.exists(note)) await env.files.unlink(note);
  await env.files.syncDirectory(stateDirectory);
  await removeRecord(env, destinationRecordPath(stateDirectory));
}

export function unwrittenPath(stateDirectory: string): string {
  return join(stateDirectory, "destination.unwritten");
}

/** From now on it counts that nobody has written, durably. Idempotent. */
export async function noteUnwritten({ files }: Pick<Env, "files">, stateDirectory: string): Promise<void> {
  const path = unwrittenPath(stateDirectory);
  if (await files.exists(path)) return await files.syncDirectory(stateDirectory);
  const file = await files.open({ path, writable: true, create: true, noFollow: true });
  await file.close();
  await files.syncDirectory(stateDirectory);
}

/** Nobody can say that any more, durably. Idempotent. */
export async function noteWritten({ files }: Pick<Env, "files">, stateDirectory: string): Promise<void> {
  try {
    // It is there as a rule, and a guest waits: nobody looks first.
    await files.unlink(unwrittenPath(stateDirectory));
  } catch (error) {
    if (!(error instanceof FileError && error.code === "ENOENT")) throw error;
  }
  await files.syncDirectory(stateDirectory);
}

export function readSource(env: Pick<Env, "files">, stateDirectory: string): Promise<SourceRecord | undefined> {
  return readRecord(env, sourceRecordPath(stateDirectory), SourceRecord);
}

export function writeSource(env: Pick<Env, "files">, stateDirectory: string, record: SourceRecord): Promise<void> {
  return writeRecord(env, sourceRecordPath(stateDirectory), record);
}
