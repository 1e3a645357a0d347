/**
 * An image with tables as a block device, whatever its format: what a format can do comes as `TableOperations`, the order
 * of its life from `ImageLife`.
 *
 * - Opening reads the header and nothing else. Tables are read when first needed, and nothing is written before something
 *   is to be written, so that opening never touches a file that somebody still owns.
 * - A writable image that was not closed cleanly serves reads and writes in place at once; allocating writes wait for the
 *   check of the tables (`checkProgress`).
 * - What a backing device holds is never changed. It stays the caller's.
 */
import type { Activatable } from "../../block/activatable.ts";
import type { BlockCapabilities, WriteOptions, ZeroOptions } from "../../block/device.ts";
import { BlockError, checkRange } from "../../block/error.ts";
import type { Extent } from "../../block/extents.ts";
import type { BackingReference, FormatDetails, Image, ImageRun } from "../image.ts";
import type { CheckProgress } from "./check-report.ts";
import { ImageLife, type ImageLifeParts, type TableSession } from "./image-life.ts";

export interface Range {
  readonly offset: number;
  readonly length: number;
}

export interface PutOptions {
  /** Nobody is expected to read it soon. */
  readonly once?: boolean;
}

/** What a format does with ranges that lie within the disk. Rejects with `BlockError`. */
export interface TableOperations<S> {
  /** Fills all of `into` from what is in memory: its length, or −1. */
  readNow(session: S, offset: number, into: Uint8Array): number;
  read(session: S, offset: number, into: Uint8Array): Promise<void>;
  /** When it is one write in place: the length, or −1. */
  writeNow(session: S, offset: number, from: Uint8Array): number;
  write(session: S, offset: number, from: Uint8Array, options?: PutOptions): Promise<void>;
  writeZeroes(session: S, range: Range, options: ZeroOptions): Promise<void>;
  discard(session: S, range: Range): Promise<void>;
  prefetch(session: S, offset: number, length: number): Promise<void>;
  extents(session: S, asked: { offset: number; end: number; countMax: number }): Promise<Extent[]>;
  runs(session: S, asked: { offset: number; end: number; standsAlone: boolean }): Promise<ImageRun[]>;
}

/** What the header says, and the file under it. */
export interface TableImageTraits {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly dirty: boolean;
  readonly readOnly: boolean;
  readonly storage: Image["storage"];
  readonly discards: boolean;
  readonly fastZero: boolean;
  readonly backingReference: BackingReference | undefined;
  readonly formatDetails: FormatDetails | undefined;
}

export interface TableImageParts<S> extends ImageLifeParts<S> {
  readonly traits: TableImageTraits;
  readonly operations: TableOperations<S>;
}

export class TableImage<S extends TableSession> implements Image, Activatable {
  readonly storage: Image["storage"];
  readonly dirty: boolean;
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly backingReference: BackingReference | undefined;
  readonly formatDetails: FormatDetails | undefined;
  protected readonly operations: TableOperations<S>;
  protected readonly life: ImageLife<S>;

  constructor({ traits, operations, ...life }: TableImageParts<S>) {
    const { readOnly, discards, fastZero } = traits;
    this.operations = operations;
    this.life = new ImageLife(life);
    this.storage = traits.storage;
    this.dirty = traits.dirty;
    this.sizeBytes = traits.sizeBytes;
    this.clusterBytes = traits.clusterBytes;
    this.backingReference = traits.backingReference;
    this.formatDetails = traits.formatDetails;
    this.capabilities = {
      readOnly,
      discard: !readOnly && discards,
      fastZero: !readOnly && fastZero,
      extents: true,
      rotational: false,
      blockSizes: { minimum: 1, preferred: Math.min(Math.max(this.clusterBytes, 4096), 65_536) },
    };
  }

  /** How the check of an image that was not closed cleanly is getting on. */
  get checkProgress(): CheckProgress {
    const { sizeBytes, clusterBytes } = this;
    const none = { state: "none", clustersChecked: 0, waiting: 0, longestWaitMs: 0, entriesCleared: 0 } as const;
    return this.life.session?.check.progress ?? { ...none, clustersTotal: Math.ceil(sizeBytes / clusterBytes) };
  }

  /** Loads the tables if need be, and resolves when no check runs, however it ended. */
  async checkEnded(): Promise<void> {
    await this.life.run((session) => session.check.ended());
  }

  /** Memory that cached tables take. */
  get cachedTableBytes(): number {
    return this.life.session?.tables.cachedBytes ?? 0;
  }

  open(): Promise<void> {
    return this.life.open();
  }

  invalidate(): Promise<void> {
    return this.life.invalidate();
  }

  deactivate(): Promise<void> {
    return this.life.deactivate(!this.capabilities.readOnly);
  }

  readNow(offset: number, into: Uint8Array): number {
    const { session } = this.life;
    if (session === undefined) return -1;
    if (!(offset >= 0 && offset + into.length <= this.sizeBytes)) return -1;
    try {
      return this.operations.readNow(session, offset, into);
    } catch (error) {
      if (error instanceof BlockError) return -1;
      throw error;
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.life.run(async (session) => {
      checkRange(offset, into.length, this.sizeBytes);
      await this.operations.read(session, offset, into);
    });
  }

  writeNow(offset: number, from: Uint8Array): number {
    const { session } = this.life;
    if (session === undefined || this.capabilities.readOnly) return -1;
    if (!(offset >= 0 && offset + from.length <= this.sizeBytes)) return -1;
    return this.operations.writeNow(session, offset, from);
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#change({ offset, length: from.length }, options, (session) =>
      this.operations.write(session, offset, from),
    );
  }

  writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    const range = { offset, length };
    return this.#change(range, options, (session) => this.operations.writeZeroes(session, range, options));
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    const range = { offset, length };
    return this.#change(range, options, (session) => this.operations.discard(session, range));
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.life.run(async (session) => {
      checkRange(offset, length, this.sizeBytes);
      await this.operations.prefetch(session, offset, length);
    });
  }

  async flush(): Promise<void> {
    await this.life.withFile(async (file) => {
      if (!this.capabilities.readOnly) await (this.life.session ?? file).sync();
    });
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return await this.life.run(async (session) => {
      this.#checkAsked(offset, length);
      if (!(countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
      return await this.operations.extents(session, { offset, end: offset + length, countMax });
    });
  }

  async runs(offset: number, length: number): Promise<ImageRun[]> {
    return await this.life.run(async (session) => {
      this.#checkAsked(offset, length);
      const standsAlone = this.backingReference === undefined;
      return await this.operations.runs(session, { offset, end: offset + length, standsAlone });
    });
  }

  async allocatedBytes(): Promise<number> {
    return await this.life.withFile((file) => file.file.allocatedBytes());
  }

  close(): Promise<void> {
    return this.life.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #checkAsked(offset: number, length: number): void {
    checkRange(offset, length, this.sizeBytes);
    if (!(length >= 1)) throw new BlockError("invalid", "no extents were asked for");
  }

  async #change(
    { offset, length }: Range,
    options: WriteOptions | undefined,
    act: (session: S) => Promise<void>,
  ): Promise<void> {
    if (!this.life.closed && this.capabilities.readOnly) {
      throw new BlockError("read-only", "the image is open read-only");
    }
    await this.life.run(async (session) => {
      checkRange(offset, length, this.sizeBytes);
      await act(session);
      if (options?.fua) await session.sync();
    });
  }
}
