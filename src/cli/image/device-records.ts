/**
 * Where the records of a block device are: whose its disk is (`.owner`), which of it is here (`.map`, `.log`, `.head`).
 * Beside a file they lie beside the file; the folder of a device is made anew at each start of the host, so its records are
 * in one folder of this host, under a name that follows from what the device *is*, not from what it is called. Every
 * command finds them there, whatever its state directory is.
 *
 * `KEY.device` says in plain words which device it is. A name that has come to mean another device, while the one that it
 * meant is not this host's or not whole, is refused: it is a mistake, and writing to the wrong volume cannot be undone.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import * as z from "zod";
import { peekMap } from "../../cor/map-peek.ts";
import type { Env } from "../../env/env.ts";
import { readOwner } from "../../migrate/owner-record.ts";
import { readRecord, writeRecord } from "../../migrate/record-file.ts";
import { deviceIdentity } from "../../os/device-identity.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";

type RecordsEnv = Pick<Env, "files">;
type Environment = Readonly<Record<string, string | undefined>>;

const FOLDER = "/var/lib/blockferry/devices";
const SUFFIX = ".device";

const DeviceRecord = z.strictObject({
  version: z.literal(1),
  identity: z.string().min(1).max(8192),
  /** What it was called when a command last took it. */
  path: z.string().min(1).max(4096),
});

export interface DevicePlace {
  /** As the operator has it. */
  readonly path: string;
  /** Its records are named after this, as those of a file after the file. */
  readonly records: string;
  readonly identity: string;
}

/** Undefined: `image` is no block device. Throws `CliError` for a device that cannot be told from others. */
export async function findDevice(env: RecordsEnv, image: string): Promise<DevicePlace | undefined> {
  const path = resolve(image);
  const identity = await deviceIdentity(path);
  if (identity === undefined) return undefined;
  if (identity === null) throw unknowable(path);
  const records = recordsOf(identity);
  const known = await readRecord(env, `${records}${SUFFIX}`, DeviceRecord);
  if (known !== undefined && known.identity !== identity) throw notTheSame(path, records);
  return { path, records, identity };
}

/**
 * What the records of an image are named after: its path, unless it is a device. Undefined: a device that nothing is known
 * of. Throws `CliError` when something may be known of it, and that cannot be seen.
 */
export async function recordsOfImage(env: RecordsEnv, image: string): Promise<string | undefined> {
  const path = resolve(image);
  const identity = await deviceIdentity(path);
  if (identity === undefined) return image;
  if (identity !== null) return await visible(env, recordsOf(identity));
  await refuseOtherMeaning(env, path, undefined);
  return undefined;
}

/** Who may not see whether there are records must not take that for none. */
async function visible(env: RecordsEnv, records: string): Promise<string> {
  try {
    await env.files.exists(`${records}${SUFFIX}`);
    return records;
  } catch (cause) {
    throw cannotLook(dirname(records), cause as Error);
  }
}

/** Before a command takes the device: makes the folder of the records, and writes down which device it is. */
export async function takeDevice(env: RecordsEnv, device: DevicePlace): Promise<void> {
  const { path, records, identity } = device;
  await refuseOtherMeaning(env, path, identity);
  const folder = dirname(records);
  try {
    // Whoever may not read what is in there is told so, rather than that there is nothing.
    if (mkdirSync(folder, { recursive: true, mode: 0o755 }) !== undefined)
      await env.files.syncDirectory(dirname(folder));
    await writeRecord(env, `${records}${SUFFIX}`, { version: 1, identity, path });
  } catch (error) {
    throw cannotKeep(device, error as Error);
  }
}

function recordsOf(identity: string): string {
  const [kind = ""] = identity.split(":");
  const hash = createHash("sha256").update(identity).digest("hex").slice(0, 24);
  return join(devicesFolder(process.env), `${kind}-${hash}`);
}

export function devicesFolder(env: Environment): string {
  const chosen = env["BLOCKFERRY_DEVICES_DIR"];
  return chosen === undefined || chosen === "" ? FOLDER : resolve(chosen);
}

/** Throws when `path` was another device, which is not done with. */
async function refuseOtherMeaning(env: RecordsEnv, path: string, identity: string | undefined): Promise<void> {
  const folder = devicesFolder(process.env);
  for (const name of entriesOf(folder)) {
    if (!name.endsWith(SUFFIX)) continue;
    const known = await readRecord(env, join(folder, name), DeviceRecord);
    if (known === undefined || known.path !== path || known.identity === identity) continue;
    const records = join(folder, name.slice(0, -SUFFIX.length));
    if (await isUnfinished(env, records)) throw otherDevice(path, records);
  }
}

async function isUnfinished(env: RecordsEnv, records: string): Promise<boolean> {
  const owner = await readOwner(env, records);
  if (owner?.state === "FENCED" || owner?.state === "PENDING" || owner?.state === "ACTIVE") return true;
  const map = await peekMap(env, records);
  return map === "unreadable" || (typeof map === "object" && map.state !== "complete");
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw cannotLook(folder, error as Error);
  }
}

function unknowable(path: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "device-unknown",
    what: `cannot use ${path}`,
    why: "it has neither a uuid nor a serial number that can be read: after the next boot nobody could tell which device it was",
    hint: "use a volume of LVM, a partition of a GPT, or a disk with a serial number",
  });
}

function otherDevice(path: string, records: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "other-device",
    what: `cannot use ${path}`,
    why: `it is another device than the one of that name which ${records}${SUFFIX} tells of, and which is not done with`,
    hint: `name the right device; if that one is gone for good, remove ${records}.*`,
  });
}

function notTheSame(path: string, records: string): CliError {
  return new CliError({
    exitCode: EXIT_IO,
    code: "other-device",
    what: `cannot use ${path}`,
    why: `${records}${SUFFIX} tells of another device`,
    hint: "restore it from a backup, or remove it if you know that the device is whole and this host's",
  });
}

function cannotLook(folder: string, cause: Error): CliError {
  return new CliError(
    {
      exitCode: EXIT_IO,
      code: "permission",
      what: "cannot tell whose disk is on the device",
      why: `${folder}, where that is written down, may not be looked into (${cause.message})`,
      hint: "run as root, or let others look into that folder and those above it (chmod a+rx)",
    },
    { cause },
  );
}

function cannotKeep({ path, records }: DevicePlace, cause: Error & { code?: string }): CliError {
  return new CliError(
    {
      exitCode: EXIT_IO,
      code: cause.code ?? "io",
      what: `cannot keep the records of ${path}`,
      why: `${dirname(records)} cannot be written to (${cause.message})`,
      hint: "run as a user who may, or have every command of this host use another folder: BLOCKFERRY_DEVICES_DIR",
    },
    { cause },
  );
}
