/**
 * An image with tables as the store of an overlay. Which clusters are local is known elsewhere; here they are data or, where
 * nothing but zeroes was ever put, unallocated.
 *
 * - Until it is complete, its header names a backing file that cannot be opened: QEMU refuses it rather than read zeroes. The
 *   name carries the uuid of the map that the image belongs to.
 * - Entries are written through to the file as soon as their data is: an acknowledged write is found again by whoever opens
 *   the image after a kill. They may point to data that is not durable yet, since space is durably part of the file, as
 *   zeroes, before it is used; one sync makes data and tables durable, and only then may anybody rely on either.
 */
import { checkRange } from "../../block/error.ts";
import type { MapState, OverlayStore } from "../../block/overlay-store.ts";
import type { Env } from "../../env/env.ts";
import type { File } from "../../env/files.ts";
import { ImageOpenError, imageOpenErrorFrom } from "../errors.ts";
import type { BackingReference, ImageEnv } from "../image.ts";
import { ImageFile } from "./image-file.ts";
import type { TableSession } from "./image-life.ts";
import { beginImageFile, type NewImageContent } from "./new-image-file.ts";
import { type HeaderRead, type OpenedFile, openedFile } from "./open-table-image.ts";
import { TableImage, type TableImageParts } from "./table-image.ts";
import { unfinishedMark } from "./unfinished-mark.ts";

/** How many runs one hint about write-back may be split into. */
const WRITEBACK_RUNS_MAX = 64;

export interface CreateOverlayImageOptions {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of the map. */
  readonly uuid: Uint8Array;
  /** Of an image that has clusters: the format's default unless given. */
  readonly imageClusterBytes?: number;
  /** An earlier call with the same uuid may have got anywhere: what it made is to be finished. */
  readonly begun: boolean;
}

export interface OpenOverlayImageOptions {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of the map, and its unit of presence, which need not be the image's. */
  readonly uuid: Uint8Array;
  readonly clusterBytes: number;
  /** "complete": the image may stand alone already. */
  readonly state: MapState;
}

interface NewOverlayImage {
  readonly path: string;
  readonly sizeBytes: number;
  readonly clusterBytes?: number;
  readonly backing: BackingReference;
}

/** Makes an image that carries the uuid, durable with its directory. Throws `ImageOpenError`. */
export async function createOverlayImage(
  env: Pick<Env, "files">,
  { path, uuid, begun, sizeBytes, imageClusterBytes }: CreateOverlayImageOptions,
  contentOf: (options: NewOverlayImage) => NewImageContent,
): Promise<void> {
  const clusters = imageClusterBytes === undefined ? {} : { clusterBytes: imageClusterBytes };
  const content = contentOf({ path, sizeBytes, ...clusters, backing: { name: unfinishedMark(uuid) } });
  await beginImageFile(env, path, { ...content, begun });
}

export interface OverlaySession extends TableSession {
  readonly tables: TableSession["tables"] & {
    lookupNow(offset: number, length: number, run: { kind: string; length: number; fileOffset: number }): boolean;
  };
  readonly file: ImageFile;
  /** Drops the name of the backing, and gives back what was reserved. Durable when resolved; may be repeated. */
  standAlone(): Promise<void>;
}

export interface OverlayOpener<R, S, U> {
  /** Throws `ImageOpenError`. */
  readonly readHeader: (file: File) => Promise<R>;
  /** Takes back the space that a crash has lost; with `rewrite`, what the tables hold is durable afterwards. */
  readonly reclaim: (file: ImageFile, read: R, rewrite: boolean) => Promise<U>;
  readonly make: (read: R, opened: OpenedFile, reclaimed: U) => TableImageParts<S>;
}

/** Opens and locks the image. Throws `ImageOpenError` when it does not carry the uuid, unless it is complete. */
export async function openOverlayImage<R extends HeaderRead<unknown>, S extends OverlaySession, U>(
  env: ImageEnv,
  options: OpenOverlayImageOptions,
  { readHeader, reclaim, make }: OverlayOpener<R, S, U>,
): Promise<OverlayStore> {
  const { path, clusterBytes, state } = options;
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: true, noFollow: true });
    await file.lock("exclusive");
    const read = await readHeader(file);
    checkCarries(options, read.reference);
    const image = new ImageFile(file, read.fileBytes);
    // Whoever had it open may have been killed; or the power went before what it gave back was durable.
    const reclaimed = await reclaim(image, read, state !== "clean");
    const opened = openedFile(env, { file, image, reference: read.reference, readOnly: false });
    return new TableOverlayStore(make(read, opened, reclaimed), clusterBytes);
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

function checkCarries({ path, uuid, state }: OpenOverlayImageOptions, reference: BackingReference | undefined): void {
  const mark = unfinishedMark(uuid);
  // The power may have gone while the mark went: what is left of it then is its beginning, or nothing.
  const left = reference?.name.replace(/\0+$/, "") ?? "";
  if (left === mark || (state === "complete" && mark.startsWith(left))) return;
  const why = "it is not the image that its map was made for";
  throw new ImageOpenError("not-an-image", path, { why, hint: "restore the image and its map together" });
}

/** What is put into it is durable after `commit`, in whatever order it reached the disk. */
class TableOverlayStore<S extends OverlaySession> extends TableImage<S> implements OverlayStore {
  /** Of the map. */
  override readonly clusterBytes: number;

  constructor(parts: TableImageParts<S>, clusterBytes: number) {
    super(parts);
    this.clusterBytes = clusterBytes;
  }

  /** Only the map knows. */
  isLocal(): undefined {
    return undefined;
  }

  async putFetched(cluster: number, from: Uint8Array): Promise<void> {
    const offset = cluster * this.clusterBytes;
    checkRange(offset, from.length, this.sizeBytes);
    await this.life.run((session) => this.operations.write(session, offset, from, { once: true }));
  }

  putWritten(offset: number, from: Uint8Array): Promise<void> {
    return this.write(offset, from);
  }

  zero(cluster: number): Promise<void> {
    const offset = cluster * this.clusterBytes;
    return this.writeZeroes(offset, Math.min(this.clusterBytes, this.sizeBytes - offset));
  }

  startWriteback(offset: number, length: number): void {
    const { session } = this.life;
    if (session === undefined) return;
    const { tables, file } = session;
    const run = { kind: "", length: 0, fileOffset: 0 };
    for (let done = 0, runs = 0; done < length && runs < WRITEBACK_RUNS_MAX; done += run.length, runs++) {
      if (!tables.lookupNow(offset + done, length - done, run)) return;
      if (run.kind === "data") file.file.startWriteback(run.fileOffset, run.length);
    }
  }

  commit(): Promise<void> {
    return this.flush();
  }

  async complete(): Promise<void> {
    await this.life.run((session) => session.standAlone());
  }
}
