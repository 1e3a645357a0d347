/** Opening a QED image: the header is read and checked, the lock is taken, and nothing else is touched. */
import type { BlockDevice } from "../../block/device.ts";
import { NO_CHAOS } from "../../env/chaos.ts";
import type { File } from "../../env/files.ts";
import { ImageOpenError, imageOpenErrorFrom } from "../errors.ts";
import type { BackingReference, ImageEnv, OpenImageOptions } from "../image.ts";
import { ImageFile } from "../tables/image-file.ts";
import {
  type HeaderProblem,
  namesBacking,
  parseHeader,
  QED_F_BACKING_FORMAT_NO_PROBE,
  QED_HEADER_BYTES,
  type QedHeader,
} from "./header.ts";
import { QedImage } from "./image.ts";

/** As long as QEMU waits. */
const QUIET_MS = 5000;

export interface OpenQedOptions extends OpenImageOptions {
  /** Only learns the size, without a lock; the file is opened for use by `QedImage.open`. */
  readonly late?: boolean;
  /** How long nothing must have been allocated before NEED_CHECK is cleared. */
  readonly quietMs?: number;
  /** What cached tables may take. */
  readonly cacheBytes?: number;
}

/** Opens and locks the image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openQed(env: ImageEnv, options: OpenQedOptions): Promise<QedImage> {
  const { path, readOnly, late = false, quietMs = QUIET_MS, cacheBytes } = options;
  let file: File | undefined;
  try {
    file = await openFile(env, options, late);
    const { header, fileBytes, reference } = await readHeader(file);
    const backing = chooseBacking(options, reference);
    const { kind, features } = file;
    if (late) await file.close();
    return new QedImage({
      opened: header,
      backing,
      chaos: env.chaos ?? NO_CHAOS,
      clock: env.clock,
      quietMs,
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

async function openFile(env: ImageEnv, options: OpenQedOptions, peek: boolean): Promise<File> {
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

async function reopen(env: ImageEnv, options: OpenQedOptions): Promise<ImageFile> {
  let file: File | undefined;
  try {
    file = await openFile(env, options, false);
    return new ImageFile(file, await file.sizeBytes());
  } catch (error) {
    await file?.close();
    throw imageOpenErrorFrom(error, options.path);
  }
}

interface ReadHeader {
  readonly header: QedHeader;
  readonly fileBytes: number;
  readonly reference: BackingReference | undefined;
}

/** Throws `ImageOpenError` or `FileError`. */
export async function readHeader(file: File): Promise<ReadHeader> {
  const fileBytes = await file.sizeBytes();
  const bytes = Buffer.alloc(QED_HEADER_BYTES);
  const count = await file.read(0, bytes);
  const header = parseHeader(bytes.subarray(0, count), fileBytes);
  if ("kind" in header) throw problemError(file.path, header);
  return { header, fileBytes, reference: await readReference(file, header) };
}

async function readReference(file: File, header: QedHeader): Promise<BackingReference | undefined> {
  if (!namesBacking(header)) return undefined;
  const bytes = Buffer.alloc(header.backingNameBytes);
  const count = await file.read(header.backingNameOffset, bytes);
  const name = bytes.subarray(0, count).toString("utf8");
  const isRaw = (header.features & QED_F_BACKING_FORMAT_NO_PROBE) !== 0n;
  return { name, ...(isRaw && { format: "raw" }) };
}

function problemError(path: string, { kind, field, at, why }: HeaderProblem): ImageOpenError {
  if (kind === "not-qed") {
    const hint = "say what it is: --format raw, for instance";
    return new ImageOpenError("not-an-image", path, { why: "it is no QED image", hint });
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
  { path, backing }: OpenQedOptions,
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
