/**
 * What the records beside a source's images say together, and how they are changed: for all disks, or for none.
 *
 * - All are FENCED at one term: the grant may be out, and only the destination knows what became of it.
 * - All are RELEASED, or some already: the destination has everything.
 * - Anything else: nothing was granted, for the grant goes out after the last fence; or the disks were on their way back,
 *   which begins only after the destination has let go of them. Either way they are this host's, at a new term.
 */
import type { Env } from "../env/env.ts";
import { MigrationError, messageOf } from "./errors.ts";
import {
  type OwnerRecord,
  type OwnerState,
  ownerPath,
  readOwner,
  refuseUnlessOwned,
  writeOwner,
} from "./owner-record.ts";

type OwnersEnv = Pick<Env, "files" | "chaos">;

export interface OwnedImage {
  readonly name: string;
  readonly image: string;
}

export interface Standing {
  readonly phase: "setup" | "granted" | "released";
  readonly term: number;
  /** Whom the disks were given to, and in which migration. */
  readonly given: { readonly migrationId: string; readonly destinationId: string } | undefined;
}

export type OwnerChange = Pick<OwnerRecord, "state" | "term" | "writtenBy" | "migrationId" | "stateDirectory"> & {
  readonly destinationId: string | undefined;
};

/** Reads the records, makes what they say durable, and settles what a crash has left half-done. Throws `MigrationError`. */
export async function findStanding(
  env: OwnersEnv,
  disks: readonly OwnedImage[],
  writer: { readonly writtenBy: string; readonly migrationId: string; readonly stateDirectory: string },
): Promise<Standing> {
  const records = await Promise.all(disks.map(({ image }) => readOwner(env, image)));
  const term = Math.max(0, ...records.map((record) => record?.term ?? 0));
  const given = records.filter((record) => record?.state === "FENCED" || record?.state === "RELEASED");
  for (const [index, record] of records.entries()) checkUsable(disks, index, record);
  const [first] = given;
  if (first === undefined) {
    await rewrite(env, disks, records);
    return { phase: "setup", term, given: undefined };
  }
  if (given.length < disks.length) {
    await writeOwners(env, disks, { ...writer, state: "OWNER", term: term + 1, destinationId: undefined });
    return { phase: "setup", term: term + 1, given: undefined };
  }
  const { migrationId, destinationId } = first;
  const alike = given.every((it) => it?.term === term && it.migrationId === migrationId);
  if (!alike || destinationId === undefined) throw notTogether(disks);
  // After a kill they may be in the page cache only, and what follows must not outlive them.
  await rewrite(env, disks, records);
  const released = given.some((it) => it?.state === "RELEASED");
  return { phase: released ? "released" : "granted", term, given: { migrationId, destinationId } };
}

/** Durable for every disk when resolved. When it rejects, any of them may have been changed. */
export async function writeOwners(env: OwnersEnv, disks: readonly OwnedImage[], change: OwnerChange): Promise<void> {
  const { destinationId, ...fields } = change;
  const group = disks.map(({ name }) => name);
  const writing = disks.map(({ name, image }) =>
    writeOwner(env, image, {
      ...fields,
      ...(destinationId !== undefined && { destinationId }),
      ...{ version: 1, disk: name, group },
    }),
  );
  const failed = (await Promise.allSettled(writing)).find((outcome) => outcome.status === "rejected");
  if (failed === undefined) return;
  const message = `cannot record that the disks are ${WORDS[change.state]}: ${messageOf(failed.reason)}`;
  throw new MigrationError("io", message, "check the file system that the images are on", { cause: failed.reason });
}

const WORDS: Readonly<Record<OwnerState, string>> = {
  OWNER: "this host's",
  FENCED: "given away",
  RELEASED: "not needed any more",
  PENDING: "being made",
  ACTIVE: "this host's, and incomplete",
};

function checkUsable(disks: readonly OwnedImage[], index: number, record: OwnerRecord | undefined): void {
  const disk = disks[index];
  if (disk === undefined || record === undefined) return;
  if (record.state === "PENDING" || record.state === "ACTIVE") refuseUnlessOwned(disk.image, record);
  if (record.state === "OWNER") return;
  const names = disks.map(({ name }) => name).toSorted();
  const group = record.group.toSorted();
  if (record.disk === disk.name && names.join("/") === group.join("/")) return;
  const message = `${ownerPath(disk.image)} is of disk ${record.disk} in a migration of ${record.group.join(", ")}`;
  throw new MigrationError("owned-elsewhere", message, "name the same disks as before, all of them");
}

async function rewrite(
  env: OwnersEnv,
  disks: readonly OwnedImage[],
  records: readonly (OwnerRecord | undefined)[],
): Promise<void> {
  if (env.chaos.on("migrate/records-not-rewritten")) return;
  await Promise.all(
    disks.map(async ({ image }, index) => {
      const record = records[index];
      if (record !== undefined) await writeOwner(env, image, record);
    }),
  );
}

function notTogether(disks: readonly OwnedImage[]): MigrationError {
  const paths = disks.map(({ image }) => ownerPath(image)).join(", ");
  return new MigrationError("bad-record", `${paths} do not go together`, "restore the records of one migration");
}
