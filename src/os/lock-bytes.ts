/**
 * Byte locks as QEMU takes them on an image (block/file-posix.c: `raw_apply_lock_bytes`, `raw_check_lock_bytes`). They are
 * of the kind that belongs to the open file (F_OFD_SETLK), not to the process.
 *
 * Byte 100 + p says "I use permission p", byte 200 + p says "I do not share permission p". Both are *read* locks, which
 * any number of programs can hold at once. Each locks all its bytes first, and then looks whether the opposite ones are
 * locked: of two that begin together, at least one sees the other.
 *
 * struct flock, for 64 bits: type i16 @0 · whence i16 @2 · start i64 @8 · length i64 @16 · pid i32 @24 (must be 0)
 */
import type { LockMode } from "../env/files.ts";
import { EAGAIN, EINVAL, errnoError, isUnsupported } from "./file-error.ts";
import type { NativeCalls } from "./native-calls.ts";

const PERMISSION_BYTES = 100;
const UNSHARED_BYTES = 200;
/** All of them lie within this many bytes from the first. */
const LOCK_BYTES = 200;

// QEMU's permissions, by the numbers of their bits.
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;

/** What we use, and do not share. QEMU's own format drivers say the same, and its jobs the same as `alone`. */
const USED: Readonly<Record<LockMode, readonly number[]>> = {
  alone: [CONSISTENT_READ, WRITE, RESIZE],
  exclusive: [CONSISTENT_READ, WRITE, RESIZE],
  shared: [CONSISTENT_READ],
};
const UNSHARED: Readonly<Record<LockMode, readonly number[]>> = {
  alone: [CONSISTENT_READ, WRITE, RESIZE],
  exclusive: [WRITE, RESIZE],
  shared: [WRITE, RESIZE],
};

const STRUCT_FLOCK_BYTES = 32;
const SEEK_SET = 0;
// linux/fcntl.h
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;

export class ByteLocks {
  readonly #fd: number;
  readonly #path: string;
  readonly #calls: NativeCalls;
  readonly #local: boolean;

  /** `local`: the locks are this kernel's own, and asking for them never takes long. */
  constructor(fd: number, path: string, { calls, local }: { readonly calls: NativeCalls; readonly local: boolean }) {
    this.#fd = fd;
    this.#path = path;
    this.#calls = calls;
    this.#local = local;
  }

  /** "conflict": the locks are held all the same, and to be given back. "unsupported": none are held. */
  async lock(mode: LockMode): Promise<"locked" | "conflict" | "unsupported"> {
    const used = USED[mode].map((permission) => PERMISSION_BYTES + permission);
    const unshared = UNSHARED[mode].map((permission) => UNSHARED_BYTES + permission);
    for (const byte of [...used, ...unshared]) {
      const { result } = await this.#fcntl(F_OFD_SETLK, F_RDLCK, byte);
      if (result === -EAGAIN) return "conflict"; // Somebody has a write lock, which is not how it is done, but clear.
      if (result === -EINVAL || isUnsupported(-result)) return "unsupported";
      if (result < 0) throw errnoError(`cannot lock byte ${byte} of ${this.#path}`, -result);
    }
    const refused = USED[mode].map((permission) => UNSHARED_BYTES + permission);
    const usedByOthers = UNSHARED[mode].map((permission) => PERMISSION_BYTES + permission);
    for (const byte of [...refused, ...usedByOthers]) {
      // Whether a write lock could be had tells whether anybody else holds a read lock.
      const { result, type } = await this.#fcntl(F_OFD_GETLK, F_WRLCK, byte);
      if (result < 0) throw errnoError(`cannot look at the lock of byte ${byte} of ${this.#path}`, -result);
      if (type !== F_UNLCK) return "conflict";
    }
    return "locked";
  }

  /** From "alone" to "exclusive": others may read. */
  async shareReads(): Promise<void> {
    await this.#fcntl(F_OFD_SETLK, F_UNLCK, UNSHARED_BYTES + CONSISTENT_READ);
  }

  async unlock(): Promise<void> {
    await this.#fcntl(F_OFD_SETLK, F_UNLCK, PERMISSION_BYTES, LOCK_BYTES);
  }

  async #fcntl(
    command: number,
    lockType: number,
    start: number,
    length = 1,
  ): Promise<{ result: number; type: number }> {
    const flock = new DataView(new ArrayBuffer(STRUCT_FLOCK_BYTES));
    flock.setInt16(0, lockType, true);
    flock.setInt16(2, SEEK_SET, true);
    flock.setBigInt64(8, BigInt(start), true);
    flock.setBigInt64(16, BigInt(length), true);
    const address = this.#calls.native.addressOf(flock.buffer);
    const result = this.#local
      ? this.#calls.fcntlNow(this.#fd, command, address)
      : await this.#calls.fcntl(this.#fd, command, address);
    return { result, type: flock.getInt16(0, true) };
  }
}
