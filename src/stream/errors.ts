/** How a read from the source fails. Told apart by class, because a local store fails with the same codes. */
import { BlockError } from "../block/error.ts";

/** The source itself answered with an error: asking again at once would bring the same. `code` is what it said. */
export class SourceAnsweredError extends BlockError {
  readonly offset: number;
  readonly length: number;

  constructor(cause: BlockError, offset: number, length: number) {
    super(cause.code, `the source cannot give bytes ${offset}+${length}: ${cause.message}`, { cause });
    this.offset = offset;
    this.length = length;
  }
}

/** The source has been away for longer than the policy lets reads wait. Code "io". */
export class SourceLostError extends BlockError {
  constructor(why: string) {
    super("io", `the source is away: ${why}`);
  }
}

/** What answers now is not the disk that the copy was begun from. Not one byte of it may be used. */
export class SourceMismatchError extends Error {
  override readonly name = "SourceMismatchError";
}

/** One line for a status display. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
