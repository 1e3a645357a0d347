/** Where files are tried: a disk's file system and tmpfs, each with native calls and without. */
import { existsSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { loadNative, type Native, type NativeResult } from "../../../src/os/native.ts";

const TMPFS_MAGIC = 0x01021994;

export interface Place {
  readonly name: string;
  readonly directory: string;
  /** tmpfs has neither RWF_NOWAIT nor FALLOC_FL_ZERO_RANGE. */
  readonly inMemory: boolean;
}

const candidates: readonly Place[] = [
  { name: "a disk", directory: [tmpdir(), process.cwd()].find((path) => !isTmpfs(path)) ?? "", inMemory: false },
  { name: "tmpfs", directory: isTmpfs("/dev/shm") ? "/dev/shm" : "", inMemory: true },
];
export const PLACES = candidates.filter((place) => place.directory !== "");

/** The place whose page cache can be cold. */
export function diskDirectory(): string {
  const place = PLACES.find(({ inMemory }) => !inMemory);
  if (!place) throw new Error("neither the temporary directory nor this one is on a disk");
  return place.directory;
}

export const WITHOUT_NATIVE: NativeResult = loadNative({ disabled: true });
export const WITH_NATIVE: NativeResult = loadNative({ disabled: false });

/** Fails, rather than skips, when koffi does not load: it is installed for development. */
export function native(): Native {
  if (WITH_NATIVE.state === "off") throw new Error(WITH_NATIVE.reason);
  return WITH_NATIVE.native;
}

function isTmpfs(path: string): boolean {
  return existsSync(path) && statfsSync(path).type === TMPFS_MAGIC;
}
