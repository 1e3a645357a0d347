/**
 * The real `Files`: names in file systems, and the careful opening of regular files and block devices.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { type File, FileError, type Files, type OpenOptions } from "../env/files.ts";
import { type OpenedFile, RealFile } from "./file.ts";
import { fileError } from "./file-error.ts";
import { capacityOf, fileSystemOf, kindOf, zeroesWithoutWriting } from "./file-kind.ts";
import { DirtyBudget } from "./file-writeback.ts";
import { loadNative, type NativeResult } from "./native.ts";
import { NativeCalls } from "./native-calls.ts";
import { NowaitReader, PageWriter } from "./native-now.ts";

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = fs.constants;

/** Disks of virtual machines are nobody else's business. */
const CREATED_MODE = 0o600;

/** What page caches have at least, whatever a file system says that it prefers. */
const BLOCK_BYTES_MIN = 4096;

// Numbers, not FileHandles: those would close a file when they are collected.
const openFd = promisify(fs.open);
const closeFd = promisify(fs.close);
const fstat = promisify(fs.fstat);
const fsync = promisify(fs.fsync);
const stat = promisify(fs.stat);
const lstat = promisify(fs.lstat);

export class RealFiles implements Files {
  readonly #calls: NativeCalls | undefined;
  readonly #reader: NowaitReader | undefined;
  readonly #writer: PageWriter | undefined;
  readonly #budget = new DirtyBudget();

  constructor(native: NativeResult = loadNative()) {
    if (native.state === "off") return;
    this.#calls = new NativeCalls(native.native);
    this.#reader = NowaitReader.create(native.native);
    this.#writer = PageWriter.create(native.native);
  }

  open(options: OpenOptions): Promise<File> {
    const what = `cannot ${options.create ? "create" : "open"} ${options.path}`;
    return naming(what, this.#open(options, what));
  }

  async #open(options: OpenOptions, what: string): Promise<File> {
    const { path, writable } = options;
    if (path.includes("\0")) throw new FileError("EINVAL", `${what}: its name has a NUL character in it (EINVAL)`);
    const fd = await openChecked(options, what);
    try {
      const stats = await fstat(fd);
      const kind = kindOf(stats, what);
      // It was there against waiting for the other end of a FIFO only.
      this.#calls?.clearStatusFlag(fd, O_NONBLOCK);
      const opened: OpenedFile = {
        fd,
        path,
        kind,
        writable,
        sizeBytes: kind === "regular" ? stats.size : await capacityOf(fd, stats.rdev, this.#calls),
        blockBytes: Math.max(stats.blksize, BLOCK_BYTES_MIN),
        fileSystem: await fileSystemOf(path, kind),
        zeroesWithoutWriting: kind === "regular" || (await zeroesWithoutWriting(stats.rdev)),
      };
      return new RealFile(opened, {
        calls: this.#calls,
        reader: this.#reader,
        writer: this.#writer,
        budget: this.#budget,
      });
    } catch (error) {
      await closeFd(fd);
      throw error;
    }
  }

  async exists(path: string): Promise<boolean> {
    try {
      await stat(path);
      return true;
    } catch (error) {
      const failure = fileError(`cannot look for ${path}`, error);
      if (failure instanceof FileError && (failure.code === "ENOENT" || failure.code === "ENOTDIR")) return false;
      throw failure;
    }
  }

  rename(from: string, to: string): Promise<void> {
    return naming(`cannot rename ${from} to ${to}`, promisify(fs.rename)(from, to));
  }

  unlink(path: string): Promise<void> {
    return naming(`cannot remove ${path}`, promisify(fs.unlink)(path));
  }

  syncDirectory(path: string): Promise<void> {
    return naming(`cannot make the directory ${path} durable`, syncDirectory(path));
  }
}

/**
 * Looks before it opens, because opening is enough to wait for ever (a FIFO) or to set something off (a device), and
 * again afterwards, because the name may have come to mean something else.
 */
async function openChecked({ path, writable, create, noFollow }: OpenOptions, what: string): Promise<number> {
  const access = writable ? O_RDWR : O_RDONLY;
  if (create) return openFd(path, access | O_CREAT | O_EXCL | O_NOFOLLOW, CREATED_MODE);
  const kind = kindOf(await (noFollow ? lstat(path) : stat(path)), what);
  // A device may answer O_NONBLOCK with less than it is (no medium, size 0), and its name is not for others to replace.
  const nonBlocking = kind === "regular" ? O_NONBLOCK : 0;
  return openFd(path, access | nonBlocking | (noFollow ? O_NOFOLLOW : 0));
}

async function syncDirectory(path: string): Promise<void> {
  const fd = await openFd(path, O_RDONLY | O_DIRECTORY);
  try {
    await fsync(fd);
  } catch (error) {
    // Some file systems have no such thing, and nothing to make durable by it.
    if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error;
  } finally {
    await closeFd(fd);
  }
}

async function naming<T>(what: string, result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    throw fileError(what, error);
  }
}
