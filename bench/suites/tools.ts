/** The programs that take part in the suites that compare copies, images and migrations. */
import { buildBlockferry, NBDKIT, type Presence, presence, QEMU_NBD } from "../lib/peers.ts";
import { SUBJECT } from "../lib/suite.ts";

export interface Tools {
  readonly versions: Readonly<Record<string, string>>;
  /** The first of the named programs that is missing, if any, as a contender says it. */
  missing(...names: readonly string[]): { missing: string } | undefined;
}

const COMMANDS: readonly (readonly [string, ...string[]])[] = [
  NBDKIT.versionCommand,
  QEMU_NBD.versionCommand,
  ["nbdcopy", "--version"],
  ["qemu-img", "--version"],
  ["qemu-storage-daemon", "--version"],
  ["fio", "--version"],
];

/** Builds blockferry, and asks everybody else for a version. */
export async function findTools(): Promise<Tools> {
  const found = new Map<string, Presence>([[SUBJECT, await buildBlockferry()]]);
  for (const command of COMMANDS) found.set(command[0], await presence(command, NBDKIT.hint));
  const versions = [...found].flatMap(([name, state]) => ("version" in state ? [[name, state.version] as const] : []));
  return {
    versions: Object.fromEntries(versions),
    missing: (...names) => {
      const absent = names.map((name) => found.get(name)).find((state) => state !== undefined && "missing" in state);
      return absent !== undefined && "missing" in absent ? { missing: absent.missing } : undefined;
    },
  };
}
