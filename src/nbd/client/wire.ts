/**
 * Bytes of the handshake and of request headers. proto.md, "Newstyle negotiation", "Option types" and "Request message".
 * All integers are big-endian.
 *
 * ```
 * option        0 u64 IHAVEOPT   8 u32 option       12 u32 length                          16 data
 * option reply  0 u64 magic      8 u32 option       12 u32 type       16 u32 length        20 data
 * request       0 u32 magic      4 u16 flags  6 u16 type   8 u64 cookie  16 u64 offset  24 u32 length   (28)
 * extended      0 u32 magic      4 u16 flags  6 u16 type   8 u64 cookie  16 u64 offset  24 u64 length   (32)
 * ```
 */
import {
  EXTENDED_REQUEST_BYTES,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_MAX_STRING,
  NBD_OPTS_MAGIC_HIGH,
  NBD_OPTS_MAGIC_LOW,
  NBD_REP_MAGIC_HIGH,
  NBD_REP_MAGIC_LOW,
  NBD_REQUEST_MAGIC,
  OPTION_BYTES,
  OPTION_REPLY_BYTES,
  REQUEST_BYTES,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";

/** An option reply longer than this is refused before anything is allocated: twice the longest string, and then some. */
export const OPTION_REPLY_DATA_MAX = 32 * 1024;

const TWO_32 = 2 ** 32;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientDecoder = new TextDecoder("utf-8", { ignoreBOM: true });

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Values above 2^53−1 become Infinity, so that the one range check that follows rejects them. */
export function readU64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  return high >= 0x20_0000 ? Infinity : high * TWO_32 + view.getUint32(at + 4);
}

export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value % TWO_32);
}

/** Bytes of a string as the protocol allows it. Throws a RangeError: such a name comes from our own side. */
export function encodeString(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  if (bytes.length > NBD_MAX_STRING)
    throw new RangeError(`a name may have ${NBD_MAX_STRING} bytes, not ${bytes.length}`);
  if (text.includes("\0") || !text.isWellFormed()) throw new RangeError("a name may hold any character but NUL");
  return bytes;
}

/** A peer's string: at most 4096 bytes, UTF-8, no NUL. `what` names it in the error. */
export function decodeString(bytes: Uint8Array, what: string): string {
  if (bytes.length > NBD_MAX_STRING) throw new NbdProtocolError(`${what} of ${bytes.length} bytes is too long`);
  if (bytes.includes(0)) throw new NbdProtocolError(`${what} contains a NUL`);
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    throw new NbdProtocolError(`${what} is not UTF-8`, { cause });
  }
}

/** A peer's explanation of an error: whatever it is, it must not hide the error itself. */
export function decodeExplanation(bytes: Uint8Array): string {
  return lenientDecoder.decode(bytes.subarray(0, NBD_MAX_STRING));
}

export function encodeOption(option: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(OPTION_BYTES + data.length);
  const view = viewOf(bytes);
  view.setUint32(0, NBD_OPTS_MAGIC_HIGH);
  view.setUint32(4, NBD_OPTS_MAGIC_LOW);
  view.setUint32(8, option);
  view.setUint32(12, data.length);
  bytes.set(data, OPTION_BYTES);
  return bytes;
}

/** Data of INFO and GO. */
export function encodeInfoRequest(exportName: string, infoTypes: readonly number[]): Uint8Array {
  const name = encodeString(exportName);
  const bytes = new Uint8Array(4 + name.length + 2 + 2 * infoTypes.length);
  const view = viewOf(bytes);
  view.setUint32(0, name.length);
  bytes.set(name, 4);
  view.setUint16(4 + name.length, infoTypes.length);
  for (const [index, type] of infoTypes.entries()) view.setUint16(6 + name.length + 2 * index, type);
  return bytes;
}

/** Data of SET_META_CONTEXT and LIST_META_CONTEXT. */
export function encodeMetaContextQuery(exportName: string, queries: readonly string[]): Uint8Array {
  const strings = [encodeString(exportName), ...queries.map(encodeString)];
  const total = strings.reduce((sum, string) => sum + 4 + string.length, 4);
  const bytes = new Uint8Array(total);
  const view = viewOf(bytes);
  let at = 0;
  for (const [index, string] of strings.entries()) {
    view.setUint32(at, string.length);
    bytes.set(string, at + 4);
    at += 4 + string.length;
    if (index > 0) continue;
    view.setUint32(at, queries.length);
    at += 4;
  }
  return bytes;
}

export interface OptionReplyHeader {
  readonly type: number;
  readonly length: number;
}

/** Checks all that can be checked before the reply's data is read. */
export function decodeOptionReply(bytes: Uint8Array, option: number): OptionReplyHeader {
  const view = viewOf(bytes.subarray(0, OPTION_REPLY_BYTES));
  if (view.getUint32(0) !== NBD_REP_MAGIC_HIGH || view.getUint32(4) !== NBD_REP_MAGIC_LOW) {
    throw new NbdProtocolError("an option reply begins with a wrong magic number");
  }
  const echoed = view.getUint32(8);
  if (echoed !== option)
    throw new NbdProtocolError(`a reply to option ${echoed} came, where option ${option} was asked`);
  const length = view.getUint32(16);
  if (length > OPTION_REPLY_DATA_MAX) throw new NbdProtocolError(`an option reply of ${length} bytes is too long`);
  return { type: view.getUint32(12), length };
}

/** What goes into a request's header. */
export interface RequestHeader {
  readonly command: number;
  readonly flags: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
  /** The effect's length, or the payload's. */
  readonly length: number;
}

/** Writes a header at `at` of `view`; returns its length. A compact one holds lengths below 4 GiB only. */
export function writeRequest(view: DataView, at: number, header: RequestHeader, extended: boolean): number {
  view.setUint32(at, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
  view.setUint16(at + 4, header.flags);
  view.setUint16(at + 6, header.command);
  view.setUint32(at + 8, header.cookieHigh);
  view.setUint32(at + 12, header.cookieLow);
  writeU64(view, at + 16, header.offset);
  if (extended) {
    writeU64(view, at + 24, header.length);
    return EXTENDED_REQUEST_BYTES;
  }
  view.setUint32(at + 24, header.length);
  return REQUEST_BYTES;
}
