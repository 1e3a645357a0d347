/**
 * The image lock: up to three locks at once, each against somebody else.
 *
 * - Byte locks, against QEMU (`lock-bytes.ts`). QEMU then refuses to write an image of ours, and still lets others read a
 *   raw one; to read a qcow2 or QED image that somebody writes, it asks for `-U`, as it does among its own.
 * - flock, for those who do without koffi, ourselves included.
 * - A claim on a block device (O_EXCL) that we write: the kernel keeps it from being mounted, or made part of a volume
 *   group. The other locks belong to the device's *node*, and a container may have a node of its own.
 *
 * All of them end when the file is closed, and with the process.
 */
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import { promisify } from "node:util";
import { FileError, type LockMode } from "../env/files.ts";
import { realClock } from "./clock.ts";
import { EAGAIN, errnoError, fileError, isUnsupported } from "./file-error.ts";
import { type FileKind, isLocal, NFS } from "./file-kind.ts";
import { ByteLocks } from "./lock-bytes.ts";
import { lockHolders } from "./lock-holders.ts";
import type { NativeCalls } from "./native-calls.ts";

// sys/file.h
const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;
const LOCK_UN = 8;

/** udev holds a shared flock on a block device while it looks at it, which it does whenever a writer has closed it. */
const DEVICE_ATTEMPTS = 20;
const DEVICE_RETRY_MS = 50;

export type Outcome = "locked" | "conflict" | "unsupported";

export interface LockedFile {
  readonly fd: number;
  readonly path: string;
  readonly kind: FileKind;
  /** The `statfs` type. */
  readonly fileSystem: number;
}

export class ImageLock {
  readonly #file: LockedFile;
  readonly #calls: NativeCalls | undefined;
  /** The locks are this kernel's own: asking for them does not take long. */
  readonly #local: boolean;
  readonly #bytes: ByteLocks | undefined;
  #mode: LockMode | undefined;
  #claimFd: number | undefined;

  constructor(file: LockedFile, calls: NativeCalls | undefined) {
    this.#file = file;
    this.#calls = calls;
    this.#local = isLocal(file.kind, file.fileSystem);
    this.#bytes = calls && new ByteLocks(file.fd, file.path, { calls, local: this.#local });
  }

  /**
   * What to punch and zero through. On a claimed block device the kernel lets only the claim's owner drop dirty pages, and
   * that is the open file of the claim.
   */
  get owningFd(): number {
    return this.#claimFd ?? this.#file.fd;
  }

  /**
   * Repeating what is held does nothing; "alone" may become "exclusive", any other mode needs another open file. `FileError` "EAGAIN": somebody else is in
   * the way; "ENOTSUP": no lock of any kind can be had here.
   */
  async acquire(mode: LockMode): Promise<void> {
    if (this.#mode === mode) return;
    if (this.#mode === "alone" && mode === "exclusive") {
      await this.#bytes?.shareReads();
      this.#mode = mode;
      return;
    }
    if (this.#mode) throw new FileError("EINVAL", `${this.#file.path} is already locked, ${this.#mode} (EINVAL)`);
    this.#mode = mode;
    try {
      await this.#acquire(mode);
    } catch (error) {
      await this.release();
      throw error;
    }
  }

  /** Gives everything back. Closing the file does as much, but for the claim. */
  async release(): Promise<void> {
    await this.#bytes?.unlock();
    await this.#flock(LOCK_UN);
    await this.releaseClaim();
    this.#mode = undefined;
  }

  async releaseClaim(): Promise<void> {
    if (this.#claimFd !== undefined) await promisify(fs.close)(this.#claimFd);
    this.#claimFd = undefined;
  }

  async #acquire(mode: LockMode): Promise<void> {
    const { path, kind, fileSystem } = this.#file;
    if (mode !== "shared" && kind === "block-device") await this.#claim();
    const bytes = (await this.#bytes?.lock(mode)) ?? "unsupported";
    if (bytes === "conflict") throw await this.#conflict(mode);
    // NFS makes of flock a byte lock over the whole file, which would collide with those.
    if (bytes === "locked" && fileSystem === NFS) return;
    const whole = await this.#flockPatiently(mode === "shared" ? LOCK_SH : LOCK_EX);
    if (whole === "conflict") throw await this.#conflict(mode);
    if (whole === "unsupported" && bytes === "unsupported") {
      throw new FileError("ENOTSUP", `cannot lock ${path}: neither byte locks nor flock can be had here (ENOTSUP)`);
    }
  }

  async #conflict(mode: LockMode): Promise<FileError> {
    const { path } = this.#file;
    // First of all, or we would find ourselves.
    await this.release();
    const holders = await lockHolders(path);
    const who = holders.length > 0 ? holders.join(", ") : "another program (QEMU, or a second blockferry?)";
    const does = mode === "shared" ? "writes it" : "uses it";
    return new FileError("EAGAIN", `cannot lock ${path}: ${who} ${does} and has it locked (EAGAIN)`);
  }

  async #claim(): Promise<void> {
    const { path, fd } = this.#file;
    try {
      this.#claimFd = await promisify(fs.open)(path, fs.constants.O_RDWR | fs.constants.O_EXCL);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EBUSY") throw fileError(`cannot claim ${path}`, error);
      const why = "it is mounted, or belongs to a volume group, a RAID or another program";
      throw new FileError("EAGAIN", `cannot lock ${path}: ${why} (EAGAIN)`, { cause: error });
    }
    const [claimed, opened] = [fs.fstatSync(this.#claimFd), fs.fstatSync(fd)];
    if (claimed.rdev === opened.rdev && claimed.isBlockDevice()) return;
    throw new FileError("EAGAIN", `cannot lock ${path}: it was replaced while it was being opened (EAGAIN)`);
  }

  async #flockPatiently(operation: number): Promise<Outcome> {
    const attempts = this.#file.kind === "block-device" ? DEVICE_ATTEMPTS : 1;
    for (let attempt = 1; ; attempt++) {
      const outcome = await this.#flock(operation | LOCK_NB);
      if (outcome !== "conflict" || attempt === attempts) return outcome;
      await new Promise<void>((resolve) => realClock.setTimer(DEVICE_RETRY_MS, resolve));
    }
  }

  #flock(operation: number): Promise<Outcome> {
    return flockFile({ ...this.#file, local: this.#local }, operation, this.#calls);
  }
}

/** flock, by the call, or by the program when there are no native calls. */
export async function flockFile(
  { fd, path, local }: Pick<LockedFile, "fd" | "path"> & { readonly local: boolean },
  operation: number,
  calls: NativeCalls | undefined,
): Promise<Outcome> {
  if (!calls) return flockProgram(fd, operation);
  const result = local ? calls.flockNow(fd, operation) : await calls.flock(fd, operation);
  if (result >= 0) return "locked";
  if (result === -EAGAIN) return "conflict";
  if (isUnsupported(-result)) return "unsupported";
  throw errnoError(`cannot lock ${path}`, -result);
}

/**
 * Has util-linux's or busybox's `flock` lock our open file, which it inherits as its descriptor 3. The lock belongs to
 * the open file, so that it stays when the program has ended.
 */
function flockProgram(fd: number, operation: number): Promise<Outcome> {
  const how = operation & LOCK_UN ? "-u" : operation & LOCK_EX ? "-x" : "-s";
  return new Promise((resolve) => {
    const child = spawn("flock", ["-n", how, "3"], { stdio: ["ignore", "ignore", "ignore", fd] });
    child.on("error", () => resolve("unsupported"));
    // 1 is the conflict; util-linux has 64 and above for everything else.
    child.on("exit", (status) => resolve(status === 0 ? "locked" : status === 1 ? "conflict" : "unsupported"));
  });
}
