/**
 * Decodes what a server sends in transmission, whatever way it was cut into pieces, and writes read data from the
 * receive buffer straight to where the caller wants it. proto.md, "Transmission", "Structured reply types".
 *
 * ```
 * simple      0 u32 magic   4 u32 error   8 u64 cookie                                                   (16)
 * structured  0 u32 magic   4 u16 flags   6 u16 type   8 u64 cookie  16 u32 length                       (20)
 * extended    0 u32 magic   4 u16 flags   6 u16 type   8 u64 cookie  16 u64 offset  24 u64 length        (32)
 *
 * OFFSET_DATA       0 u64 offset    8 data
 * OFFSET_HOLE       0 u64 offset    8 u32 size                                                           (12)
 * ERROR             0 u32 error     4 u16 n   6 n bytes of text   [ERROR_OFFSET: u64 offset]
 * BLOCK_STATUS      0 u32 context             then u32 length, u32 flags …
 * BLOCK_STATUS_EXT  0 u32 context   4 u32 n   then n times u64 length, u64 flags
 * ```
 *
 * Long data go to the caller's buffer without passing through the receive buffer, where the stream can do that: `wanted`
 * names the place. So that the data's beginning does not arrive together with the header, the header that follows upon
 * long data is asked for alone.
 *
 * Invariant: whatever breaks a rule throws `NbdProtocolError` before the request in question can be taken for done. A
 * parser that has thrown must not be used again.
 */
import { BlockError } from "../../block/error.ts";
import {
  EXTENDED_REPLY_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_MAX_STRING,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_REPLY_BYTES,
} from "../constants.ts";
import { blockErrorCodeOf } from "../errno.ts";
import { NbdProtocolError } from "../error.ts";
import { printable } from "./errors.ts";
import type { Dialect } from "./negotiate.ts";
import type { PendingRequest } from "./pending.ts";
import { decodeExplanation, readU64, viewOf } from "./wire.ts";

/** Text of 4 KiB, and room for fields that do not exist yet. */
const ERROR_CHUNK_MAX = 16 * 1024;
/** A reply may name several offsets that failed; a server that never comes to an end is hostile. */
const ERROR_CHUNKS_MAX = 1024;
const MAGIC_BYTES = 4;
const OFFSET_BYTES = 8;
const HOLE_BYTES = 12;
/** Below this a copy costs less than another call of the kernel. */
const LONG_DATA_BYTES = 64 * 1024;

/** Requests by cookie. */
export interface RequestTable {
  /** The request that waits for a reply with exactly this cookie. */
  find(cookieHigh: number, cookieLow: number): PendingRequest | undefined;
  /** Its reply is complete and consistent; `failure` tells how it went. */
  complete(request: PendingRequest): void;
}

/** What the bytes being collected are. */
type Step = "magic" | "header" | "offset" | "hole" | "error" | "status" | "descriptor";

export class ReplyParser {
  readonly #table: RequestTable;
  readonly #dialect: Dialect;
  /** Where headers and small payloads are collected; longer ones (errors) get an array of their own. */
  readonly #head = new Uint8Array(EXTENDED_REPLY_BYTES);
  readonly #view = viewOf(this.#head);
  #collecting = this.#head;
  #step: Step = "magic";
  #collected = 0;
  #needed = MAGIC_BYTES;

  /** The chunk under way. */
  #request: PendingRequest | undefined;
  #type = 0;
  #last = false;
  /** Payload of the chunk behind what is being collected. */
  #payloadLeft = 0;
  /** Read data still to come, and where in the caller's buffer it goes. */
  #dataLeft = 0;
  #dataAt = 0;
  /** The last data chunk was a long one. */
  #longData = false;
  /** Takes a header and the offset behind it, when these are received alone. */
  readonly #alone: Uint8Array;

  constructor(table: RequestTable, dialect: Dialect) {
    this.#table = table;
    this.#dialect = dialect;
    this.#alone = new Uint8Array(
      OFFSET_BYTES + (dialect === "extended" ? EXTENDED_REPLY_BYTES : STRUCTURED_REPLY_BYTES),
    );
  }

  /** Where the next bytes are wanted, if that matters; see `ByteSink.receiveInto`. */
  get wanted(): Uint8Array | undefined {
    if (!this.#longData) return undefined;
    if (this.#dataLeft > 0) return this.#current().into.subarray(this.#dataAt, this.#dataAt + this.#dataLeft);
    return this.#collected === 0 ? this.#alone : undefined;
  }

  /** `bytes` are not kept. Throws `NbdProtocolError`. */
  push(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) at += this.#dataLeft > 0 ? this.#copyData(bytes, at) : this.#collect(bytes, at);
  }

  #copyData(bytes: Uint8Array, at: number): number {
    const count = Math.min(this.#dataLeft, bytes.length - at);
    const into = this.#current().into;
    const inPlace = bytes.buffer === into.buffer && bytes.byteOffset + at === into.byteOffset + this.#dataAt;
    if (!inPlace) into.set(bytes.subarray(at, at + count), this.#dataAt);
    this.#dataAt += count;
    this.#dataLeft -= count;
    if (this.#dataLeft === 0) this.#endChunk();
    return count;
  }

  #collect(bytes: Uint8Array, at: number): number {
    const count = Math.min(this.#needed - this.#collected, bytes.length - at);
    const into = this.#collecting;
    for (let index = 0; index < count; index++) into[this.#collected + index] = bytes[at + index] ?? 0;
    this.#collected += count;
    if (this.#collected === this.#needed) this.#onCollected();
    return count;
  }

  #await(step: Step, bytes: number): void {
    this.#step = step;
    this.#collected = 0;
    this.#needed = bytes;
    this.#collecting = bytes <= this.#head.length ? this.#head : new Uint8Array(bytes);
  }

  #onCollected(): void {
    switch (this.#step) {
      case "magic":
        // The magic stays where it is; the rest of the header is collected behind it.
        this.#step = "header";
        this.#needed = this.#headerBytes(this.#view.getUint32(0));
        break;
      case "header":
        if (this.#needed === SIMPLE_REPLY_BYTES) this.#onSimpleReply();
        else this.#onChunk();
        break;
      case "offset":
        this.#cover(readU64(this.#view, 0), this.#payloadLeft - OFFSET_BYTES);
        break;
      case "hole":
        this.#onHole();
        break;
      case "error":
        this.#onError();
        break;
      case "status":
        this.#onStatus();
        break;
      case "descriptor":
        this.#onDescriptor();
        break;
    }
  }

  #headerBytes(magic: number): number {
    if (this.#dialect === "extended") {
      if (magic === NBD_EXTENDED_REPLY_MAGIC) return EXTENDED_REPLY_BYTES;
    } else if (magic === NBD_SIMPLE_REPLY_MAGIC) {
      return SIMPLE_REPLY_BYTES;
    } else if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.#dialect === "structured") {
      return STRUCTURED_REPLY_BYTES;
    }
    throw new NbdProtocolError(
      `a reply begins with 0x${magic.toString(16)}, in a session with ${this.#dialect} replies`,
    );
  }

  #findRequest(): PendingRequest {
    const high = this.#view.getUint32(8);
    const low = this.#view.getUint32(12);
    const request = this.#table.find(high, low);
    if (request === undefined) throw new NbdProtocolError(`a reply to a request that is not pending (${high}:${low})`);
    this.#request = request;
    return request;
  }

  #onSimpleReply(): void {
    const request = this.#findRequest();
    const error = this.#view.getUint32(4);
    const isRead = request.command === NBD_CMD_READ;
    if (isRead && this.#dialect !== "simple") {
      throw new NbdProtocolError("a simple reply to a read, though structured replies were agreed on");
    }
    this.#last = true;
    if (error !== 0) {
      request.failure = new BlockError(blockErrorCodeOf(error), `the server answered with error ${error}`);
    } else if (isRead && request.length > 0) {
      this.#cover(request.offset, request.length);
      return;
    }
    this.#endChunk();
  }

  #onChunk(): void {
    const view = this.#view;
    const request = this.#findRequest();
    this.#last = (view.getUint16(4) & NBD_REPLY_FLAG_DONE) !== 0;
    this.#type = view.getUint16(6);
    if (this.#dialect === "extended") {
      this.#payloadLeft = readU64(view, 24);
      const offset = readU64(view, 16);
      if (offset !== request.offset) {
        throw new NbdProtocolError(`a reply for offset ${offset}, where ${request.offset} was asked`);
      }
    } else {
      this.#payloadLeft = view.getUint32(16);
    }
    this.#beginPayload(request);
  }

  #beginPayload(request: PendingRequest): void {
    const length = this.#payloadLeft;
    switch (this.#type) {
      case NBD_REPLY_TYPE_OFFSET_DATA:
        demand(request.command === NBD_CMD_READ, "read data in reply to another command");
        demand(length > OFFSET_BYTES, "a data chunk without data");
        this.#await("offset", OFFSET_BYTES);
        break;
      case NBD_REPLY_TYPE_NONE:
        demand(length === 0, "an empty chunk with a payload");
        demand(this.#last, "an empty chunk that is not the last");
        this.#endChunk();
        break;
      case NBD_REPLY_TYPE_OFFSET_HOLE:
        demand(request.command === NBD_CMD_READ, "a hole in reply to another command");
        demand(length === HOLE_BYTES, "a hole chunk of a wrong length");
        this.#await("hole", HOLE_BYTES);
        break;
      case NBD_REPLY_TYPE_BLOCK_STATUS:
      case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        this.#beginStatus(request);
        break;
      default:
        if (this.#type < NBD_REPLY_TYPE_ERROR_BIT) throw new NbdProtocolError(`a chunk of unknown type ${this.#type}`);
        this.#beginError(request);
    }
  }

  #onHole(): void {
    const length = this.#view.getUint32(8);
    demand(length > 0, "a hole of no bytes");
    this.#cover(readU64(this.#view, 0), length);
    this.#current().into.fill(0, this.#dataAt, this.#dataAt + length);
    this.#dataLeft = 0;
    this.#endChunk();
  }

  /** Books [offset, offset + length) as arrived, and expects it as data. */
  #cover(offset: number, length: number): void {
    const request = this.#current();
    const start = offset - request.offset;
    if (!(start >= 0 && start + length <= request.length)) {
      throw new NbdProtocolError(`bytes ${offset}+${length}, outside of the read ${request.offset}+${request.length}`);
    }
    const result = request.coverage.add(start, start + length);
    demand(result !== "overlap", "a chunk that overlaps an earlier one");
    demand(result === "added", "a read reply in too many scattered pieces");
    this.#dataAt = start;
    this.#dataLeft = length;
    this.#longData = length >= LONG_DATA_BYTES;
  }

  #beginError(request: PendingRequest): void {
    const length = this.#payloadLeft;
    const least = this.#type === NBD_REPLY_TYPE_ERROR_OFFSET ? 14 : 6;
    if (!(length >= least && length <= ERROR_CHUNK_MAX)) {
      throw new NbdProtocolError(`an error chunk of ${length} bytes`);
    }
    request.errorChunks++;
    demand(request.errorChunks <= ERROR_CHUNKS_MAX, "a reply of too many error chunks");
    this.#await("error", length);
  }

  #onError(): void {
    const request = this.#current();
    const bytes = this.#collecting.subarray(0, this.#needed);
    const view = viewOf(bytes);
    const [error, textBytes] = [view.getUint32(0), view.getUint16(4)];
    const hasOffset = this.#type === NBD_REPLY_TYPE_ERROR_OFFSET;
    const room = bytes.length - 6 - (hasOffset ? OFFSET_BYTES : 0);
    demand(textBytes <= room && textBytes <= NBD_MAX_STRING, "an error chunk whose text is longer than it may be");
    demand(error !== 0, "an error chunk without an error");
    const text = textBytes === 0 ? "" : `: ${printable(decodeExplanation(bytes.subarray(6, 6 + textBytes)))}`;
    // A request without a range (FLUSH) has no use for an offset, whatever it says.
    const where =
      hasOffset && request.length > 0 ? ` at offset ${errorOffset(request, readU64(view, 6 + textBytes))}` : "";
    const message = `the server answered with error ${error}${where}${text}`;
    request.failure ??= new BlockError(blockErrorCodeOf(error), message);
    this.#endChunk();
  }

  #beginStatus(request: PendingRequest): void {
    const extendedForm = this.#type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
    demand(request.command === NBD_CMD_BLOCK_STATUS, "block status in reply to another command");
    demand(extendedForm === (this.#dialect === "extended"), "block status in the form of another dialect");
    const head = extendedForm ? 8 : 4;
    const rest = this.#payloadLeft - head;
    demand(rest >= 0 && rest % this.#descriptorBytes() === 0, "block status of a wrong length");
    this.#payloadLeft = rest;
    this.#await("status", head);
  }

  #onStatus(): void {
    const descriptors = this.#payloadLeft / this.#descriptorBytes();
    if (this.#dialect === "extended") {
      demand(this.#view.getUint32(4) === descriptors, "block status that miscounts its extents");
    }
    this.#current().status?.beginChunk(this.#view.getUint32(0), descriptors);
    this.#await("descriptor", this.#descriptorBytes());
  }

  #onDescriptor(): void {
    const view = this.#view;
    const status = this.#current().status;
    if (this.#dialect === "extended") status?.descriptor(readU64(view, 0), readU64(view, 8));
    else status?.descriptor(view.getUint32(0), view.getUint32(4));
    this.#payloadLeft -= this.#needed;
    if (this.#payloadLeft === 0) this.#endChunk();
    else this.#await("descriptor", this.#needed);
  }

  #descriptorBytes(): number {
    return this.#dialect === "extended" ? 16 : 8;
  }

  #endChunk(): void {
    const request = this.#current();
    this.#request = undefined;
    this.#await("magic", MAGIC_BYTES);
    if (!this.#last) return;
    if (request.failure === undefined) checkSuccess(request);
    this.#table.complete(request);
  }

  #current(): PendingRequest {
    if (this.#request === undefined) throw new Error("there is no chunk under way");
    return this.#request;
  }
}

/** What a reply without an error claims must be borne out by what came with it. */
function checkSuccess(request: PendingRequest): void {
  demand(request.unsentBytes === 0, "a write that succeeds before all of its data was sent");
  demand(request.command !== NBD_CMD_READ || request.coverage.complete, "a read that succeeds without all of its data");
  demand(request.status?.complete ?? true, "a block status that succeeds without an answer for every context");
}

function errorOffset(request: PendingRequest, offset: number): number {
  if (offset >= request.offset && offset < request.offset + request.length) return offset;
  throw new NbdProtocolError(`an error at offset ${offset}, outside of the request`);
}

/** For conditions whose message costs nothing to make: this runs for every chunk. */
function demand(condition: boolean, violation: string): void {
  if (!condition) throw new NbdProtocolError(violation);
}
