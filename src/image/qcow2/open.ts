/** Opening a qcow2 image: the header is read and checked, the lock is taken, and nothing else is touched. */
import type { File } from "../../env/files.ts";
import { ImageOpenError } from "../errors.ts";
import type { ImageEnv } from "../image.ts";
import { headerError } from "../tables/header-problem.ts";
import { type HeaderRead, type OpenTableImageOptions, openTableImage } from "../tables/open-table-image.ts";
import { type Extensions, parseExtensions } from "./extensions.ts";
import { clusterBytesOf, isCorrupt, parseHeader, QCOW2_HEADER_BYTES, type Qcow2Header } from "./header.ts";
import { newQcow2Image, type Qcow2Image } from "./image.ts";

export type OpenQcow2Options = OpenTableImageOptions;

/** Opens and locks the image: exclusively when writable, shared when read-only. Throws `ImageOpenError`. */
export async function openQcow2(env: ImageEnv, options: OpenQcow2Options): Promise<Qcow2Image> {
  return await openTableImage(env, options, {
    readHeader: async (file) => {
      const read = await readHeader(file);
      if (!options.readOnly) checkWritable(options.path, read);
      return read;
    },
    make: ({ header }, opened) => newQcow2Image(header, opened),
  });
}

/** An image that we would not keep whole is not written at all. */
export function checkWritable(path: string, { header, bitmaps }: ReadHeader): void {
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

export interface ReadHeader extends HeaderRead<Qcow2Header>, Extensions {
  readonly reference: Extensions["reference"];
}

/** Throws `ImageOpenError` or `FileError`. */
export async function readHeader(file: File): Promise<ReadHeader> {
  const fileBytes = await file.sizeBytes();
  const bytes = Buffer.alloc(QCOW2_HEADER_BYTES);
  const count = await file.read(0, bytes);
  const header = parseHeader(bytes.subarray(0, count), fileBytes);
  if ("kind" in header) throw headerError(file.path, "qcow2", header);
  const cluster = Buffer.alloc(Math.min(clusterBytesOf(header), fileBytes));
  const extensions = parseExtensions(header, cluster.subarray(0, await file.read(0, cluster)));
  if ("kind" in extensions) throw headerError(file.path, "qcow2", extensions);
  return { header, fileBytes, ...extensions };
}
