/**
 * `IMAGE.owner`: who may write the disk in an image. It lies beside the image, so that every subcommand finds it, whatever
 * its state directory is; that of a device lies in a folder of the host, and what is called `image` here is then the name
 * that its records begin with. No record: the image never took part in a migration, and is its host's.
 *
 * | state | written by | the disk is |
 * | --- | --- | --- |
 * | OWNER | source, after a return; destination, once it is complete | this host's, and a plain image |
 * | FENCED | source | given away, to the destination that is named, at this term |
 * | RELEASED | source | the destination's, which has all of it |
 * | PENDING | destination | not here: what is in the image is provisional |
 * | ACTIVE | destination | this host's, but a part of it is still on the source |
 */
import * as z from "zod";
import type { Env } from "../env/env.ts";
import { MigrationError } from "./errors.ts";
import { readRecord, removeRecord, writeRecord } from "./record-file.ts";

export const ID = z.string().regex(/^[0-9a-f]{32}$/);
/** Also the name of its exports, and a part of channels' labels. */
export const DiskName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$/);
export const DISKS_MAX = 32;
export const Term = z.int().min(0);

export const OwnerRecord = z.strictObject({
  version: z.literal(1),
  state: z.enum(["OWNER", "FENCED", "RELEASED", "PENDING", "ACTIVE"]),
  /** Raised whenever the disk changes hands, and never used twice. */
  term: Term,
  /** The side that wrote this. */
  writtenBy: ID,
  migrationId: ID,
  /** Who the disk is, or was, given to. */
  destinationId: ID.optional(),
  disk: DiskName,
  /** All disks of the migration: they are given away and taken back together. */
  group: z.array(DiskName).min(1).max(DISKS_MAX),
  /** Where the rest is written down. */
  stateDirectory: z.string().max(4096),
});
export type OwnerRecord = z.output<typeof OwnerRecord>;
export type OwnerState = OwnerRecord["state"];

export function ownerPath(image: string): string {
  return `${image}.owner`;
}

export function readOwner(env: Pick<Env, "files">, image: string): Promise<OwnerRecord | undefined> {
  return readRecord(env, ownerPath(image), OwnerRecord);
}

export function writeOwner(env: Pick<Env, "files">, image: string, record: OwnerRecord): Promise<void> {
  return writeRecord(env, ownerPath(image), record);
}

export function removeOwner(env: Pick<Env, "files">, image: string): Promise<void> {
  return removeRecord(env, ownerPath(image));
}

/**
 * For every subcommand that opens an image and is no migration: throws `MigrationError("owned-elsewhere")`, or
 * "bad-record", unless the disk is this host's and whole. `records`: what its records are named after.
 */
export async function checkOwned(env: Pick<Env, "files">, image: string, records = image): Promise<void> {
  const record = await readOwner(env, records);
  if (record !== undefined) refuseUnlessOwned(image, record);
}

export function refuseUnlessOwned(image: string, record: OwnerRecord): void {
  const { state, term, destinationId = "", stateDirectory } = record;
  switch (state) {
    case "OWNER":
      return;
    case "FENCED":
      throw elsewhere(
        `${image} was given to destination ${destinationId.slice(0, 8)} (term ${term})`,
        `start "blockferry source" again with --state-dir ${stateDirectory}; "cancel" asks for the disk back`,
      );
    case "RELEASED":
      throw elsewhere(
        `${image} was moved to destination ${destinationId.slice(0, 8)} (term ${term}), which has all of it`,
        `use the disk there; to use what is left here all the same, "blockferry reclaim --destination-is-fenced"`,
      );
    case "PENDING":
      throw elsewhere(
        `${image} is being made by a migration, and holds nothing that can be relied on`,
        `start "blockferry dest" again with --state-dir ${stateDirectory}, or "cancel" it`,
      );
    case "ACTIVE":
      throw elsewhere(
        `a part of ${image} is still on the source (term ${term})`,
        `start "blockferry dest" again with --state-dir ${stateDirectory}, which fetches the rest`,
      );
  }
}

function elsewhere(message: string, hint: string): MigrationError {
  return new MigrationError("owned-elsewhere", message, hint);
}
