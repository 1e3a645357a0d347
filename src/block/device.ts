/**
 * The narrow waist: everything that can be read and written in blocks is a `BlockDevice`, and everything above talks to
 * this interface alone. The contract is executable: `src/block/conformance.ts` runs it against any implementation.
 *
 * Rules for all methods
 * - Offsets and lengths are bytes. A range outside [0, sizeBytes] is `BlockError("out-of-range")`; nothing is changed.
 * - A buffer belongs to the device from the call until its promise settles, and is never touched afterwards.
 * - Operations on overlapping ranges that are under way together may take effect in any order, whole or in pieces.
 * - Failures are `BlockError`s. Anything else that is thrown is a bug.
 */
import type { Extent } from "./extents.ts";

export interface BlockSizes {
  /** Requests should be multiples of this: a power of two in 1..65,536. A device accepts smaller ones all the same. */
  readonly minimum: number;
  /** A power of two ≥ max(minimum, 512). */
  readonly preferred: number;
}

export interface BlockCapabilities {
  /** Writes, zeroes and discards are refused with `BlockError("read-only")`. */
  readonly readOnly: boolean;
  /** `discard` may give space back. */
  readonly discard: boolean;
  /** `writeZeroes({ fastOnly })` can succeed. */
  readonly fastZero: boolean;
  /** `extents` can tell more than "all data". */
  readonly extents: boolean;
  /** Seeks cost time. */
  readonly rotational: boolean;
  readonly blockSizes: BlockSizes;
}

export interface WriteOptions {
  /** Durable before the promise resolves. */
  readonly fua?: boolean;
}

export interface ZeroOptions extends WriteOptions {
  /** The range must stay (or become) provisioned: later writes to it cannot run out of space. */
  readonly noHole?: boolean;
  /** Fail with `BlockError("not-supported")`, changing nothing, unless it is faster than writing zeroes. */
  readonly fastOnly?: boolean;
}

export interface BlockDevice extends AsyncDisposable {
  /** Fixed while the device is open. */
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;

  /** Fills all of `into` synchronously, from memory or the page cache: `into.length`; −1: use `read` (it would block, or the range is bad). */
  readNow(offset: number, into: Uint8Array): number;
  /** Fills all of `into`. */
  read(offset: number, into: Uint8Array): Promise<void>;

  /** Stores all of `from` synchronously, as `write` without options: `from.length`; −1: nothing was done, use `write`. Throws nothing else than `BlockError`. */
  writeNow(offset: number, from: Uint8Array): number;
  /** Once resolved, every later read sees it, and the next `flush` makes it durable. */
  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void>;
  /** Afterwards the range reads as zeroes. */
  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void>;
  /** A hint: afterwards the range may read as anything it held before, or zeroes. */
  discard(offset: number, length: number, options?: WriteOptions): Promise<void>;
  /** A hint: the range will be read soon. */
  cache(offset: number, length: number): Promise<void>;
  /** Makes durable every write, zero and discard that had resolved before the call, whoever issued it. A failure is final: later flushes fail too. */
  flush(): Promise<void>;

  /**
   * What [offset, offset + length) is made of, from `offset` on without gaps: at least one extent, at most `countMax`,
   * together at most `length` bytes (fewer is allowed, zero is not). Saying "data" is always right. `length` and
   * `countMax` are at least 1; otherwise `BlockError("invalid")`.
   */
  extents(offset: number, length: number, countMax: number): Promise<Extent[]>;

  /** Waits for what is under way; makes nothing durable by itself. Idempotent. Later calls fail with `BlockError("shutting-down")`. */
  close(): Promise<void>;
}
