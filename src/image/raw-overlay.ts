/**
 * A raw image as the store of an overlay. Until it is complete it ends in a trailer, which binds it to its map, and makes
 * it no multiple of the disk's size: nobody takes it for a finished disk by accident.
 *
 * | trailer, at the next multiple of 4096 after the disk | length | |
 * | --- | --- | --- |
 * | 0 | 8 | magic "BFERRYIM" |
 * | 8 | 16 | the map's uuid |
 * | 24 | 8 | size of the disk in bytes, little-endian |
 * | 508 | 4 | CRC-32 of the bytes before |
 */
import { dirname } from "node:path";
import { crc32 } from "node:zlib";
import type { MapState, OverlayStore } from "../block/overlay-store.ts";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { isZero } from "../util/zeroes.ts";
import { blockErrorFrom, ImageOpenError, imageOpenErrorFrom } from "./errors.ts";
import { RawImage } from "./raw.ts";
import { openOrCreate } from "./tables/new-image-file.ts";

const TRAILER_BYTES = 512;
const READ_BYTES = 1024 * 1024;
/** What a file system gives a file for its trailer, at least. */
const ALLOCATION_BYTES = 4096;
const MAGIC = Buffer.from("BFERRYIM", "latin1");

export interface RawOverlayOptions {
  readonly path: string;
  /** Of the disk, without the trailer. */
  readonly sizeBytes: number;
  /** Of the map. */
  readonly uuid: Uint8Array;
}

/**
 * Makes a sparse image that carries the uuid, durable with its directory. With `begun`, one that an interrupted call with
 * the same uuid left, empty or whole, is finished; otherwise there must be nothing at the path.
 */
export async function createRawOverlay(
  env: Pick<Env, "files">,
  options: RawOverlayOptions & { readonly begun: boolean },
): Promise<void> {
  const { path, sizeBytes } = options;
  let file: File | undefined;
  let made = false;
  try {
    [file, made] = await openOrCreate(env, path);
    await file.lock("exclusive");
    const end = trailerOffset(sizeBytes);
    const now = await file.sizeBytes();
    const whole = now === end + TRAILER_BYTES && (await carries(file, options));
    const ours = now === 0 || whole || (now === end + TRAILER_BYTES && (await isUnfinished(file, end)));
    if (!(made || (options.begun && ours))) throw new FileError("EEXIST", `${path} exists`);
    if (!whole) await file.write(end, encodeTrailer(options));
    await file.dataSync();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    if (made) await env.files.unlink(path).catch(() => undefined);
    throw imageOpenErrorFrom(error, path, "create");
  } finally {
    await file?.close();
  }
}

/**
 * Power went before the trailer was on the disk, and only the file's size was: nothing else is in it, and the trailer is
 * nobody's.
 */
async function isUnfinished(file: File, end: number): Promise<boolean> {
  return (await file.allocatedBytes()) <= ALLOCATION_BYTES && (await hasNoTrailer(file, end));
}

/** What is where a trailer would be is none, of whatever map. */
async function hasNoTrailer(file: File, end: number): Promise<boolean> {
  const bytes = Buffer.alloc(TRAILER_BYTES);
  await file.read(end, bytes);
  return crc32(bytes.subarray(0, 508)) !== bytes.readUInt32LE(508);
}

export interface OpenRawOverlayOptions extends RawOverlayOptions {
  readonly clusterBytes: number;
  /** What the map says of its last end. */
  readonly state: MapState;
}

/**
 * Opens and locks the image. Throws `ImageOpenError` when it does not carry the uuid; only when its map says "complete"
 * may the trailer be gone.
 */
export async function openRawOverlay(
  env: Pick<Env, "files"> & Partial<Pick<Env, "chaos">>,
  options: OpenRawOverlayOptions,
): Promise<RawOverlayStore> {
  const { path, sizeBytes, clusterBytes, state } = options;
  const complete = state === "complete";
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: true, noFollow: true });
    // Until it is complete, what is missing would read as zeroes.
    await file.lock(complete ? "exclusive" : "alone");
    if (!(complete && (await isReleased(file, sizeBytes))) && !(await carries(file, options))) {
      const why = "it is not the image that its map was made for";
      throw new ImageOpenError("not-an-image", path, { why, hint: "restore the image and its map together" });
    }
    const retrySync = env.chaos?.on("cor/retry-sync") ?? false;
    const asOnDisk = state === "new" || state === "clean";
    return new RawOverlayStore(file, { sizeBytes, clusterBytes, asOnDisk, retrySync });
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

interface RawStoreOptions {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  /** When it was opened, the page cache held nothing that the disk has not. */
  readonly asOnDisk: boolean;
  readonly retrySync: boolean;
}

/** The trailer is gone, or was going when the power went. */
async function isReleased(file: File, sizeBytes: number): Promise<boolean> {
  const size = await file.sizeBytes();
  const end = trailerOffset(sizeBytes);
  return size === sizeBytes || (size === end + TRAILER_BYTES && (await hasNoTrailer(file, end)));
}

export class RawOverlayStore extends RawImage implements OverlayStore {
  readonly clusterBytes: number;
  readonly #file: File;
  readonly #asOnDisk: boolean;
  readonly #retrySync: boolean;

  /** Takes `file` over. `retrySync` is a mutant. */
  constructor(file: File, { sizeBytes, clusterBytes, asOnDisk, retrySync }: RawStoreOptions) {
    super(file, sizeBytes);
    this.#file = file;
    this.#asOnDisk = asOnDisk;
    this.#retrySync = retrySync;
    this.clusterBytes = clusterBytes;
  }

  /** Most of what an overlay zeroes was never written, however large it is. */
  protected override async isHole(offset: number, length: number): Promise<boolean> {
    if (!this.#file.features.extents) return this.#asOnDisk && (await this.readsAsZeroes(offset, length));
    const { kind, end } = await this.#file.extentAt(offset);
    return kind === "hole" && end >= offset + length;
  }

  /**
   * Where nobody tells what is a hole: reading zeroes costs less than writing them, and takes no space. After a kill they
   * prove nothing: a sync may have failed, and then pages that the disk has not got count as clean.
   */
  protected async readsAsZeroes(offset: number, length: number): Promise<boolean> {
    const bytes = new Uint8Array(Math.min(length, READ_BYTES));
    for (let at = 0; at < length; at += READ_BYTES) {
      const part = bytes.subarray(0, Math.min(READ_BYTES, length - at));
      if ((await this.#file.read(offset + at, part)) !== part.length || !isZero(part)) return false;
    }
    return true;
  }

  startWriteback(offset: number, length: number): void {
    this.#file.startWriteback(offset, length);
  }

  /** Only the map knows. */
  isLocal(): undefined {
    return undefined;
  }

  putFetched(cluster: number, from: Uint8Array): Promise<void> {
    return this.writeOnce(cluster * this.clusterBytes, from);
  }

  putWritten(offset: number, from: Uint8Array): Promise<void> {
    return this.write(offset, from);
  }

  zero(cluster: number): Promise<void> {
    const offset = cluster * this.clusterBytes;
    return this.writeZeroes(offset, Math.min(this.clusterBytes, this.sizeBytes - offset));
  }

  commit(): Promise<void> {
    return this.#retrySync ? this.#file.dataSync() : this.flush();
  }

  async complete(): Promise<void> {
    await this.flush();
    try {
      if ((await this.#file.sizeBytes()) > this.sizeBytes) await this.#file.truncate(this.sizeBytes);
    } catch (error) {
      throw blockErrorFrom(error);
    }
    await this.flush();
    await this.#file.lock("exclusive");
  }
}

function trailerOffset(sizeBytes: number): number {
  return Math.ceil(sizeBytes / 4096) * 4096;
}

/** Of a disk; on a device it is called its mark. */
export function encodeTrailer({ sizeBytes, uuid }: RawOverlayOptions): Buffer {
  const bytes = Buffer.alloc(TRAILER_BYTES);
  MAGIC.copy(bytes);
  bytes.set(uuid, 8);
  bytes.writeBigUInt64LE(BigInt(sizeBytes), 24);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 508)), 508);
  return bytes;
}

async function carries(file: File, options: RawOverlayOptions): Promise<boolean> {
  const bytes = Buffer.alloc(TRAILER_BYTES);
  const length = await file.read(trailerOffset(options.sizeBytes), bytes);
  return length === TRAILER_BYTES && bytes.equals(encodeTrailer(options));
}
