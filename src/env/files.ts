/**
 * Files and block devices as the core needs them. Offsets and lengths are bytes. Failures are `FileError`s.
 * Implementations: `src/os/files.ts` (the real one) and the simulator's disk.
 */

/** Why a file operation failed. `code` is the POSIX name ("ENOSPC", "EIO", "ENOENT", …). */
export class FileError extends Error {
  override readonly name = "FileError";
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export interface OpenOptions {
  readonly path: string;
  readonly writable: boolean;
  /** Create the file; it must not exist (O_EXCL). Without it the file must exist. */
  readonly create?: boolean;
  /** Refuse a symbolic link as the last component (ELOOP). Creating never follows one. */
  readonly noFollow?: boolean;
}

/**
 * `alone`: nobody else may even read, for what is there is no disk yet. `exclusive`: we write, nobody else may. `shared`:
 * we read, nobody may write.
 */
export type LockMode = "alone" | "exclusive" | "shared";

/** A run of bytes that the file system holds as data or as a hole. `end` is exclusive. */
export interface FileExtent {
  readonly kind: "data" | "hole";
  readonly end: number;
}

export interface Files {
  /** Opens a regular file or a block device; anything else is refused with a `FileError` ("EISDIR", "EINVAL"). */
  open(options: OpenOptions): Promise<File>;
  exists(path: string): Promise<boolean>;
  /** Atomically replaces `to`. Durable only after `syncDirectory`. */
  rename(from: string, to: string): Promise<void>;
  unlink(path: string): Promise<void>;
  syncDirectory(path: string): Promise<void>;
}

/** What this file on this host can do. A `false` is found out by trying, so a value may turn false later, never true. */
export interface FileFeatures {
  /** `readNow` can succeed. */
  readonly readNow: boolean;
  /** `punchHole` can succeed: space is given back and reads as zeroes. */
  readonly punchHole: boolean;
  /** `zeroRange` can succeed without writing the zeroes out. */
  readonly zeroRange: boolean;
  /** `extentAt` tells data from holes. */
  readonly extents: boolean;
}

export interface File extends AsyncDisposable {
  readonly path: string;
  readonly kind: "regular" | "block-device";
  readonly writable: boolean;
  readonly features: FileFeatures;
  /** The current size; of a block device, its capacity. */
  sizeBytes(): Promise<number>;
  /** Storage that the file occupies (`st_blocks`); 0 for a block device. */
  allocatedBytes(): Promise<number>;

  /** Fills all of `into` from the page cache, synchronously: `into.length`, or −1 when that would block or fall short. */
  readNow(offset: number, into: Uint8Array): number;
  /** Fills `into`; resolves to the bytes read, fewer only at the end of the file. */
  read(offset: number, into: Uint8Array): Promise<number>;
  /** Writes all of `from` to the page cache, synchronously: `from.length`, or −1 when it might block. Throws `FileError`. */
  writeNow(offset: number, from: Uint8Array): number;
  /**
   * Writes all of `from`, also past the end of a regular file. `once`: nobody is expected to read it soon, so it need not
   * stay in the page cache; a hint.
   */
  write(offset: number, from: Uint8Array, options?: { readonly once?: boolean }): Promise<void>;

  truncate(sizeBytes: number): Promise<void>;
  /** Gives the range back to the file system; it then reads as zeroes. False: not possible here, nothing was changed. */
  punchHole(offset: number, length: number): Promise<boolean>;
  /** Zeroes the range and keeps its space allocated, without writing it out. False: not possible here, nothing was changed. */
  zeroRange(offset: number, length: number): Promise<boolean>;
  /** Tells what the byte at `offset` (below the size) is part of. Without support everything is data. */
  extentAt(offset: number): Promise<FileExtent>;

  /** Makes durable what was written before the call. After one failure every later call fails the same way. */
  dataSync(): Promise<void>;
  /** Asks the kernel to begin reading the range. Returns at once; a hint. */
  willNeed(offset: number, length: number): void;
  /**
   * Takes what counts as clean of the range's whole pages out of the page cache: what is read next is what the disk has, or
   * what will be written to it. False: not possible here.
   */
  dropClean?(offset: number, length: number): Promise<boolean>;
  /** Asks the kernel to begin writing dirty pages of the range back. Returns at once; a hint. */
  startWriteback(offset: number, length: number): void;

  /**
   * Takes the image lock (flock, and the byte locks QEMU looks at); `alone` may become `exclusive` later. `FileError`
   * "EAGAIN" when somebody else is in the way.
   */
  lock(mode: LockMode): Promise<void>;
  /** Waits for what is under way, releases locks, closes. Idempotent. */
  close(): Promise<void>;
}
