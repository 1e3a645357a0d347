/**
 * The only place that knows both our error codes and NBD's numbers. Host error numbers never reach the wire.
 * Source: doc/proto.md, "Error values".
 */
import type { BlockErrorCode } from "../block/error.ts";
import {
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
} from "./constants.ts";

/** The number to send for a failure of `command` with `flags`: some numbers are allowed for certain commands only. */
export function nbdErrnoOf(code: BlockErrorCode, command: number, flags: number): number {
  switch (code) {
    case "io":
      return NBD_EIO;
    case "no-memory":
      return NBD_ENOMEM;
    case "read-only":
    case "permission":
      return NBD_EPERM;
    case "invalid":
      return NBD_EINVAL;
    case "shutting-down":
      return NBD_ESHUTDOWN;
    case "no-space":
      return canRunOutOfSpace(command) ? NBD_ENOSPC : NBD_EIO;
    case "out-of-range":
      return canRunOutOfSpace(command) ? NBD_ENOSPC : NBD_EINVAL;
    case "not-supported":
      return command === NBD_CMD_WRITE_ZEROES && (flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 ? NBD_ENOTSUP : NBD_EINVAL;
    case "too-big":
      return command === NBD_CMD_READ && (flags & NBD_CMD_FLAG_DF) !== 0 ? NBD_EOVERFLOW : NBD_EINVAL;
  }
}

function canRunOutOfSpace(command: number): boolean {
  return command === NBD_CMD_WRITE || command === NBD_CMD_WRITE_ZEROES;
}

/** What a number from a server means to us. Unknown numbers count as EINVAL, as the specification asks. */
export function blockErrorCodeOf(nbdErrno: number): BlockErrorCode {
  switch (nbdErrno) {
    case NBD_EPERM:
      return "permission";
    case NBD_EIO:
      return "io";
    case NBD_ENOMEM:
      return "no-memory";
    case NBD_ENOSPC:
      return "no-space";
    case NBD_EOVERFLOW:
      return "too-big";
    case NBD_ENOTSUP:
      return "not-supported";
    case NBD_ESHUTDOWN:
      return "shutting-down";
    default:
      return "invalid";
  }
}
