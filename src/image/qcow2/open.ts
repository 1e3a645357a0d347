/** Opening a qcow2 image: the header is read and checked, the lock is taken, and nothing else is touched. */
import type { BlockDevice } from "../../block/device.ts";
import { NO_CHAOS } from "../../env/chaos.ts";
import type { File } from "../../env/files.ts";
import { ImageOpenError, imageOpenErrorFrom } from "../errors.ts";
import type { BackingReference, ImageEnv, OpenImageOptions } from "../image.ts";
import { ImageFile } from "../tables/image-file.ts";
import { type Extensions, parseExtensions } from "./extensions.ts";
import {
  clusterBytesOf,
  type HeaderProblem,
  isCorrupt,
  parseHeader,
  QCOW2_HEADER_BYTES,
  type Qcow2Header,
} from "./header.ts";
import { Qcow2Image } from "./image.ts";

export interface OpenQcow2Options extends OpenImageOptions {
  /** Only learns the size, without a lock; the file is opened for use by `Qcow2Image.open`. */
  readonly late?: boolean;
  /** What cached tables may take. */
  readonly cacheBytes?: number;
}

/** Opens and locks the image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openQcow2(env: ImageEnv, options: OpenQcow2Options): Promise<Qcow2Image> {
  const { path, readOnly, late = false, cacheBytes } = options;
  let file: File | undefined;
  try {
    file = await openFile(env, options, late);
    const { header, fileBytes, reference, bitmaps } = await readHeader(file);
    if (!readOnly) checkWritable(path, header, bitmaps);
    const backing = chooseBacking(options, reference);
    const { kind, features } = file;
    if (late) await file.close();
    return new Qcow2Image({
      opened: header,
      backing,
      chaos: env.chaos ?? NO_CHAOS,
      clock: env.clock,
      cacheBytes,
      readOnly,
      storage: kind,
      zeroesFast: kind === "regular" && (features.punchHole || features.zeroRange),
      discards: kind === "regular" && features.punchHole,
      backingReference: reference,
      file: late ? undefined : new ImageFile(file, fileBytes),
      reopen: () => reopen(env, options),
    });
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, path);
  }
}

async function openFile(env: ImageEnv, options: OpenQcow2Options, peek: boolean): Promise<File> {
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

async function reopen(env: ImageEnv, options: OpenQcow2Options): Promise<ImageFile> {
  let file: File | undefined;
  try {
    file = await openFile(env, options, false);
    return new ImageFile(file, await file.sizeBytes());
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, options.path);
  }
}

/** An image that we would not keep whole is not written at all. */
function checkWritable(path: string, header: Qcow2Header, bitmaps: boolean): void {
  if (isCorrupt(header)) {
    const why = "it is marked as corrupt, so that it can only be read";
    throw new ImageOpenError("corrupt", path, { why, hint: "open it read-only, or `qemu-img check -r all` it" });
  }
  if (header.snapshots > 0) {
    const why = `it has ${header.snapshots} internal snapshots, and can only be read`;
    throw new ImageOpenError("unsupported-format", path, { why, hint: "open it read-only, or `qemu-img convert` it" });
  }
  if (bitmaps) {
    const why = "it has persistent bitmaps, which would not be kept up";
    throw new ImageOpenError("unsupported-format", path, { why, hint: "open it read-only, or remove the bitmaps" });
  }
}

export interface ReadHeader extends Extensions {
  readonly header: Qcow2Header;
  readonly fileBytes: number;
}

/** Throws `ImageOpenError` or `FileError`. */
export async function readHeader(file: File): Promise<ReadHeader> {
  const fileBytes = await file.sizeBytes();
  const bytes = Buffer.alloc(QCOW2_HEADER_BYTES);
  const count = await file.read(0, bytes);
  const header = parseHeader(bytes.subarray(0, count), fileBytes);
  if ("kind" in header) throw problemError(file.path, header);
  const cluster = Buffer.alloc(Math.min(clusterBytesOf(header), fileBytes));
  const extensions = parseExtensions(header, cluster.subarray(0, await file.read(0, cluster)));
  if ("kind" in extensions) throw problemError(file.path, extensions);
  return { header, fileBytes, ...extensions };
}

function problemError(path: string, { kind, field, at, why }: HeaderProblem): ImageOpenError {
  if (kind === "not-qcow2") {
    const hint = "say what it is: --format raw, for instance";
    return new ImageOpenError("not-an-image", path, { why: "it is no qcow2 image", hint });
  }
  if (kind === "unsupported") {
    const hint = "open it with the program that wrote it, or `qemu-img convert` it";
    return new ImageOpenError("unsupported-format", path, { why: `its header's ${field} ${why}`, hint });
  }
  const hint = "restore it from a backup: its header is damaged";
  return new ImageOpenError("corrupt", path, { why: `its header's ${field}, at offset ${at}, ${why}`, hint });
}

/** What the operator gave must fit what the header says; the header's own words are not followed. */
function chooseBacking(
  { path, backing }: OpenQcow2Options,
  reference: BackingReference | undefined,
): BlockDevice | undefined {
  if (reference === undefined) {
    if (backing === undefined || backing === "absent") return undefined;
    const why = "it stands alone, but a backing image was given for it";
    throw new ImageOpenError("backing", path, { why, hint: "leave the backing image out" });
  }
  if (backing === undefined) {
    const why = `it lies over another image, which it calls ${JSON.stringify(reference.name)}, and none was given`;
    const hint = "give the backing image explicitly: names found inside images are not opened";
    throw new ImageOpenError("backing", path, { why, hint });
  }
  return backing === "absent" ? undefined : backing;
}
