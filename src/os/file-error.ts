/** Turns what the kernel says into a `FileError`. Inside `src/os`, and nowhere else, error numbers are known. */
import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";
import { FileError } from "../env/files.ts";

export const { EAGAIN, EINTR, EINVAL, ENODEV, ENOSYS, ENXIO, EOPNOTSUPP } = constants.errno;

/** `what` names the operation and the path: "cannot open /vm/disk.raw". `errno` is positive, as in C. */
export function errnoError(what: string, errno: number, options?: ErrorOptions): FileError {
  const { code, text } = describe(errno);
  return new FileError(code, `${what}: ${text} (${code})`, options);
}

/** The same for what a call of Node threw or passed to its callback. A `FileError` stays as it is; so does a bug. */
export function fileError(what: string, cause: unknown): Error {
  if (cause instanceof FileError) return cause;
  if (!(cause instanceof Error)) return new Error(what, { cause });
  const { errno } = cause as NodeJS.ErrnoException;
  // Errors of Node's own argument checks have a code ("ERR_OUT_OF_RANGE") and no number: they are bugs of the caller.
  return errno === undefined ? cause : errnoError(what, -errno, { cause });
}

/** The name and the meaning of an error number. */
export function describe(errno: number): { readonly code: string; readonly text: string } {
  const [code, text] = getSystemErrorMap().get(-errno) ?? [];
  // libuv speaks of sockets here.
  if (errno === EOPNOTSUPP) return { code: "ENOTSUP", text: "operation not supported" };
  if (code !== undefined && text !== undefined) return { code, text };
  const named = Object.entries(constants.errno).find(([, number]) => number === errno);
  return { code: named?.[0] ?? `E${errno}`, text: `error number ${errno}` };
}

/** Whether `errno` says that this kernel or file system cannot do such a thing at all, whatever the range. */
export function isUnsupported(errno: number): boolean {
  return errno === EOPNOTSUPP || errno === ENOSYS || errno === ENODEV;
}
