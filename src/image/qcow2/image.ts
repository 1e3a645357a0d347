/**
 * A qcow2 image as a block device.
 *
 * - Opening reads the header and nothing else. Tables are read when first needed, so that opening never touches a file that
 *   somebody still owns.
 * - A writable image whose reference counts are not to be trusted (the dirty bit) serves reads and writes in place at once;
 *   allocating writes wait for the check of the tables (`checkProgress`).
 * - What a backing device holds is never changed. It stays the caller's.
 * - Whole clusters that are zeroed or discarded keep their place in the file, and give the space under it back.
 */
import type { Activatable } from "../../block/activatable.ts";
import type { BlockCapabilities, WriteOptions, ZeroOptions } from "../../block/device.ts";
import { BlockError, checkRange } from "../../block/error.ts";
import type { Extent } from "../../block/extents.ts";
import { InFlight } from "../../util/in-flight.ts";
import { blockErrorFrom } from "../errors.ts";
import type { BackingReference, FormatDetails, Image, ImageRun } from "../image.ts";
import type { CheckProgress } from "../tables/check-report.ts";
import { RetiredError } from "../tables/gate.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { formatDetails } from "./details.ts";
import { clusterBytesOf, isDirty, namesBacking } from "./header.ts";
import { extentsOf, prefetch, readBytes, readNow, runsOf } from "./reader.ts";
import { Qcow2Session, type Qcow2SessionOptions } from "./session.ts";
import { discardRange, writeBytes, writeNow, writeZeroes } from "./writer.ts";

export interface Qcow2ImageParts extends Omit<Qcow2SessionOptions, "file"> {
  readonly readOnly: boolean;
  /** Of the file, so far as they matter here. */
  readonly storage: Image["storage"];
  readonly zeroesFast: boolean;
  readonly discards: boolean;
  readonly backingReference: BackingReference | undefined;
  /** The file, locked; absent when it is to be opened later. */
  readonly file: ImageFile | undefined;
  /** Opens and locks the file, checking that it still has the same header. */
  readonly reopen: () => Promise<ImageFile>;
}

/** What lasts from `open` to `deactivate`. */
class Activation {
  readonly file: ImageFile;
  readonly inFlight = new InFlight();

  constructor(file: ImageFile) {
    this.file = file;
  }
}

export class Qcow2Image implements Image, Activatable {
  readonly storage: Image["storage"];
  readonly dirty: boolean;
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly backingReference: BackingReference | undefined;
  readonly formatDetails: FormatDetails;
  readonly #parts: Qcow2ImageParts;
  #activation: Activation | undefined;
  #opening: Promise<void> | undefined;
  #session: Qcow2Session | undefined;
  #loading: Promise<Qcow2Session> | undefined;
  #dropping: Promise<void> = Promise.resolve();
  #closed = false;
  #closing: Promise<void> | undefined;

  /** For `openQcow2`. */
  constructor(parts: Qcow2ImageParts) {
    const { opened, readOnly, zeroesFast, discards } = parts;
    this.#parts = parts;
    this.storage = parts.storage;
    this.dirty = isDirty(opened);
    this.sizeBytes = opened.sizeBytes;
    this.clusterBytes = clusterBytesOf(opened);
    this.formatDetails = formatDetails(opened);
    this.backingReference = parts.backingReference;
    this.capabilities = {
      readOnly,
      discard: !readOnly && discards,
      fastZero: !readOnly && (zeroesFast || opened.version >= 3),
      extents: true,
      rotational: false,
      blockSizes: { minimum: 1, preferred: Math.min(Math.max(this.clusterBytes, 4096), 65_536) },
    };
    if (parts.file !== undefined) this.#activation = new Activation(parts.file);
  }

  /** How the check of an image that was not closed cleanly is getting on. */
  get checkProgress(): CheckProgress {
    const { sizeBytes, clusterBytes } = this;
    const none = { state: "none", clustersChecked: 0, waiting: 0, longestWaitMs: 0, entriesCleared: 0 } as const;
    return this.#session?.check.progress ?? { ...none, clustersTotal: Math.ceil(sizeBytes / clusterBytes) };
  }

  /** Loads the tables if need be, and resolves when no check runs, however it ended. */
  async checkEnded(): Promise<void> {
    await this.#run((session) => session.check.ended());
  }

  /** Memory that cached tables take. */
  get cachedTableBytes(): number {
    return this.#session?.tables.cachedBytes ?? 0;
  }

  async open(): Promise<void> {
    if (this.#closed) throw this.#shuttingDown();
    if (this.#activation !== undefined) return;
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    await this.#opening;
  }

  async invalidate(): Promise<void> {
    const session = this.#session ?? (await this.#loading?.catch(() => undefined));
    this.#session = undefined;
    this.#loading = undefined;
    // Nobody may load the tables anew while one who has the old ones still changes them.
    if (session !== undefined) this.#dropping = this.#dropping.then(() => session.retire());
    await this.#dropping;
  }

  /** Afterwards nothing is served until `open`. */
  async deactivate(): Promise<void> {
    await this.#opening;
    const activation = this.#activation;
    if (activation === undefined) return;
    this.#activation = undefined;
    await activation.inFlight.close();
    const flushed = this.capabilities.readOnly ? Promise.resolve() : activation.file.sync();
    const failure = await flushed.then(
      () => undefined,
      (error: unknown) => error,
    );
    await this.#end(activation);
    if (failure !== undefined) throw blockErrorFrom(failure);
  }

  readNow(offset: number, into: Uint8Array): number {
    const session = this.#session;
    if (session === undefined || this.#activation === undefined) return -1;
    if (!(offset >= 0 && offset + into.length <= this.sizeBytes)) return -1;
    try {
      return readNow(session, offset, into);
    } catch (error) {
      if (error instanceof BlockError) return -1;
      throw error;
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#run(async (session) => {
      checkRange(offset, into.length, this.sizeBytes);
      await readBytes(session, offset, into);
    });
  }

  writeNow(offset: number, from: Uint8Array): number {
    const session = this.#session;
    if (session === undefined || this.#activation === undefined || this.capabilities.readOnly) return -1;
    if (!(offset >= 0 && offset + from.length <= this.sizeBytes)) return -1;
    return writeNow(session, offset, from);
  }

  async write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    await this.#change(offset, from.length, async (session) => {
      await writeBytes(session, offset, from);
      if (options?.fua) await session.sync();
    });
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    await this.#change(offset, length, async (session) => {
      await writeZeroes(session, { offset, length }, options);
      if (options.fua) await session.sync();
    });
  }

  async discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    await this.#change(offset, length, async (session) => {
      await discardRange(session, { offset, length });
      if (options?.fua) await session.sync();
    });
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#run(async (session) => {
      checkRange(offset, length, this.sizeBytes);
      await prefetch(session, offset, length);
    });
  }

  async flush(): Promise<void> {
    await this.#with(async ({ file }) => {
      if (!this.capabilities.readOnly) await (this.#session ?? file).sync();
    });
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return await this.#run(async (session) => {
      this.#checkAsked(offset, length);
      if (!(countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
      return await extentsOf(session, { offset, end: offset + length, countMax });
    });
  }

  async runs(offset: number, length: number): Promise<ImageRun[]> {
    return await this.#run(async (session) => {
      this.#checkAsked(offset, length);
      const standsAlone = !namesBacking(this.#parts.opened);
      return await runsOf(session, { offset, end: offset + length, standsAlone });
    });
  }

  async allocatedBytes(): Promise<number> {
    return await this.#with(({ file }) => file.file.allocatedBytes());
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #open(): Promise<void> {
    const file = await this.#parts.reopen();
    if (this.#closed) {
      await file.file.close();
      throw this.#shuttingDown();
    }
    this.#activation = new Activation(file);
  }

  async #close(): Promise<void> {
    this.#closed = true;
    await this.#opening?.catch(() => undefined);
    const activation = this.#activation;
    this.#activation = undefined;
    if (activation !== undefined) await this.#end(activation);
  }

  /** What is under way still succeeds; then the image is left clean, if it can be, and the lock is given back. */
  async #end({ file, inFlight }: Activation): Promise<void> {
    await inFlight.close();
    const session = this.#session;
    this.#session = undefined;
    this.#loading = undefined;
    await session?.finish();
    await this.#dropping;
    await file.file.close();
  }

  #checkAsked(offset: number, length: number): void {
    checkRange(offset, length, this.sizeBytes);
    if (!(length >= 1)) throw new BlockError("invalid", "no extents were asked for");
  }

  async #change(offset: number, length: number, act: (session: Qcow2Session) => Promise<void>): Promise<void> {
    if (!this.#closed && this.capabilities.readOnly) {
      throw new BlockError("read-only", "the image is open read-only");
    }
    await this.#run(async (session) => {
      checkRange(offset, length, this.sizeBytes);
      await act(session);
    });
  }

  /** Runs `act` with the tables; anew, when they were dropped before it could allocate. */
  async #run<T>(act: (session: Qcow2Session) => Promise<T>): Promise<T> {
    return await this.#with(async (activation) => {
      for (;;) {
        const session = this.#session ?? (await this.#load(activation.file));
        try {
          return await act(session);
        } catch (error) {
          if (!(error instanceof RetiredError)) throw error;
        }
      }
    });
  }

  async #with<T>(act: (activation: Activation) => Promise<T>): Promise<T> {
    const activation = this.#activation;
    if (activation === undefined || !activation.inFlight.enter()) {
      throw this.#closed ? this.#shuttingDown() : new BlockError("io", "the image is not active here");
    }
    try {
      return await act(activation);
    } catch (error) {
      throw blockErrorFrom(error);
    } finally {
      activation.inFlight.leave();
    }
  }

  async #load(file: ImageFile): Promise<Qcow2Session> {
    this.#loading ??= this.#loadAfter(this.#dropping, file);
    const loading = this.#loading;
    try {
      const session = await loading;
      if (this.#loading === loading) this.#session = session;
      return session;
    } catch (error) {
      if (this.#loading === loading) this.#loading = undefined;
      throw error;
    }
  }

  async #loadAfter(dropped: Promise<void>, file: ImageFile): Promise<Qcow2Session> {
    await dropped;
    return await Qcow2Session.load({ ...this.#parts, file });
  }

  #shuttingDown(): BlockError {
    return new BlockError("shutting-down", "the image is closed");
  }
}
