/**
 * Test disks in a known state: allocated and initialized, so that no sample pays for a first touch; in the page cache,
 * or verifiably not; clean, so that no sample pays for another's dirty pages.
 */
import { type FileHandle, open, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Pattern } from "./pattern.ts";
import { runTool } from "./process.ts";

const CHUNK_BYTES = 1 << 20;
const TOOL_TIMEOUT_MS = 30_000;

export interface Range {
  readonly offset: number;
  readonly length: number;
}

/** A new file, every byte written and on the disk. Its pages stay in the page cache. */
export async function createPatternFile(path: string, sizeBytes: number, pattern: Pattern): Promise<void> {
  await using file = await open(path, "wx");
  await writePattern(file, { offset: 0, length: sizeBytes }, pattern);
  await file.sync();
}

/** A new file of holes, but for the ranges. On the disk. */
export async function createSparseFile(
  path: string,
  sizeBytes: number,
  ranges: readonly Range[],
  pattern: Pattern,
): Promise<void> {
  await using file = await open(path, "wx");
  await file.truncate(sizeBytes);
  for (const range of ranges) await writePattern(file, range, pattern);
  await file.sync();
}

/** Reads the range, so that it is in the page cache. */
export async function warm(path: string, { offset, length }: Range): Promise<void> {
  await using file = await open(path, "r");
  const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(CHUNK_BYTES, length - done), offset + done);
    if (bytesRead === 0) throw new Error(`${path} ends at ${offset + done}`);
    done += bytesRead;
  }
}

/** Reads the files that a process has mapped, so that none of its own code has to come from the disk. */
export async function warmProgram(pid: number): Promise<void> {
  for (const path of await mappedFiles(pid)) await warm(path, { offset: 0, length: (await stat(path)).size });
}

/** Programs and libraries, by absolute paths, but for those that were replaced meanwhile. */
export async function mappedFiles(pid: number): Promise<ReadonlySet<string>> {
  const maps = await readFile(`/proc/${pid}/maps`, "utf8");
  return new Set(Array.from(maps.matchAll(/ r-xp .*? (\/.*)$/gm), ([, path = ""]) => path).filter(isThere));
}

/** What has been replaced since it was mapped has no name any more. */
function isThere(path: string): boolean {
  return !path.endsWith(" (deleted)");
}

/**
 * Makes sure that so many bytes of the page cache can be filled at memory speed. A virtual machine that gives free memory
 * back to its host gets it again a page fault at a time, 3 s a GiB: more than all that is measured. So pages are taken
 * just as a copy takes them, for a file that is never written out, and are free again, and warm, when this resolves.
 * Use them within a second.
 */
export async function touchMemory(folder: string, bytes: number): Promise<void> {
  const path = join(folder, "scratch");
  const chunk = Buffer.alloc(CHUNK_BYTES, 1);
  {
    await using file = await open(path, "wx");
    for (let done = 0; done < bytes; done += CHUNK_BYTES) await file.write(chunk, 0, chunk.length, done);
  }
  await rm(path);
}

/** Writes out all that is dirty in the folder's file system: nobody pays for what was written or deleted before. */
export async function settle(folder: string): Promise<void> {
  await runTool({ argv: ["sync", "--file-system", folder], timeoutMs: TOOL_TIMEOUT_MS });
}

/** Writes the file's dirty pages out, so that whoever comes next begins without them. */
export async function makeClean(path: string): Promise<void> {
  await using file = await open(path, "r+");
  await file.sync();
}

/**
 * Takes the file out of the page cache, whoever has it open (dd's way to say POSIX_FADV_DONTNEED), then reads `keep`
 * back in. Rejects when more than that and its read-ahead is resident: a "cold" test on a warm file proves nothing.
 */
export async function makeCold(path: string, keep: Range): Promise<void> {
  await runTool({
    argv: ["dd", `of=${path}`, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"],
    timeoutMs: TOOL_TIMEOUT_MS,
  });
  await warm(path, keep);
  const resident = await residentBytes(path);
  const most = keep.length + READ_AHEAD_MAX_BYTES;
  if (resident > most) throw new Error(`${path}: ${resident} bytes are in the page cache, at most ${most} should be`);
  if (resident < keep.length) throw new Error(`${path}: only ${resident} bytes are in the page cache`);
}

/** The kernel may read this much further than it was asked to; leave as much between what is warm and what is cold. */
export const READ_AHEAD_MAX_BYTES = 32 << 20;

export async function residentBytes(path: string): Promise<number> {
  const argv = ["fincore", "--bytes", "--noheadings", "--output", "RES", path] as const;
  const { stdout } = await runTool({ argv: [...argv], timeoutMs: TOOL_TIMEOUT_MS });
  return Number(stdout.trim());
}

export interface LoopDevice extends AsyncDisposable {
  readonly path: string;
}

/**
 * A block device over a new file, for copies to be written to: nothing truncates it, unlike a file, and all of its
 * pages are allocated and initialized with `pattern`, so that a copy that did not happen is found out. Needs root.
 */
export async function createLoopDevice(file: string, sizeBytes: number, pattern: Pattern): Promise<LoopDevice> {
  await createPatternFile(file, sizeBytes, pattern);
  const { stdout } = await runTool({ argv: ["losetup", "--find", "--show", file], timeoutMs: TOOL_TIMEOUT_MS });
  const path = stdout.trim();
  const detach = async (): Promise<void> => {
    await runTool({ argv: ["losetup", "--detach", path], timeoutMs: TOOL_TIMEOUT_MS });
  };
  return { path, [Symbol.asyncDispose]: detach };
}

/** Overwrites the range with `pattern`. Not synced. */
async function writePattern(file: FileHandle, { offset, length }: Range, pattern: Pattern): Promise<void> {
  for (let done = 0; done < length; done += CHUNK_BYTES) {
    const bytes = pattern.expected(offset + done, Math.min(CHUNK_BYTES, length - done));
    await file.write(bytes, 0, bytes.length, offset + done);
  }
}
