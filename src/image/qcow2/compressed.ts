/**
 * Compressed clusters: read-only ever after. A cluster is decompressed as a whole; those that were used last are kept, since
 * requests are mostly smaller than clusters.
 *
 * zlib's data is a raw deflate stream, zstd's a frame. Both may be followed by anything up to the end of the last sector.
 */
import { promisify } from "node:util";
import { constants, inflateRaw, type ZlibOptions, type ZstdOptions, zstdDecompress } from "node:zlib";
import { ImageCorruptError } from "../tables/corrupt-error.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { SliceCache } from "../tables/slice-cache.ts";
import { Slots } from "../tables/slots.ts";
import type { Compression, Qcow2Geometry } from "./header.ts";
import { newRun, type Qcow2Tables, type Run } from "./tables.ts";

/** What decompressed clusters may take. */
const CACHE_BYTES = 4 * 1024 * 1024;
const CACHED_CLUSTERS_MAX = 64;
/** What those may take that are being decompressed; but one of them always may. */
const WORK_BYTES = 8 * 1024 * 1024;
/** An entry may say that a cluster takes twice its size; and it is there while it comes out. */
const WORK_CLUSTERS = 4;
const AT_ONCE_MAX = 16;
/** Room beyond the end: a decoder that has filled its buffer takes another one to find that there is nothing more. */
const CHUNK_SPARE_BYTES = 64;
/** No frame of a cluster needs to look back further than the largest cluster. */
const ZSTD_WINDOW_LOG_MAX = 22;
const ZSTD_MAGIC = 0xfd2f_b528;

const inflate: (bytes: Uint8Array, options: ZlibOptions) => Promise<Buffer<ArrayBuffer>> = promisify(inflateRaw);
const unzstd: (bytes: Uint8Array, options: ZstdOptions) => Promise<Buffer<ArrayBuffer>> = promisify(zstdDecompress);

/** The cluster is not compressed any more: look it up again. */
export class NotCompressedError extends Error {
  override readonly name = "NotCompressedError";
}

export class CompressedClusters {
  readonly #file: ImageFile;
  readonly #geometry: Qcow2Geometry;
  readonly #tables: Qcow2Tables;
  /** By cluster of the disk. A cluster that was overwritten is not asked for again. */
  readonly #cache: SliceCache<Buffer<ArrayBuffer>>;
  readonly #slots: Slots;

  constructor(file: ImageFile, geometry: Qcow2Geometry, tables: Qcow2Tables) {
    this.#file = file;
    this.#geometry = geometry;
    this.#tables = tables;
    const fitting = Math.floor(CACHE_BYTES / geometry.clusterBytes);
    const slicesMax = Math.max(1, Math.min(fitting, CACHED_CLUSTERS_MAX));
    this.#cache = new SliceCache({
      slicesMax,
      load: (cluster) => this.#slots.run(() => this.#load(cluster)),
      free: (bytes) => free(bytes, geometry.clusterBytes),
    });
    const atOnce = Math.floor(WORK_BYTES / (WORK_CLUSTERS * geometry.clusterBytes));
    this.#slots = new Slots(Math.max(1, Math.min(atOnce, AT_ONCE_MAX)));
  }

  /** Copies from a cluster that is in memory; false if it is not. `offset`: of the disk. */
  readNow(offset: number, into: Uint8Array): boolean {
    const { clusterBytes } = this.#geometry;
    const cluster = Math.floor(offset / clusterBytes);
    const bytes = this.#cache.peek(cluster);
    if (bytes === undefined) return false;
    const within = offset - cluster * clusterBytes;
    into.set(bytes.subarray(within, within + into.length));
    return true;
  }

  /** Rejects with `NotCompressedError` or `ImageCorruptError`. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#geometry;
    const cluster = Math.floor(offset / clusterBytes);
    const bytes = await this.#cache.pin(cluster);
    const within = offset - cluster * clusterBytes;
    into.set(bytes.subarray(within, within + into.length));
    this.#cache.unpin(cluster);
  }

  async #load(cluster: number): Promise<Buffer<ArrayBuffer>> {
    const run = newRun();
    await this.#tables.lookup(cluster * this.#geometry.clusterBytes, 1, run);
    if (run.kind !== "compressed") throw new NotCompressedError("overwritten meanwhile");
    const packed = Buffer.allocUnsafeSlow(run.compressedBytes);
    try {
      return await this.#unpack(cluster, run, packed);
    } finally {
      packed.buffer.transfer(0);
    }
  }

  async #unpack(cluster: number, run: Run, packed: Buffer): Promise<Buffer<ArrayBuffer>> {
    const { clusterBytes, compression } = this.#geometry;
    const { fileOffset } = run;
    await this.#file.readPadded(fileOffset, packed);
    await this.#tables.lookup(cluster * clusterBytes, 1, run);
    // If it was overwritten, its place may have been given back before we have read it.
    if (run.kind !== "compressed" || run.fileOffset !== fileOffset)
      throw new NotCompressedError("overwritten meanwhile");
    try {
      return await decompress(packed, compression, clusterBytes);
    } catch (error) {
      const why = `is no ${compression} data of one cluster: ${error instanceof Error ? error.message : String(error)}`;
      throw new ImageCorruptError(this.#file.path, { field: "compressed cluster", at: fileOffset, why });
    }
  }
}

/**
 * Memory of large clusters, left to the collector, would lie about by the hundred megabytes. What a decoder has taken from
 * memory that others share, it has not taken by the chunk.
 */
function free({ buffer }: Uint8Array<ArrayBuffer>, clusterBytes: number): void {
  if (buffer.byteLength === clusterBytes + CHUNK_SPARE_BYTES) buffer.transfer(0);
}

/** Rejects unless exactly `clusterBytes` come out. */
export async function decompress(
  packed: Uint8Array,
  compression: Compression,
  clusterBytes: number,
): Promise<Buffer<ArrayBuffer>> {
  const limit = { maxOutputLength: clusterBytes, chunkSize: clusterBytes + CHUNK_SPARE_BYTES };
  const bytes =
    compression === "zlib"
      ? await inflate(packed, { ...limit, finishFlush: constants.Z_SYNC_FLUSH })
      : await unzstd(packed.subarray(0, zstdFrameBytes(packed)), {
          ...limit,
          params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX },
        });
  if (bytes.length === clusterBytes) return bytes;
  throw new Error(`${bytes.length} bytes come out of it`);
}

/** How long the first frame is (RFC 8878, section 3.1.1): what follows it is refused by the decoder. */
export function zstdFrameBytes(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 6 || view.getUint32(0, true) !== ZSTD_MAGIC) throw new Error("there is no frame");
  const descriptor = view.getUint8(4);
  const singleSegment = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >>> 6] ?? 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  let at = 5 + (singleSegment ? 0 : 1) + dictionaryBytes + contentSizeBytes;
  for (let last = false; !last; ) {
    if (at + 3 > bytes.length) throw new Error("the frame is cut off");
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    const type = (header >>> 1) & 3;
    last = (header & 1) !== 0;
    at += 3 + (type === 1 ? 1 : header >>> 3);
  }
  const end = at + ((descriptor & 4) === 0 ? 0 : 4);
  if (end > bytes.length) throw new Error("the frame is cut off");
  return end;
}
