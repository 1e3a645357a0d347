/** Opening an image with tables: the lock is taken, the header is read and checked, and nothing else is touched. */
import type { BlockDevice } from "../../block/device.ts";
import { type Chaos, NO_CHAOS } from "../../env/chaos.ts";
import type { Clock } from "../../env/clock.ts";
import type { File } from "../../env/files.ts";
import { ImageOpenError, imageOpenErrorFrom } from "../errors.ts";
import type { BackingReference, Image, ImageEnv, OpenImageOptions } from "../image.ts";
import { ImageFile } from "./image-file.ts";
import { isUnfinishedMark } from "./unfinished-mark.ts";

export interface OpenTableImageOptions extends OpenImageOptions {
  /** Only learns the size, without a lock; the file is opened for use by `TableImage.open`. */
  readonly late?: boolean;
  /** What cached tables may take. */
  readonly cacheBytes?: number;
}

/** What a format has read of the file. */
export interface HeaderRead<H> {
  readonly header: H;
  readonly fileBytes: number;
  readonly reference: BackingReference | undefined;
}

/** What an image of any format is made of. */
export interface OpenedFile {
  readonly readOnly: boolean;
  readonly storage: Image["storage"];
  readonly zeroesFast: boolean;
  readonly discards: boolean;
  readonly backing: BlockDevice | undefined;
  readonly backingReference: BackingReference | undefined;
  readonly chaos: Chaos;
  readonly clock: Clock | undefined;
  readonly cacheBytes: number | undefined;
  /** The file, locked; absent when it is to be opened later. */
  readonly file: ImageFile | undefined;
  readonly reopen: () => Promise<ImageFile>;
}

export interface TableOpener<R, I> {
  /** Throws `ImageOpenError`, also for what must not be written if it is to be. */
  readonly readHeader: (file: File) => Promise<R>;
  readonly make: (read: R, opened: OpenedFile) => I;
}

/** Opens and locks the image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openTableImage<R extends HeaderRead<unknown>, I>(
  env: ImageEnv,
  options: OpenTableImageOptions,
  { readHeader, make }: TableOpener<R, I>,
): Promise<I> {
  const { path, readOnly, late = false, cacheBytes } = options;
  let file: File | undefined;
  try {
    file = await openFile(env, options, late);
    const read = await readHeader(file);
    const backing = chooseBacking(options, read.reference);
    const image = late ? undefined : new ImageFile(file, read.fileBytes);
    const opened = openedFile(env, { file, image, reference: read.reference, readOnly });
    if (late) await file.close();
    return make(read, { ...opened, backing, cacheBytes, reopen: () => reopen(env, options) });
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

export interface FileTaken {
  readonly file: File;
  readonly image: ImageFile | undefined;
  readonly reference: BackingReference | undefined;
  readonly readOnly: boolean;
}

/** Over nothing, and not to be opened again. */
export function openedFile(env: ImageEnv, { file, image, reference, readOnly }: FileTaken): OpenedFile {
  const { kind, features } = file;
  return {
    backing: undefined,
    chaos: env.chaos ?? NO_CHAOS,
    clock: env.clock,
    cacheBytes: undefined,
    readOnly,
    storage: kind,
    zeroesFast: kind === "regular" && (features.punchHole || features.zeroRange),
    discards: kind === "regular" && features.punchHole,
    backingReference: reference,
    file: image,
    reopen: () => Promise.reject(new Error(`${file.path} was not opened to be opened again`)),
  };
}

async function openFile(env: ImageEnv, options: OpenTableImageOptions, peek: boolean): Promise<File> {
  const { path, readOnly, noFollow = false, lock = true } = options;
  const file = await env.files.open({ path, writable: !readOnly && !peek, noFollow });
  try {
    if (lock && !peek) await file.lock(readOnly ? "shared" : "exclusive");
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function reopen(env: ImageEnv, options: OpenTableImageOptions): Promise<ImageFile> {
  let file: File | undefined;
  try {
    file = await openFile(env, options, false);
    return new ImageFile(file, await file.sizeBytes());
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, options.path);
  }
}

/** What the operator gave must fit what the header says; the header's own words are not followed. */
function chooseBacking(
  { path, backing }: OpenTableImageOptions,
  reference: BackingReference | undefined,
): BlockDevice | undefined {
  if (reference === undefined) {
    if (backing === undefined || backing === "absent") return undefined;
    const why = "it stands alone, but a backing image was given for it";
    throw new ImageOpenError("backing", path, { why, hint: "leave the backing image out" });
  }
  if (isUnfinishedMark(reference) && backing !== "absent") {
    const why = "it is a copy that is not finished: blocks are missing, which would read as zeroes";
    throw new ImageOpenError("backing", path, { why, hint: "run the same `blockferry clone` again: it finishes it" });
  }
  if (backing === undefined) {
    const why = `it lies over another image, which it calls ${JSON.stringify(reference.name)}, and none was given`;
    const hint = "give the backing image explicitly: names found inside images are not opened";
    throw new ImageOpenError("backing", path, { why, hint });
  }
  return backing === "absent" ? undefined : backing;
}
