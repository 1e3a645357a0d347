/**
 * Keeps files in the page cache by force. Some machines take pages out of it that were not used for a second or two, and
 * then a benchmark of copying measures a disk.
 */
import { open } from "node:fs/promises";
import { loadNative, type Native } from "../../src/os/native.ts";
import type { Range } from "./prepare.ts";

// sys/mman.h
const PROT_READ = 1;
const MAP_SHARED = 1;
const PAGE_BYTES = 4096;

/** For a sample without: what it read may have come from the disk. */
export const NOT_HELD = "the source could not be locked in memory";

/**
 * Reads the ranges of the file and locks their pages in memory until disposed. Undefined where that cannot be done:
 * without koffi, or without the right to lock so much (RLIMIT_MEMLOCK, CAP_IPC_LOCK).
 */
export async function holdPages(path: string, ranges: readonly Range[]): Promise<Disposable | undefined> {
  const loaded = loadNative();
  if (loaded.state === "off") return undefined;
  const calls = bind(loaded.native);
  if (calls === undefined) return undefined;
  await using file = await open(path, "r");
  const held: { address: number; length: number }[] = [];
  const release = (): void => {
    // Locks go with the mapping.
    for (const { address, length } of held.splice(0)) calls.munmap(address, length);
  };
  for (const range of ranges) {
    const offset = range.offset - (range.offset % PAGE_BYTES);
    const length = range.offset + range.length - offset;
    const address = calls.mmap(0, length, PROT_READ, MAP_SHARED, file.fd, offset);
    if (address > 0) held.push({ address, length });
    if (address <= 0 || calls.mlock(address, length) !== 0) {
      release();
      return undefined;
    }
  }
  return { [Symbol.dispose]: release };
}

interface Calls {
  /** An address, or −1. */
  mmap(address: number, length: number, protection: number, flags: number, fd: number, offset: number): number;
  mlock(address: number, length: number): number;
  munmap(address: number, length: number): number;
}

function bind(native: Native): Calls | undefined {
  const mmap = native.bind("mmap", "int64_t", ["uintptr_t", "int64_t", "int", "int", "int", "int64_t"]);
  const mlock = native.bind("mlock", "int", ["uintptr_t", "int64_t"]);
  const munmap = native.bind("munmap", "int", ["uintptr_t", "int64_t"]);
  return mmap && mlock && munmap ? { mmap, mlock, munmap } : undefined;
}
