/**
 * Options of the handshake and their replies.
 *
 * Option (client)                       Option reply (server)
 *    0  u64  magic "IHAVEOPT"              0  u64  magic 0x0003e889045565a9
 *    8  u32  option                        8  u32  option, echoed
 *   12  u32  data length                  12  u32  reply type
 *   16  data                              16  u32  data length
 *                                         20  data
 *
 * INFO, GO:            u32 name length, name, u16 count, count × u16 information type
 * LIST/SET_META_CONTEXT:  u32 name length, name, u32 count, count × (u32 length, query)
 *
 * Source: doc/proto.md, "Fixed newstyle negotiation", "Option types".
 */
import { NBD_MAX_STRING, NBD_REP_MAGIC_HIGH, NBD_REP_MAGIC_LOW, OPTION_REPLY_BYTES } from "../constants.ts";

/** The client's data do not have the form that the option asks for. */
export class OptionFormError extends Error {
  override readonly name = "OptionFormError";
}

export interface InfoRequest {
  readonly name: string;
  readonly types: readonly number[];
}

export interface ContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

/** Encodes one reply; `data` may be text (a message for people). */
export function optionReply(option: number, type: number, data: Buffer | string = Buffer.alloc(0)): Buffer {
  const body = typeof data === "string" ? Buffer.from(data, "utf8") : data;
  const reply = Buffer.alloc(OPTION_REPLY_BYTES + body.length);
  reply.writeUInt32BE(NBD_REP_MAGIC_HIGH, 0);
  reply.writeUInt32BE(NBD_REP_MAGIC_LOW, 4);
  reply.writeUInt32BE(option, 8);
  reply.writeUInt32BE(type, 12);
  reply.writeUInt32BE(body.length, 16);
  body.copy(reply, OPTION_REPLY_BYTES);
  return reply;
}

export function parseInfoRequest(data: Buffer): InfoRequest {
  const { text: name, next } = readString(data, 0);
  if (data.length < next + 2) throw new OptionFormError("the information types are missing");
  const count = data.readUInt16BE(next);
  if (data.length !== next + 2 + count * 2)
    throw new OptionFormError("the number of information types does not fit the length");
  const types = Array.from({ length: count }, (_, index) => data.readUInt16BE(next + 2 + index * 2));
  return { name, types };
}

export function parseContextRequest(data: Buffer): ContextRequest {
  const { text: name, next } = readString(data, 0);
  if (data.length < next + 4) throw new OptionFormError("the number of queries is missing");
  const count = data.readUInt32BE(next);
  const queries: string[] = [];
  let at = next + 4;
  // The count is the client's claim: what is read is bounded by the data alone.
  while (queries.length < count) {
    const query = readString(data, at);
    queries.push(query.text);
    at = query.next;
  }
  if (at !== data.length) throw new OptionFormError("the queries do not fit the length");
  return { name, queries };
}

/** A name as EXPORT_NAME carries it: the whole of the data. */
export function parseName(data: Buffer): string {
  return decodeText(data);
}

function readString(data: Buffer, at: number): { text: string; next: number } {
  if (data.length < at + 4) throw new OptionFormError("a string's length is missing");
  const length = data.readUInt32BE(at);
  if (length > data.length - at - 4) throw new OptionFormError("a string is longer than the option");
  const next = at + 4 + length;
  return { text: decodeText(data.subarray(at + 4, next)), next };
}

function decodeText(bytes: Buffer): string {
  if (bytes.length > NBD_MAX_STRING) throw new OptionFormError(`a string is longer than ${NBD_MAX_STRING} bytes`);
  if (bytes.includes(0)) throw new OptionFormError("a string holds a NUL byte");
  const text = bytes.toString("utf8");
  // Compared byte for byte: an invalid sequence must not match a name that happens to hold U+FFFD.
  if (!Buffer.from(text, "utf8").equals(bytes)) throw new OptionFormError("a string is not valid UTF-8");
  return text;
}
