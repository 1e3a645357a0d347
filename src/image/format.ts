/**
 * Which format an image is in, and opening it. The operator says so, or the file's extension does; **contents are never
 * probed**: the guest writes them, and could turn its raw disk into one that names any file of the host.
 */
import { extname } from "node:path";
import { ImageOpenError } from "./errors.ts";
import type { Image, ImageEnv, OpenImageOptions } from "./image.ts";
import { openQcow2 } from "./qcow2/open.ts";
import { openQed } from "./qed/open.ts";
import { openRaw } from "./raw.ts";
export interface ImageFormat {
  readonly name: string;
  /** Lower case, with the dot. */
  readonly extensions: readonly string[];
  /** Byte n of the device is byte n of the file. */
  readonly flat: boolean;
  /** Absent when this build knows the format's name and cannot open it. Throws `ImageOpenError`. */
  readonly open?: (env: ImageEnv, options: OpenImageOptions) => Promise<Image>;
}

const RAW: ImageFormat = { name: "raw", extensions: [".raw", ".img", ".iso"], flat: true, open: openRaw };

/** Every format that has a name here. A new one is one more line. */
export const IMAGE_FORMATS: readonly ImageFormat[] = [
  RAW,
  { name: "qed", extensions: [".qed"], flat: false, open: openQed },
  { name: "qcow2", extensions: [".qcow2", ".qcow"], flat: false, open: openQcow2 },
];

export interface FormatChoice {
  readonly format: ImageFormat;
  /** Who chose it. `default`: nobody, so that it is raw, and `notice` is to be shown to the user. */
  readonly origin: "operator" | "extension" | "default";
  readonly notice?: string;
}

/** Chooses without opening anything. `named` is what the operator said. Throws `ImageOpenError("unknown-format")`. */
export function chooseFormat(path: string, named?: string, formats = IMAGE_FORMATS): FormatChoice {
  if (named !== undefined) {
    const format = formats.find((candidate) => candidate.name === named);
    if (format !== undefined) return { format, origin: "operator" };
    const why = `there is no image format called "${named}"`;
    throw new ImageOpenError("unknown-format", path, { why, hint: `the formats are ${supported(formats)}` });
  }
  const extension = extname(path).toLowerCase();
  const format = formats.find((candidate) => candidate.extensions.includes(extension));
  if (format !== undefined) return { format, origin: "extension" };
  const reason = extension === "" ? "it has no extension" : `the extension ${extension} says nothing`;
  return {
    format: RAW,
    origin: "default",
    notice: `${path} is taken as a raw image: ${reason}, and no format was given`,
  };
}

export interface OpenImageRequest extends OpenImageOptions {
  /** What the operator said. */
  readonly format?: string;
  /** Instead of `IMAGE_FORMATS`. */
  readonly formats?: readonly ImageFormat[];
}

export interface OpenedImage extends FormatChoice {
  readonly image: Image;
}

/** Chooses the format, opens and locks the image. The caller closes it. Throws `ImageOpenError`. */
export async function openImage(env: ImageEnv, request: OpenImageRequest): Promise<OpenedImage> {
  const { format: named, formats = IMAGE_FORMATS, ...options } = request;
  const choice = chooseFormat(options.path, named, formats);
  const { name, open } = choice.format;
  if (open === undefined) {
    const why = `${name} images are not supported yet by this build`;
    const hint = `this build opens ${supported(formats)}; \`qemu-img convert -O raw\` makes a raw image of it`;
    throw new ImageOpenError("unsupported-format", options.path, { why, hint });
  }
  return { ...choice, image: await open(env, options) };
}

function supported(formats: readonly ImageFormat[]): string {
  return formats
    .filter((format) => format.open !== undefined)
    .map((format) => format.name)
    .join(", ");
}
