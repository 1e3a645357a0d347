/** What was opened: a regular file or a block device, on which kind of file system, and how large it is. */
import { readFile, type Stats, statfs } from "node:fs";
import { promisify } from "node:util";
import { type File, FileError } from "../env/files.ts";
import { errnoError } from "./file-error.ts";
import type { NativeCalls } from "./native-calls.ts";

export type FileKind = File["kind"];

/** The unit of /sys/dev/block/…/size, whatever the device's own sectors are. */
const SYSFS_SECTOR_BYTES = 512;

/**
 * File systems where a write goes to the page cache and no further (linux/magic.h). Elsewhere (FUSE, NFS, …) it may go
 * to a daemon or over the network at once, and so may a lock.
 */
const LOCAL_FILE_SYSTEMS: readonly number[] = [
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // btrfs
  0xf2f52010, // F2FS
  0x01021994, // tmpfs
];

/** The `statfs` type of NFS. */
export const NFS = 0x6969;

/** Refuses what is neither: `FileError` "EISDIR", "ELOOP" for a symbolic link that is not to be followed, or "EINVAL". */
export function kindOf(stats: Stats, what: string): FileKind {
  if (stats.isFile()) return "regular";
  if (stats.isBlockDevice()) return "block-device";
  if (stats.isDirectory()) throw new FileError("EISDIR", `${what}: it is a directory (EISDIR)`);
  if (stats.isSymbolicLink()) throw new FileError("ELOOP", `${what}: it is a symbolic link (ELOOP)`);
  throw new FileError("EINVAL", `${what}: it is neither a regular file nor a block device (EINVAL)`);
}

/** The `statfs` type of the file system that `path` is on; of a block device's node it would say nothing: 0. */
export async function fileSystemOf(path: string, kind: FileKind): Promise<number> {
  return kind === "regular" ? (await promisify(statfs)(path)).type : 0;
}

/** Whether a write to the file is over once it is in the page cache, and its locks are this kernel's own. */
export function isLocal(kind: FileKind, fileSystem: number): boolean {
  return kind === "block-device" || LOCAL_FILE_SYSTEMS.includes(fileSystem);
}

/** The capacity of the block device that is open as `fd`, whose numbers are `rdev`. */
export async function capacityOf(fd: number, rdev: number, calls: NativeCalls | undefined): Promise<number> {
  const sectors = await deviceAttribute(rdev, "size");
  if (sectors !== undefined) return sectors * SYSFS_SECTOR_BYTES;
  const end = calls ? await calls.seekEnd(fd) : -1;
  if (end < 0) throw errnoError(`the size of block device ${deviceName(rdev)} is in neither /sys nor lseek`, -end);
  return end;
}

/** Whether the block device has a command for zeroes; without one, the kernel would write them out. */
export async function zeroesWithoutWriting(rdev: number): Promise<boolean> {
  const attribute = "queue/write_zeroes_max_bytes";
  // A partition has no queue of its own.
  const bytesMax = (await deviceAttribute(rdev, attribute)) ?? (await deviceAttribute(rdev, `../${attribute}`));
  return (bytesMax ?? 0) > 0;
}

async function deviceAttribute(rdev: number, attribute: string): Promise<number | undefined> {
  try {
    return Number(await promisify(readFile)(`/sys/dev/block/${deviceName(rdev)}/${attribute}`, "latin1"));
  } catch {
    return undefined;
  }
}

/** "MAJOR:MINOR", from the encoding of linux/kdev_t.h. */
export function deviceName(rdev: number): string {
  return `${(rdev >>> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >>> 12) & 0xfff00)}`;
}
