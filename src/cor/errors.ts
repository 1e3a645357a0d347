/** How overlays fail: when they are made or opened (`OverlayRefusedError`), and host errors as block errors. */
import { BlockError } from "../block/error.ts";
import { FileError } from "../env/files.ts";

export type OverlayRefusal =
  /** There is no map beside the image. */
  | "map-missing"
  /** There is a map already. */
  | "exists"
  /** The map is no map of ours, or of a later version. */
  | "not-a-map"
  /** Both superblocks, or both slots of a sector, are bad. */
  | "map-corrupt"
  /** The map belongs to another disk, size or source than was asked for. */
  | "mismatch"
  | "io";

/** The overlay must not be used. `message` says what and why, `hint` what to do; one line each. */
export class OverlayRefusedError extends Error {
  override readonly name = "OverlayRefusedError";
  readonly code: OverlayRefusal;
  readonly hint: string;

  constructor(code: OverlayRefusal, message: string, hint: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.hint = hint;
  }
}

const NO_SPACE: ReadonlySet<string> = new Set(["ENOSPC", "EDQUOT", "EFBIG"]);

/** A `FileError` as a `BlockError`; anything else is passed on. */
export function blockErrorFrom(error: unknown): unknown {
  if (!(error instanceof FileError)) return error;
  return new BlockError(NO_SPACE.has(error.code) ? "no-space" : "io", error.message, { cause: error });
}
