/**
 * What a destination makes beside its images, and in which order, so that a crash leaves nothing that is taken for a disk:
 *
 *   PENDING beside the image → the record, which names the image's uuid → what an earlier life left is removed → the image
 *
 * and when nothing of it is needed any more: image, map and log → the owner's record → the record.
 */
import { dirname } from "node:path";
import { logPath, mapPath } from "../cor/overlay-files.ts";
import type { Env } from "../env/env.ts";
import type { DestinationMigrationOptions, DestinationDisk as DiskOptions } from "./destination-options.ts";
import { MigrationError, messageOf } from "./errors.ts";
import {
  type DestinationDiskEntry,
  type DestinationRecord,
  readDestination,
  removeDestination,
  writeDestination,
} from "./group-records.ts";
import { newId } from "./ids.ts";
import { type OwnerState, readOwner, refuseUnlessOwned, removeOwner, writeOwner } from "./owner-record.ts";

type FilesEnv = Pick<Env, "files" | "random" | "chaos">;
/** What map, log and the owner's record are named after. */
export function recordsOf({ image, records }: Pick<DiskOptions, "image" | "records">): string {
  return records ?? image;
}

type FilesOptions = Pick<DestinationMigrationOptions, "disks" | "stateDirectory">;

/** The record of this migration, durable: what an earlier life has left, or a new one. Throws `MigrationError`. */
export async function findRecord(env: FilesEnv, options: FilesOptions): Promise<DestinationRecord> {
  const { disks, stateDirectory } = options;
  const known = await readDestination(env, stateDirectory);
  if (known === undefined || (await hasMovedOn(env, options, known))) {
    for (const disk of disks) await checkFree(env, disk);
    const record: DestinationRecord = {
      ...{ version: 1, state: "JOINED", destinationId: newId(env), term: 0, disks: [] },
    };
    await writeDestination(env, stateDirectory, record);
    return record;
  }
  for (const { name, image } of known.disks) {
    if (disks.some((disk) => disk.name === name && disk.image === image)) continue;
    const message = `the migration of ${stateDirectory} has disk ${name} in ${image}`;
    throw new MigrationError("owned-elsewhere", message, "name the same disks and images as before");
  }
  if (known.disks.length > 0 && known.disks.length !== disks.length) {
    const message = `the migration of ${stateDirectory} has ${known.disks.length} disks`;
    throw new MigrationError("owned-elsewhere", message, "name the same disks and images as before");
  }
  await refuseTakenSince(env, options, known);
  // After a kill it may be in the page cache only, and what follows must not outlive it.
  if (!env.chaos.on("migrate/records-not-rewritten")) await writeDestination(env, stateDirectory, known);
  return known;
}

/** What the record tells of is over: the disks came here, and went on to another host, which has all of them. */
async function hasMovedOn(
  env: Pick<Env, "files">,
  options: FilesOptions,
  { state, disks }: DestinationRecord,
): Promise<boolean> {
  if (state !== "COMPLETE") return false;
  const here = disks.filter(({ name }) => options.disks.some((disk) => disk.name === name));
  const owners = await Promise.all(here.map((entry) => readOwner(env, recordsOf(optionsOf(options, entry)))));
  return owners.length === disks.length && owners.every((owner) => owner?.state === "RELEASED");
}

/** A record that says that the disks are this host's does not know of a migration that has begun here since. */
async function refuseTakenSince(
  env: Pick<Env, "files">,
  options: FilesOptions,
  { state, term, destinationId, disks }: DestinationRecord,
): Promise<void> {
  if (state !== "ACTIVE" && state !== "COMPLETE") return;
  for (const entry of disks) {
    const owner = await readOwner(env, recordsOf(optionsOf(options, entry)));
    if (owner === undefined || (owner.writtenBy === destinationId && owner.term <= term)) continue;
    refuseUnlessOwned(entry.image, owner);
    const message = `${entry.image} took part in another migration since (term ${owner.term})`;
    const hint = `use it with "blockferry serve" or "source", or name another --state-dir than ${options.stateDirectory}`;
    throw new MigrationError("owned-elsewhere", message, hint);
  }
}

/** There must be neither an image nor somebody's claim to one. */
async function checkFree(env: Pick<Env, "files">, disk: DiskOptions): Promise<void> {
  const { image, mayTake } = disk;
  const owner = await readOwner(env, recordsOf(disk));
  if (mayTake !== undefined) return await mayTake();
  if (owner !== undefined) refuseUnlessOwned(image, owner);
  if (!(await env.files.exists(image))) return;
  const hint = "choose another path, or remove it if nobody needs it";
  throw new MigrationError("owned-elsewhere", `${image} exists already`, hint);
}

/** Claims the images' places; whatever this migration has left there is gone afterwards. Returns the record, durable. */
export async function claimPlaces(
  env: FilesEnv,
  options: FilesOptions,
  record: DestinationRecord & { readonly migrationId: string },
): Promise<void> {
  for (const disk of options.disks) {
    const { image, mayTake } = disk;
    const owner = await readOwner(env, recordsOf(disk));
    const ours = owner?.state === "PENDING" && owner.destinationId === record.destinationId;
    if (!ours && mayTake !== undefined) await mayTake();
    else if (!ours && (await env.files.exists(image))) {
      throw new MigrationError("owned-elsewhere", `${image} exists already`, "choose another path");
    }
  }
  await writeDestinationOwners(env, options, record, "PENDING");
  await writeDestination(env, options.stateDirectory, record);
}

export async function writeDestinationOwners(
  env: FilesEnv,
  options: FilesOptions,
  { disks, term, destinationId, migrationId }: DestinationRecord,
  state: OwnerState,
): Promise<void> {
  const group = disks.map(({ name }) => name);
  if (migrationId === undefined) throw new Error("the migration has no name yet");
  await all(
    disks.map((entry) =>
      writeOwner(env, recordsOf(optionsOf(options, entry)), {
        ...{ version: 1, state, term, writtenBy: destinationId, migrationId, destinationId },
        ...{ disk: entry.name, group, stateDirectory: options.stateDirectory },
      }),
    ),
  );
}

/** All files of an image but the record of who owns it. */
export function filesOf(options: FilesOptions, entry: DestinationDiskEntry): readonly string[] {
  const disk = optionsOf(options, entry);
  const records = recordsOf(disk);
  const image = disk.mayTake === undefined ? entry.image : `${records}.head`;
  return [image, mapPath(records), `${mapPath(records)}.new`, logPath(records)];
}

function optionsOf({ disks }: Pick<FilesOptions, "disks">, { name }: DestinationDiskEntry): DiskOptions {
  const options = disks.find((disk) => disk.name === name);
  if (options === undefined) throw new Error(`there is no disk ${name}`);
  return options;
}

/** Removes files, as far as they are there; durable with their directories. */
export async function removeFiles({ files }: Pick<Env, "files">, paths: readonly string[]): Promise<void> {
  for (const path of paths) if (await files.exists(path)) await files.unlink(path);
  for (const directory of new Set(paths.map((path) => dirname(path)))) await files.syncDirectory(directory);
}

/** Nothing of the migration is left afterwards. The images are closed. */
export async function removeAll(env: FilesEnv, options: FilesOptions, record: DestinationRecord): Promise<void> {
  for (const entry of record.disks) {
    const records = recordsOf(optionsOf(options, entry));
    const owner = await readOwner(env, records);
    // Without a record the files went before it did. That it is gone may have to be made durable still.
    if (owner !== undefined && owner.destinationId !== record.destinationId) continue;
    if (owner !== undefined) await removeFiles(env, filesOf(options, entry));
    await removeOwner(env, records);
  }
  await removeDestination(env, options.stateDirectory);
}

/** Waits for all, then throws the first failure. */
export async function all(work: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((outcome) => outcome.status === "rejected");
  if (failed === undefined) return;
  if (failed.reason instanceof MigrationError) throw failed.reason;
  throw new MigrationError("io", messageOf(failed.reason), "check the file system", { cause: failed.reason });
}
