/** How images fail: while they are opened (`ImageOpenError`), and the one place where host errors become block errors. */
import { BlockError, type BlockErrorCode } from "../block/error.ts";
import { FileError } from "../env/files.ts";

export type ImageOpenErrorCode =
  /** Somebody else uses the image in a way that excludes us. */
  | "locked"
  | "not-found"
  | "exists"
  | "permission"
  /** A directory, a pipe, a symbolic link where none is followed. */
  | "not-an-image"
  /** This build cannot open the format. */
  | "unsupported-format"
  /** No such format name. */
  | "unknown-format"
  /** A header says what cannot be. */
  | "corrupt"
  /** It lies over another image, which was not given, or the other way round. */
  | "backing"
  /** What is to be created cannot be described by the format. */
  | "bad-geometry"
  | "io";

/** The image cannot be opened. `message` says what, `why` and `hint` (what to do) are one line each. */
export class ImageOpenError extends Error {
  override readonly name = "ImageOpenError";
  readonly code: ImageOpenErrorCode;
  readonly path: string;
  readonly why: string;
  readonly hint: string;
  /** What was tried. */
  readonly doing: "open" | "create";

  constructor(code: ImageOpenErrorCode, path: string, text: ErrorText, options?: ErrorOptions) {
    const { doing = "open" } = text;
    super(`cannot ${doing} ${path}: ${text.why}`, options);
    this.doing = doing;
    this.code = code;
    this.path = path;
    this.why = text.why;
    this.hint = text.hint;
  }
}

export interface ErrorText {
  /** What was tried; "open" where absent. */
  readonly doing?: "open" | "create";
  readonly why: string;
  readonly hint: string;
}

/** By host error code: what it means here, what to do, and why it failed if the host's own words are no help. */
const OPEN_CODES: Readonly<Record<string, { code: ImageOpenErrorCode; hint: string; why?: string }>> = {
  EAGAIN: { code: "locked", hint: "stop whoever uses it; one that only reads it leaves room for another reader" },
  ENOENT: { code: "not-found", hint: "check the path", why: "there is no such file" },
  ENOTDIR: { code: "not-found", hint: "check the path", why: "there is no such file" },
  EEXIST: { code: "exists", hint: "choose another name, or remove it first", why: "there is such a file already" },
  EACCES: {
    code: "permission",
    hint: "check the owner and mode of the file and its folders",
    why: "permission denied",
  },
  EPERM: { code: "permission", hint: "check the file's owner, mode and attributes", why: "operation not permitted" },
  EROFS: { code: "permission", hint: "open the image read-only", why: "its file system is read-only" },
  EISDIR: { code: "not-an-image", hint: "name a regular file or a block device", why: "it is a directory" },
  EINVAL: { code: "not-an-image", hint: "name a regular file or a block device" },
  ELOOP: { code: "not-an-image", hint: "name the file that the link points to", why: "it is a symbolic link" },
  ENOSPC: { code: "io", hint: "make room on its file system", why: "no space is left" },
  ENOTSUP: { code: "io", hint: "put the image on a file system that has locks" },
};

/** What opening (or creating, or locking) `path` failed with, for the user. Anything but a `FileError` is passed on. */
export function imageOpenErrorFrom(error: unknown, path: string, doing: "open" | "create" = "open"): unknown {
  if (!(error instanceof FileError)) return error;
  const known = OPEN_CODES[error.code] ?? { code: "io", hint: "look at the kernel log of this host" };
  const why = known.why ?? withoutPath(error.message, path);
  return new ImageOpenError(known.code, path, { doing, why, hint: known.hint }, { cause: error });
}

/** "cannot lock /vm/a.raw: why" → "why": the path is said once. */
function withoutPath(message: string, path: string): string {
  const at = message.indexOf(`${path}: `);
  return at === -1 ? message : message.slice(at + path.length + 2);
}

const BLOCK_CODES: Readonly<Record<string, BlockErrorCode>> = {
  ENOSPC: "no-space",
  EDQUOT: "no-space",
  EFBIG: "no-space",
  ENOMEM: "no-memory",
  EACCES: "permission",
  EPERM: "permission",
  EROFS: "read-only",
};

/**
 * The block error for a host error: "io" unless something better is known. A `BlockError` is passed on, and so is
 * anything that is not a `FileError`: that is a bug, not a failure.
 */
export function blockErrorFrom(error: unknown): unknown {
  if (!(error instanceof FileError)) return error;
  return new BlockError(BLOCK_CODES[error.code] ?? "io", error.message, { cause: error });
}
