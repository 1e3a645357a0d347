/**
 * Replies as they leave, in the three dialects a connection may speak.
 *
 * Simple reply (16 bytes)        Structured chunk (20 bytes)      Extended chunk (32 bytes)
 *    0  u32  magic 0x67446698       0  u32  magic 0x668e33ef         0  u32  magic 0x6e8a278c
 *    4  u32  error                  4  u16  flags (bit 0: DONE)      4  u16  flags
 *    8  u64  cookie                 6  u16  type                     6  u16  type
 *   16  data, after READ            8  u64  cookie                   8  u64  cookie
 *                                  16  u32  payload length          16  u64  offset of the request
 *                                  20  payload                      24  u64  payload length
 *                                                                   32  payload
 * Payloads: OFFSET_DATA  u64 offset, data · ERROR  u32 error, u16 length, message · BLOCK_STATUS  u32 context id,
 * then u32 length, u32 flags each · BLOCK_STATUS_EXT  u32 context id, u32 count, then u64 length, u64 flags each.
 *
 * Source: doc/proto.md, "Simple reply message", "Structured reply chunk message", "Extended reply chunk message".
 */
import {
  EXTENDED_REPLY_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_REPLY_BYTES,
} from "../constants.ts";
import type { StatusExtent } from "./export.ts";
import type { Request } from "./request.ts";

export type Dialect = "simple" | "structured" | "extended";

/** Room that any reply without data needs at most. */
export const SMALL_REPLY_BYTES = 160;
const MESSAGE_BYTES_MAX = 100;
const OFFSET_BYTES = 8;

export interface DataPiece {
  offset: number;
  length: number;
  done: boolean;
}

export interface Outcome {
  /** A number of the protocol; 0 is success. */
  readonly error: number;
  /** Our own words in ASCII, never the client's. */
  readonly message: string;
}

export interface ContextStatus {
  readonly contextId: number;
  readonly extents: readonly StatusExtent[];
  readonly done: boolean;
}

/** Writes the replies of one connection. `out` has room for what is put at `at`; nothing is kept. */
export class ReplyEncoder {
  readonly dialect: Dialect;
  /** Bytes before the data of a READ reply. */
  readonly dataHeaderBytes: number;
  readonly #chunkHeaderBytes: number;

  constructor(dialect: Dialect) {
    this.dialect = dialect;
    this.#chunkHeaderBytes = dialect === "extended" ? EXTENDED_REPLY_BYTES : STRUCTURED_REPLY_BYTES;
    this.dataHeaderBytes = dialect === "simple" ? SIMPLE_REPLY_BYTES : this.#chunkHeaderBytes + OFFSET_BYTES;
  }

  /** Writes what precedes the data of `piece`. */
  putDataHeader(out: Buffer, at: number, request: Request, piece: DataPiece): void {
    if (this.dialect === "simple") {
      putSimple(out, at, request, 0);
      return;
    }
    const flags = piece.done ? NBD_REPLY_FLAG_DONE : 0;
    this.#putChunk(out, at, request, { flags, type: NBD_REPLY_TYPE_OFFSET_DATA, payload: piece.length + OFFSET_BYTES });
    putU64(out, at + this.#chunkHeaderBytes, piece.offset);
  }

  /** Writes the last (or only) word on a request: success without data, or a failure. Returns its length. */
  putOutcome(out: Buffer, at: number, request: Request, outcome: Outcome): number {
    // Without extended headers, commands that return no data are answered by the shorter simple reply.
    if (this.dialect === "simple" || (this.dialect === "structured" && !needsChunks(request.command))) {
      putSimple(out, at, request, outcome.error);
      return SIMPLE_REPLY_BYTES;
    }
    const flags = NBD_REPLY_FLAG_DONE;
    if (outcome.error === 0) {
      this.#putChunk(out, at, request, { flags, type: NBD_REPLY_TYPE_NONE, payload: 0 });
      return this.#chunkHeaderBytes;
    }
    const message = outcome.message.slice(0, MESSAGE_BYTES_MAX);
    const payload = 6 + message.length;
    this.#putChunk(out, at, request, { flags, type: NBD_REPLY_TYPE_ERROR, payload });
    const body = at + this.#chunkHeaderBytes;
    out.writeUInt32BE(outcome.error, body);
    out.writeUInt16BE(message.length, body + 4);
    out.write(message, body + 6, "latin1");
    return this.#chunkHeaderBytes + payload;
  }

  /** One chunk of a BLOCK_STATUS reply, in a buffer of its own. */
  statusChunk(request: Request, status: ContextStatus): Buffer {
    const wide = this.dialect === "extended";
    const payload = wide ? 8 + status.extents.length * 16 : 4 + status.extents.length * 8;
    const out = Buffer.allocUnsafe(this.#chunkHeaderBytes + payload);
    const flags = status.done ? NBD_REPLY_FLAG_DONE : 0;
    const type = wide ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
    this.#putChunk(out, 0, request, { flags, type, payload });
    let at = out.writeUInt32BE(status.contextId, this.#chunkHeaderBytes);
    if (wide) at = out.writeUInt32BE(status.extents.length, at);
    for (const extent of status.extents) {
      if (wide) {
        putU64(out, at, extent.length);
        putU64(out, at + 8, extent.flags);
        at += 16;
      } else {
        at = out.writeUInt32BE(extent.length, at);
        at = out.writeUInt32BE(extent.flags, at);
      }
    }
    return out;
  }

  #putChunk(out: Buffer, at: number, request: Request, chunk: { flags: number; type: number; payload: number }): void {
    const wide = this.dialect === "extended";
    out.writeUInt32BE(wide ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC, at);
    out.writeUInt16BE(chunk.flags, at + 4);
    out.writeUInt16BE(chunk.type, at + 6);
    out.writeUInt32BE(request.cookieHigh, at + 8);
    out.writeUInt32BE(request.cookieLow, at + 12);
    if (wide) {
      out.writeUInt32BE(request.offsetHigh, at + 16);
      out.writeUInt32BE(request.offsetLow, at + 20);
      putU64(out, at + 24, chunk.payload);
    } else {
      out.writeUInt32BE(chunk.payload, at + 16);
    }
  }
}

function needsChunks(command: number): boolean {
  return command === NBD_CMD_READ || command === NBD_CMD_BLOCK_STATUS;
}

function putSimple(out: Buffer, at: number, request: Request, error: number): void {
  out.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, at);
  out.writeUInt32BE(error, at + 4);
  out.writeUInt32BE(request.cookieHigh, at + 8);
  out.writeUInt32BE(request.cookieLow, at + 12);
}

function putU64(out: Buffer, at: number, value: number): void {
  out.writeUInt32BE(Math.floor(value / 0x1_0000_0000), at);
  out.writeUInt32BE(value % 0x1_0000_0000, at + 4);
}
