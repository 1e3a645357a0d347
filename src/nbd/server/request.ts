/**
 * Requests as they arrive, and whether an export may serve them.
 *
 * Compact request (28 bytes)            Extended request (32 bytes)
 *    0  u32  magic 0x25609513              0  u32  magic 0x21e41c71
 *    4  u16  command flags                 4  u16  command flags
 *    6  u16  command                       6  u16  command
 *    8  u64  cookie (opaque)               8  u64  cookie (opaque)
 *   16  u64  offset                       16  u64  offset
 *   24  u32  length                       24  u64  length
 *
 * Source: doc/proto.md, "Request message" and "Extended request message".
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EPERM,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_REQUEST_MAGIC,
} from "../constants.ts";

/** One request. A connection decodes into one such object over and over; `copyRequest` keeps one. */
export interface Request {
  flags: number;
  command: number;
  /** The eight opaque bytes of the cookie, as two halves. */
  cookieHigh: number;
  cookieLow: number;
  /** The offset as it came, in two halves: extended replies echo it. */
  offsetHigh: number;
  offsetLow: number;
  /** Infinity when above 2^53−1. */
  offset: number;
  /** Bytes the command applies to. Infinity when above 2^53−1. */
  length: number;
}

export function emptyRequest(): Request {
  return { flags: 0, command: 0, cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0, offset: 0, length: 0 };
}

export function copyRequest(request: Request): Request {
  return { ...request };
}

/** Decodes the header at `at` into `into`; false when the magic number is wrong. */
export function decodeRequest(bytes: Buffer, at: number, extended: boolean, into: Request): boolean {
  if (bytes.readUInt32BE(at) !== (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) return false;
  into.flags = bytes.readUInt16BE(at + 4);
  into.command = bytes.readUInt16BE(at + 6);
  into.cookieHigh = bytes.readUInt32BE(at + 8);
  into.cookieLow = bytes.readUInt32BE(at + 12);
  into.offsetHigh = bytes.readUInt32BE(at + 16);
  into.offsetLow = bytes.readUInt32BE(at + 20);
  into.offset = u64(into.offsetHigh, into.offsetLow);
  into.length = extended ? u64(bytes.readUInt32BE(at + 24), bytes.readUInt32BE(at + 28)) : bytes.readUInt32BE(at + 24);
  return true;
}

function u64(high: number, low: number): number {
  return high > 0x1f_ffff ? Number.POSITIVE_INFINITY : high * 0x1_0000_0000 + low;
}

/**
 * How many payload bytes follow the header. They must be read even when the request is refused.
 *
 * An extended WRITE must set PAYLOAD_LEN, but QEMU (10.0, as a client) does not, and sends its payload all the same. QEMU's
 * own server takes that for granted too; a client that means no payload by it is not known.
 */
export function payloadBytes(request: Request, extended: boolean): number {
  if (request.command === NBD_CMD_WRITE) return request.length;
  return extended && (request.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0 ? request.length : 0;
}

/** What the connection agreed on, as far as it decides which requests are legal. */
export interface RequestRules {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly structured: boolean;
  readonly extended: boolean;
  readonly blockStatus: boolean;
  readonly requestBytesMax: number;
}

/** Flags each command may carry, besides FUA, which all of them may. PAYLOAD_LEN is looked at separately. */
function allowedFlags(command: number, rules: RequestRules): number {
  switch (command) {
    case NBD_CMD_READ:
      return rules.structured ? NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF : NBD_CMD_FLAG_FUA;
    case NBD_CMD_WRITE:
      return rules.extended ? NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN : NBD_CMD_FLAG_FUA;
    case NBD_CMD_WRITE_ZEROES:
      return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
      return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    case NBD_CMD_FLUSH:
    case NBD_CMD_TRIM:
    case NBD_CMD_CACHE:
    case NBD_CMD_DISC:
      return NBD_CMD_FLAG_FUA;
    default:
      return 0;
  }
}

/** The wire error for a request that must not reach the device, or 0. */
export function refusal(request: Request, rules: RequestRules): number {
  const { command, flags, offset, length } = request;
  if (command > NBD_CMD_BLOCK_STATUS) return NBD_EINVAL;
  if ((flags & ~allowedFlags(command, rules)) !== 0) return NBD_EINVAL;
  if (command === NBD_CMD_FLUSH) return offset === 0 && length === 0 ? 0 : NBD_EINVAL;
  if (rules.readOnly && isWriting(command)) return NBD_EPERM;
  if (!(offset + length <= rules.sizeBytes)) return isGrowing(command) ? NBD_ENOSPC : NBD_EINVAL;
  if ((command === NBD_CMD_READ || command === NBD_CMD_WRITE) && length > rules.requestBytesMax) return NBD_EINVAL;
  if (command === NBD_CMD_BLOCK_STATUS && (!rules.blockStatus || length === 0)) return NBD_EINVAL;
  return 0;
}

function isWriting(command: number): boolean {
  return command === NBD_CMD_WRITE || command === NBD_CMD_TRIM || command === NBD_CMD_WRITE_ZEROES;
}

function isGrowing(command: number): boolean {
  return command === NBD_CMD_WRITE || command === NBD_CMD_WRITE_ZEROES;
}
