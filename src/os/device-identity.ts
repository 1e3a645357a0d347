/**
 * What a block device is, whatever it is called. Its names and its numbers are given anew at each start of the host, and
 * the next volume of a name is another volume; so it is known by what it carries with it:
 *
 * | device | known by | where that is written |
 * | --- | --- | --- |
 * | volume of LVM, mapping of the device mapper | its uuid | sysfs |
 * | partition | its PARTUUID | sysfs (recent kernels), udev's database |
 * | disk | WWID, or serial number | sysfs |
 * | array of md | its uuid | sysfs, udev's database |
 * | loop device | the file that it shows, and from where on | sysfs |
 *
 * One kind of device has one kind of identity: no second choice, which would count only as long as the first was missing.
 */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { deviceName } from "./file-kind.ts";

export interface DeviceRoots {
  readonly sys: string;
  /** Of udev's database. */
  readonly udev: string;
}

const ROOTS: DeviceRoots = { sys: "/sys", udev: "/run/udev" };
const DELETED = " (deleted)";

/**
 * The identity of the block device that `path` leads to; null: it has none that can be read. Undefined: `path` leads to no
 * block device, as far as can be seen.
 */
export async function deviceIdentity(path: string, roots = ROOTS): Promise<string | null | undefined> {
  const stats = await stat(path).catch(() => undefined);
  if (stats?.isBlockDevice() !== true) return undefined;
  return (await identityOf(deviceName(stats.rdev), roots)) ?? null;
}

/** The same for a device by its numbers, "8:1". */
export async function identityOf(numbers: string, { sys, udev }: DeviceRoots): Promise<string | undefined> {
  const attribute = (name: string): Promise<string> => text(join(sys, "dev/block", numbers, name));
  const fromUdev = async (name: string): Promise<string> =>
    field(await text(join(udev, "data", `b${numbers}`)), `E:${name}`);
  if ((await attribute("dm/name")) !== "") return named("dm", withoutName(await attribute("dm/uuid")));
  if ((await attribute("partition")) !== "") {
    const known = field(await attribute("uevent"), "PARTUUID");
    return named("partition", (known === "" ? await fromUdev("ID_PART_ENTRY_UUID") : known).toLowerCase());
  }
  if ((await attribute("md/level")) !== "") {
    const known = await attribute("md/uuid");
    // Written in two ways: as four groups, and as five.
    return named("md", (known === "" ? await fromUdev("MD_UUID") : known).replaceAll(/[^0-9a-f]/gi, "").toLowerCase());
  }
  if ((await attribute("loop/backing_file")) !== "") return await loopIdentity(attribute);
  for (const name of ["wwid", "device/wwid", "device/cid", "serial"]) {
    const known = await attribute(name);
    if (known !== "") return named("disk", known);
  }
  return undefined;
}

/** Of an encrypted volume, cryptsetup appends the name that the mapping has got this time; without a header it is all there is. */
function withoutName(uuid: string): string {
  if (!uuid.startsWith("CRYPT-")) return uuid;
  return /^CRYPT-LUKS\d+-[0-9a-f]{32}/.exec(uuid)?.[0] ?? "";
}

/** Another file of the same name is another device, also where it has got the inode of the one that is gone. */
async function loopIdentity(attribute: (name: string) => Promise<string>): Promise<string | undefined> {
  const [file, offset] = await Promise.all([attribute("loop/backing_file"), attribute("loop/offset")]);
  if (file.endsWith(DELETED)) return undefined;
  try {
    const { ino, birthtimeNs } = await stat(file, { bigint: true });
    return named("loop", `${ino}:${birthtimeNs}:${offset}:${file}`);
  } catch {
    return undefined;
  }
}

function named(kind: string, value: string): string | undefined {
  return value === "" ? undefined : `${kind}:${value}`;
}

/** The value of a line `NAME=VALUE`; empty if there is none. */
function field(lines: string, name: string): string {
  const line = lines.split("\n").find((each) => each.startsWith(`${name}=`));
  return line === undefined ? "" : line.slice(name.length + 1).trim();
}

/** Empty: there is no such file, or nothing in it. */
async function text(path: string): Promise<string> {
  try {
    return (await readFile(path, "utf8")).trim();
  } catch {
    return "";
  }
}
