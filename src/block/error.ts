/** The one way in which a block operation fails as expected. Wire and host error numbers are the edges' business. */

export type BlockErrorCode =
  | "io"
  | "no-space"
  | "no-memory"
  | "out-of-range"
  | "read-only"
  | "permission"
  | "invalid"
  | "not-supported"
  | "too-big"
  | "shutting-down";

export class BlockError extends Error {
  override readonly name = "BlockError";
  readonly code: BlockErrorCode;

  constructor(code: BlockErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Throws unless [offset, offset + length) lies within a device of `sizeBytes`. */
export function checkRange(offset: number, length: number, sizeBytes: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= sizeBytes)) {
    throw new BlockError(
      "out-of-range",
      `bytes ${offset}+${length} are not within the ${sizeBytes} bytes of the device`,
    );
  }
}
