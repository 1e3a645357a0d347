/**
 * The NBD protocol in the plainest way, for tests: written from doc/proto.md alone, with numbers of its own, so that a
 * mistake in the program's codec cannot hide behind the same mistake here. Slow and trusting: 64-bit values are BigInt,
 * everything is concatenated, and whatever does not parse is an error.
 */

export const OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  UNSUP: 2 ** 31 + 1,
  POLICY: 2 ** 31 + 2,
  INVALID: 2 ** 31 + 3,
  TLS_REQD: 2 ** 31 + 5,
  UNKNOWN: 2 ** 31 + 6,
  TOO_BIG: 2 ** 31 + 9,
  EXT_HEADER_REQD: 2 ** 31 + 10,
} as const;

export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export const FLAG = { FUA: 1, NO_HOLE: 2, DF: 4, REQ_ONE: 8, FAST_ZERO: 16, PAYLOAD_LEN: 32 } as const;

export const ERR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 2 ** 15 + 1,
  ERROR_OFFSET: 2 ** 15 + 2,
} as const;

export type WireDialect = "simple" | "structured" | "extended";
export const DIALECTS: readonly WireDialect[] = ["simple", "structured", "extended"];

const SIMPLE_BYTES = 16;
const STRUCTURED_BYTES = 20;
const EXTENDED_BYTES = 32;
const OPTION_REPLY_HEADER_BYTES = 20;
export const GREETING_BYTES = 18;

// ---- building -----------------------------------------------------------------------------------------------------

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(/\s/g, ""), "hex");
}

export function clientFlags(flags = 3): Buffer {
  return u32(flags);
}

/** `length` may lie about `data`. */
export function option(type: number, data: Buffer | string = "", length?: number): Buffer {
  const body = Buffer.from(data as string);
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(type), u32(length ?? body.length), body]);
}

function counted(text: Buffer | string): Buffer {
  const body = Buffer.from(text as string);
  return Buffer.concat([u32(body.length), body]);
}

/** The data of INFO and GO. */
export function infoData(name: Buffer | string, types: readonly number[] = []): Buffer {
  return Buffer.concat([counted(name), u16(types.length), ...types.map(u16)]);
}

/** The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function contextData(name: Buffer | string, queries: readonly string[] = []): Buffer {
  return Buffer.concat([counted(name), u32(queries.length), ...queries.map(counted)]);
}

export interface WireRequest {
  readonly command: number;
  readonly flags?: number;
  readonly cookie?: number | bigint;
  readonly offset?: number | bigint;
  readonly length?: number | bigint;
  /** Follows the header. Its length is the request's, unless `length` is given as well. */
  readonly payload?: Buffer;
}

/** In the extended dialect, PAYLOAD_LEN is set for a request with a payload, unless `flags` are given. */
export function request(wanted: WireRequest, dialect: WireDialect): Buffer {
  const { command, cookie = 1, offset = 0, payload } = wanted;
  const length = wanted.length ?? payload?.length ?? 0;
  const wide = dialect === "extended";
  const flags = wanted.flags ?? (wide && payload !== undefined ? FLAG.PAYLOAD_LEN : 0);
  return Buffer.concat([
    u32(wide ? 0x21e41c71 : 0x25609513),
    u16(flags),
    u16(command),
    u64(cookie),
    u64(offset),
    wide ? u64(length) : u32(Number(length)),
    payload ?? Buffer.alloc(0),
  ]);
}

// ---- parsing ------------------------------------------------------------------------------------------------------

/** Something the protocol does not allow was received. */
export class WireError extends Error {
  override readonly name = "WireError";
}

/** A message and where it ends; undefined when more bytes are needed. */
type Parsed<T> = { readonly message: T; readonly end: number } | undefined;

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

export function parseOptionReply(bytes: Buffer, at: number): Parsed<OptionReply> {
  if (bytes.length < at + OPTION_REPLY_HEADER_BYTES) return undefined;
  const magic = bytes.toString("hex", at, at + 8);
  if (magic !== "0003e889045565a9") throw new WireError(`option reply magic ${magic}`);
  const start = at + OPTION_REPLY_HEADER_BYTES;
  const end = start + bytes.readUInt32BE(at + 16);
  if (bytes.length < end) return undefined;
  const message = {
    option: bytes.readUInt32BE(at + 8),
    type: bytes.readUInt32BE(at + 12),
    data: Buffer.from(bytes.subarray(start, end)),
  };
  return { message, end };
}

/** Whether more replies to the same option follow. */
export function isLastReply({ type }: OptionReply): boolean {
  return type === REP.ACK || type >= 2 ** 31;
}

/** One chunk of a structured or extended reply, or a simple reply put into the same form. */
export interface Chunk {
  readonly form: WireDialect;
  readonly done: boolean;
  readonly type: number;
  readonly cookie: bigint;
  /** Of the request; extended replies only. */
  readonly offset: bigint | undefined;
  /** From a simple reply or an error chunk; otherwise 0. */
  readonly error: number;
  readonly payload: Buffer;
}

/** `readLength` tells how much data follow a successful simple reply: of a READ its length, otherwise 0. */
export function parseChunk(
  bytes: Buffer,
  at: number,
  { dialect, readLength }: { dialect: WireDialect; readLength: (cookie: bigint) => number },
): Parsed<Chunk> {
  if (bytes.length < at + 4) return undefined;
  const magic = bytes.readUInt32BE(at);
  const isSimple = magic === 0x67446698 && dialect !== "extended";
  if (isSimple) return parseSimple(bytes, at, dialect === "simple" ? readLength : () => 0);
  if (magic === 0x668e33ef && dialect === "structured") return parseWide(bytes, at, "structured");
  if (magic === 0x6e8a278c && dialect === "extended") return parseWide(bytes, at, "extended");
  throw new WireError(`reply magic ${magic.toString(16)} in the ${dialect} dialect`);
}

function parseSimple(bytes: Buffer, at: number, readLength: (cookie: bigint) => number): Parsed<Chunk> {
  if (bytes.length < at + SIMPLE_BYTES) return undefined;
  const error = bytes.readUInt32BE(at + 4);
  const cookie = bytes.readBigUInt64BE(at + 8);
  const start = at + SIMPLE_BYTES;
  const end = start + (error === 0 ? readLength(cookie) : 0);
  if (bytes.length < end) return undefined;
  const payload = Buffer.from(bytes.subarray(start, end));
  return { message: { form: "simple", done: true, type: CHUNK.NONE, cookie, offset: undefined, error, payload }, end };
}

function parseWide(bytes: Buffer, at: number, form: "structured" | "extended"): Parsed<Chunk> {
  const headerBytes = form === "extended" ? EXTENDED_BYTES : STRUCTURED_BYTES;
  if (bytes.length < at + headerBytes) return undefined;
  const flags = bytes.readUInt16BE(at + 4);
  if (flags > 1) throw new WireError(`reply flags ${flags}`);
  const type = bytes.readUInt16BE(at + 6);
  const length = form === "extended" ? Number(bytes.readBigUInt64BE(at + 24)) : bytes.readUInt32BE(at + 16);
  const end = at + headerBytes + length;
  if (bytes.length < end) return undefined;
  const payload = Buffer.from(bytes.subarray(at + headerBytes, end));
  const chunk: Chunk = {
    form,
    done: flags === 1,
    type,
    cookie: bytes.readBigUInt64BE(at + 8),
    offset: form === "extended" ? bytes.readBigUInt64BE(at + 16) : undefined,
    error: type >= 2 ** 15 ? payload.readUInt32BE(0) : 0,
    payload,
  };
  checkChunk(chunk);
  return { message: chunk, end };
}

/** What the specification says of each type's payload. */
function checkChunk({ type, done, payload, form }: Chunk): void {
  const { length } = payload;
  const good = () => {
    switch (type) {
      case CHUNK.NONE:
        return done && length === 0;
      case CHUNK.OFFSET_DATA:
        return length > 8;
      case CHUNK.OFFSET_HOLE:
        return length === 12;
      case CHUNK.BLOCK_STATUS:
        return form === "structured" && length > 4 && (length - 4) % 8 === 0;
      case CHUNK.BLOCK_STATUS_EXT:
        return form === "extended" && length > 8 && length === 8 + payload.readUInt32BE(4) * 16;
      case CHUNK.ERROR:
        return length >= 6 && length === 6 + payload.readUInt16BE(4) && payload.readUInt32BE(0) !== 0;
      default:
        return false;
    }
  };
  if (!good()) throw new WireError(`a chunk of type ${type} with ${length} bytes: ${payload.toString("hex", 0, 32)}`);
}

export interface WireExtent {
  readonly length: number;
  readonly flags: number;
}

export function parseStatus({ type, payload }: Chunk): { contextId: number; extents: WireExtent[] } {
  const wide = type === CHUNK.BLOCK_STATUS_EXT;
  const extents: WireExtent[] = [];
  for (let at = wide ? 8 : 4; at < payload.length; at += wide ? 16 : 8) {
    const length = wide ? Number(payload.readBigUInt64BE(at)) : payload.readUInt32BE(at);
    const flags = wide ? Number(payload.readBigUInt64BE(at + 8)) : payload.readUInt32BE(at + 4);
    if (length === 0) throw new WireError("an extent of no bytes");
    extents.push({ length, flags });
  }
  return { contextId: payload.readUInt32BE(0), extents };
}

/** All chunks of one request. */
export interface WholeReply {
  readonly error: number;
  readonly chunks: readonly Chunk[];
}

/** The data of a successful READ of [offset, offset + length); throws when chunks overlap, stray, or leave a gap. */
export function readData({ error, chunks }: WholeReply, offset: number, length: number): Buffer {
  if (error !== 0) throw new WireError(`the read failed with ${error}`);
  const [first] = chunks;
  if (first?.form === "simple") return first.payload;
  const into = Buffer.alloc(length);
  let covered = 0;
  const spans: [number, number][] = [];
  for (const { type, payload } of chunks) {
    if (type === CHUNK.NONE) continue;
    if (type !== CHUNK.OFFSET_DATA) throw new WireError(`a chunk of type ${type} in a reply to READ`);
    const start = Number(payload.readBigUInt64BE(0)) - offset;
    const end = start + payload.length - 8;
    if (start < 0 || end > length) throw new WireError("data outside the request");
    if (spans.some(([from, to]) => start < to && from < end)) throw new WireError("data that overlap");
    spans.push([start, end]);
    payload.copy(into, start, 8);
    covered += end - start;
  }
  if (covered !== length) throw new WireError(`${covered} bytes of ${length} arrived`);
  return into;
}
