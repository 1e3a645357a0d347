/**
 * Which format an image is in, and opening it. The operator says so, or the file's extension does; **contents are never
 * probed**: the guest writes them, and could turn its raw disk into one that names any file of the host.
 */
import { extname } from "node:path";
import type { OverlayStore } from "../block/overlay-store.ts";
import { ImageOpenError } from "./errors.ts";
import type { BackingReference, Image, ImageEnv, OpenImageOptions } from "./image.ts";
import { checkQcow2 } from "./qcow2/check-qcow2.ts";
import { createQcow2 } from "./qcow2/create.ts";
import { openQcow2 } from "./qcow2/open.ts";
import { createQcow2Overlay, openQcow2Overlay } from "./qcow2/overlay.ts";
import { checkQed } from "./qed/check-qed.ts";
import { createQed } from "./qed/create.ts";
import { openQed } from "./qed/open.ts";
import { createQedOverlay, openQedOverlay } from "./qed/overlay.ts";
import { openRaw } from "./raw.ts";
import { createRaw } from "./raw-create.ts";
import { createRawOverlay, openRawOverlay } from "./raw-overlay.ts";
import type { CheckReport } from "./tables/check-report.ts";
import type { CreateOverlayImageOptions, OpenOverlayImageOptions } from "./tables/overlay-image.ts";

/** What a new image is to be like. A format takes no more of it than `ImageFormat.createOptions` names. */
export interface CreateImageOptions {
  /** There must be nothing at this path. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly clusterBytes?: number;
  /** Of QED. */
  readonly tableClusters?: number;
  /** Of qcow2. */
  readonly version?: 2 | 3;
  /** Written down, not opened. */
  readonly backing?: BackingReference;
}

/** Of `CreateImageOptions`, beside path and size. */
export type CreateOption = Exclude<keyof CreateImageOptions, "path" | "sizeBytes">;

export interface CheckImageOptions {
  readonly path: string;
  /** "leaks": lost space is given back, where the format can. "all": wrong entries are put right too. */
  readonly repair?: "leaks" | "all";
}

/** Images of a format as the stores of overlays. */
export interface OverlayFormat {
  /** Makes an image that carries the uuid, durable with its directory. Throws `ImageOpenError`. */
  readonly create: (env: Pick<ImageEnv, "files">, options: CreateOverlayImageOptions) => Promise<void>;
  /** Opens and locks it. Throws `ImageOpenError` when it does not carry the uuid, unless it is complete. */
  readonly open: (env: ImageEnv, options: OpenOverlayImageOptions) => Promise<OverlayStore>;
}

export interface ImageFormat {
  readonly name: string;
  /** Lower case, with the dot. */
  readonly extensions: readonly string[];
  /** Byte n of the device is byte n of the file. */
  readonly flat: boolean;
  /** Absent when this build knows the format's name and cannot open it. Throws `ImageOpenError`. */
  readonly open?: (env: ImageEnv, options: OpenImageOptions) => Promise<Image>;
  readonly createOptions?: readonly CreateOption[];
  /** Makes a new image, durable when resolved. Throws `ImageOpenError`; then there is no file. */
  readonly create?: (env: Pick<ImageEnv, "files">, options: CreateImageOptions) => Promise<void>;
  readonly overlay?: OverlayFormat;
  /** Checks the tables of an image that nobody uses. Absent where there are none. Throws `ImageOpenError`, `BlockError`. */
  readonly check?: (env: Pick<ImageEnv, "files">, options: CheckImageOptions) => Promise<CheckReport>;
}

const RAW: ImageFormat = {
  name: "raw",
  extensions: [".raw", ".img", ".iso"],
  flat: true,
  open: openRaw,
  createOptions: [],
  create: createRaw,
  overlay: {
    create: createRawOverlay,
    open: openRawOverlay,
  },
};

/** Every format that has a name here. A new one is one more line. */
export const IMAGE_FORMATS: readonly ImageFormat[] = [
  RAW,
  {
    name: "qed",
    extensions: [".qed"],
    flat: false,
    open: openQed,
    createOptions: ["clusterBytes", "tableClusters", "backing"],
    create: createQed,
    overlay: { create: createQedOverlay, open: openQedOverlay },
    // Its lost space cannot be given back.
    check: (env, { path, repair }) => checkQed(env, { path, repair: repair === "all" }),
  },
  {
    name: "qcow2",
    extensions: [".qcow2", ".qcow"],
    flat: false,
    open: openQcow2,
    createOptions: ["clusterBytes", "version", "backing"],
    create: createQcow2,
    overlay: { create: createQcow2Overlay, open: openQcow2Overlay },
    check: checkQcow2,
  },
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
  if (choice.format.flat && options.backing !== undefined && options.backing !== "absent") {
    const why = `a ${name} image lies over nothing, but a backing image was given for it`;
    throw new ImageOpenError("backing", options.path, { why, hint: "leave the backing image out" });
  }
  return { ...choice, image: await open(env, options) };
}

function supported(formats: readonly ImageFormat[]): string {
  return formats
    .filter((format) => format.open !== undefined)
    .map((format) => format.name)
    .join(", ");
}
