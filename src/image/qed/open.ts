/** Opening a QED image: the header is read and checked, the lock is taken, and nothing else is touched. */
import type { File } from "../../env/files.ts";
import type { BackingReference, ImageEnv } from "../image.ts";
import { headerError } from "../tables/header-problem.ts";
import { type HeaderRead, type OpenTableImageOptions, openTableImage } from "../tables/open-table-image.ts";
import {
  namesBacking,
  parseHeader,
  QED_F_BACKING_FORMAT_NO_PROBE,
  QED_HEADER_BYTES,
  type QedHeader,
} from "./header.ts";
import { newQedImage, type QedImage } from "./image.ts";

/** As long as QEMU waits. */
export const QUIET_MS = 5000;

export interface OpenQedOptions extends OpenTableImageOptions {
  /** How long nothing must have been allocated before NEED_CHECK is cleared. */
  readonly quietMs?: number;
}

/** Opens and locks the image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openQed(env: ImageEnv, options: OpenQedOptions): Promise<QedImage> {
  const { quietMs = QUIET_MS } = options;
  return await openTableImage(env, options, {
    readHeader,
    make: ({ header }, opened) => newQedImage(header, { ...opened, quietMs }),
  });
}

/** Throws `ImageOpenError` or `FileError`. */
export async function readHeader(file: File): Promise<HeaderRead<QedHeader>> {
  const fileBytes = await file.sizeBytes();
  const bytes = Buffer.alloc(QED_HEADER_BYTES);
  const count = await file.read(0, bytes);
  const header = parseHeader(bytes.subarray(0, count), fileBytes);
  if ("kind" in header) throw headerError(file.path, "QED", header);
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
