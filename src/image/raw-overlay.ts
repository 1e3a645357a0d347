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
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { blockErrorFrom, ImageOpenError, imageOpenErrorFrom } from "./errors.ts";
import { RawImage } from "./raw.ts";

const TRAILER_BYTES = 512;
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
    const ours = now === 0 || (now === end + TRAILER_BYTES && (await carries(file, options)));
    if (!(made || (options.begun && ours))) throw new FileError("EEXIST", `${path} exists`);
    if (now === 0) await file.write(end, encodeTrailer(options));
    await file.dataSync();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    if (made) await env.files.unlink(path).catch(() => undefined);
    throw imageOpenErrorFrom(error, path, "create");
  } finally {
    await file?.close();
  }
}

async function openOrCreate(env: Pick<Env, "files">, path: string): Promise<[File, made: boolean]> {
  try {
    return [await env.files.open({ path, writable: true, create: true, noFollow: true }), true];
  } catch (error) {
    if (!(error instanceof FileError && error.code === "EEXIST")) throw error;
    return [await env.files.open({ path, writable: true, noFollow: true }), false];
  }
}

/**
 * Opens and locks the image. Throws `ImageOpenError` when it does not carry the uuid; only when its map says "complete"
 * may the trailer be gone.
 */
export async function openRawOverlay(
  env: Pick<Env, "files">,
  options: RawOverlayOptions & { readonly clusterBytes: number; readonly complete: boolean },
): Promise<RawOverlayStore> {
  const { path, sizeBytes, clusterBytes, complete } = options;
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: true, noFollow: true });
    await file.lock("exclusive");
    const alone = complete && (await file.sizeBytes()) === sizeBytes;
    if (!alone && !(await carries(file, options))) {
      const why = "it is not the image that its map was made for";
      throw new ImageOpenError("not-an-image", path, { why, hint: "restore the image and its map together" });
    }
    return new RawOverlayStore(file, sizeBytes, clusterBytes);
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

export class RawOverlayStore extends RawImage implements OverlayStore {
  readonly clusterBytes: number;
  readonly #file: File;

  /** Takes `file` over. */
  constructor(file: File, sizeBytes: number, clusterBytes: number) {
    super(file, sizeBytes);
    this.#file = file;
    this.clusterBytes = clusterBytes;
  }

  /** Only the map knows. */
  isLocal(): undefined {
    return undefined;
  }

  putFetched(cluster: number, from: Uint8Array): Promise<void> {
    return this.write(cluster * this.clusterBytes, from);
  }

  putWritten(offset: number, from: Uint8Array): Promise<void> {
    return this.write(offset, from);
  }

  zero(cluster: number): Promise<void> {
    const offset = cluster * this.clusterBytes;
    return this.writeZeroes(offset, Math.min(this.clusterBytes, this.sizeBytes - offset));
  }

  commit(): Promise<void> {
    return this.flush();
  }

  async complete(): Promise<void> {
    await this.flush();
    try {
      if ((await this.#file.sizeBytes()) > this.sizeBytes) await this.#file.truncate(this.sizeBytes);
    } catch (error) {
      throw blockErrorFrom(error);
    }
    await this.flush();
  }
}

function trailerOffset(sizeBytes: number): number {
  return Math.ceil(sizeBytes / 4096) * 4096;
}

function encodeTrailer({ sizeBytes, uuid }: RawOverlayOptions): Buffer {
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
