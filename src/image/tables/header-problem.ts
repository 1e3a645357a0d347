/** Why the bytes at the beginning of a file are no header that we can use. */
import { ImageOpenError } from "../errors.ts";

export interface HeaderProblem {
  readonly kind: "other-format" | "unsupported" | "corrupt";
  /** In the words of the specification. */
  readonly field: string;
  /** Of the field, in the file. */
  readonly at: number;
  readonly why: string;
}

/** For whoever wanted to open an image of `format`. */
export function headerError(path: string, format: string, { kind, field, at, why }: HeaderProblem): ImageOpenError {
  if (kind === "other-format") {
    const hint = "say what it is: --format raw, for instance";
    return new ImageOpenError("not-an-image", path, { why: `it is no ${format} image`, hint });
  }
  if (kind === "unsupported") {
    const hint = "open it with the program that wrote it, or `qemu-img convert` it";
    return new ImageOpenError("unsupported-format", path, { why: `its header's ${field} ${why}`, hint });
  }
  const hint = "restore it from a backup: its header is damaged";
  return new ImageOpenError("corrupt", path, { why: `its header's ${field}, at offset ${at}, ${why}`, hint });
}
