/** Bytes on disk are wrong: a header field or table entry that no writer can have meant. */
import { BlockError } from "../../block/error.ts";

/** The operation failed because of what the image's tables say. Nothing was changed. */
export class ImageCorruptError extends BlockError {
  /** What is wrong: "L1 table entry", "L2 table entry", … */
  readonly field: string;
  /** Where in the file it is, in bytes. */
  readonly at: number;

  constructor(path: string, { field, at, why }: { field: string; at: number; why: string }) {
    super("io", `${path} is corrupt: the ${field} at offset ${at} ${why}`);
    this.field = field;
    this.at = at;
  }
}
