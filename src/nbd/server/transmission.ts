/**
 * The transmission phase of one connection: cuts the byte stream into requests, answers at once what memory or the page
 * cache can answer, and hands the rest to `commands.ts`.
 *
 * Invariants
 * - Receive buffers are not ours (see `ByteSink.onBytes`): what cannot be used during the call is copied.
 * - While `#blockers` is above zero no request is taken: bytes that still arrive are kept in `#backlog`, which is bounded
 *   because the stream is paused. Blockers are: no room for replies, too many requests under way, no memory for a payload.
 * - Every request taken is answered exactly once, or the connection is closed.
 *
 * Source: doc/proto.md, "Transmission phase".
 */
import type { ByteSink, ByteStream } from "../../env/links.ts";
import { EXTENDED_REQUEST_BYTES, NBD_CMD_DISC, NBD_CMD_READ, NBD_CMD_WRITE, REQUEST_BYTES } from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { CommandRunner } from "./commands.ts";
import type { ConnectionContext, Negotiated } from "./connection-context.ts";
import { isReadOnly } from "./export.ts";
import { PayloadReceiver } from "./payload.ts";
import { ReplyEncoder } from "./reply.ts";
import { GATHER_BYTES, ReplyWriter } from "./reply-writer.ts";
import { decodeRequest, emptyRequest, payloadBytes, type Request, type RequestRules, refusal } from "./request.ts";

const NO_BYTES = Buffer.alloc(0);
/** Larger reads are done in pieces, so that other connections get their turn. */
const READ_NOW_BYTES_MAX = 256 * 1024;

export class Transmission implements ByteSink {
  readonly #stream: ByteStream;
  readonly #context: ConnectionContext;
  readonly #rules: RequestRules;
  readonly #encoder: ReplyEncoder;
  readonly #writer: ReplyWriter;
  readonly #commands: CommandRunner;
  readonly #payload: PayloadReceiver;
  readonly #headerBytes: number;
  readonly #request: Request = emptyRequest();
  readonly #piece = { offset: 0, length: 0, done: true };
  /** The part of a header that has arrived. */
  readonly #partial = Buffer.alloc(EXTENDED_REQUEST_BYTES);
  #partialBytes = 0;
  #backlog: Buffer = NO_BYTES;
  #blockers = 0;
  #waitingForRoom = false;
  #finishing = false;

  constructor(stream: ByteStream, negotiated: Negotiated, context: ConnectionContext) {
    const { exported } = negotiated;
    this.#stream = stream;
    this.#context = context;
    this.#encoder = new ReplyEncoder(
      negotiated.extended ? "extended" : negotiated.structured ? "structured" : "simple",
    );
    this.#rules = {
      sizeBytes: exported.device.sizeBytes,
      readOnly: isReadOnly(exported),
      structured: negotiated.structured,
      extended: negotiated.extended,
      blockStatus: negotiated.contexts.length > 0,
      requestBytesMax: context.limits.requestBytesMax,
    };
    this.#headerBytes = negotiated.extended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
    this.#writer = new ReplyWriter(stream, context, () => this.#roomForReplies());
    const flow = { block: () => this.#block(), unblock: () => this.#unblock() };
    this.#commands = new CommandRunner({
      stream,
      negotiated,
      context,
      writer: this.#writer,
      encoder: this.#encoder,
      flow,
    });
    this.#payload = new PayloadReceiver(this.#commands, context, flow);
  }

  /** Requests under way, for whoever drains the server. */
  get inFlight(): number {
    return this.#commands.inFlight;
  }

  /** Memory is held for a payload that the client has not sent yet. */
  get owedPayload(): boolean {
    return this.#payload.filling && this.#blockers === 0;
  }

  onBytes(bytes: Uint8Array): void {
    // Streams deliver Buffers; the cast is checked once here and saves a wrapper per call.
    const chunk = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (this.#finishing) return;
    if (this.#blockers > 0 || this.#backlog.length > 0) {
      this.#backlog = Buffer.concat([this.#backlog, chunk]);
      if (this.#blockers === 0) this.#resumeBacklog();
      return;
    }
    this.#consume(chunk, false);
    this.#writer.flush();
  }

  onEnd(): void {
    this.finish();
  }

  onClose(): void {
    this.#finishing = true;
    this.#backlog = NO_BYTES;
    this.#payload.dispose();
    this.#commands.connectionClosed();
    this.#writer.dispose();
  }

  onDrain(): void {
    this.#commands.drained();
  }

  /** Takes no more requests, lets those under way finish, then closes the connection. Idempotent. */
  finish(): void {
    if (this.#finishing) return;
    this.#finishing = true;
    this.#backlog = NO_BYTES;
    this.#payload.dispose();
    this.#commands.whenIdle(() => {
      this.#writer.flush();
      this.#context.finished();
    });
  }

  /** Takes what it can from `chunk`, and keeps the rest. `owned`: the bytes are ours, and may be kept as they are. */
  #consume(chunk: Buffer, owned: boolean): void {
    let at = 0;
    while (at < chunk.length && !this.#finishing) {
      if (this.#blockers > 0) {
        const rest = chunk.subarray(at);
        this.#backlog = owned ? rest : Buffer.from(rest);
        return;
      }
      at += this.#payload.active ? this.#payload.push(chunk, at) : this.#takeHeader(chunk, at);
      // In the middle of a payload the buffer that it comes into may be all that others wait for.
      if (!this.#payload.active && !this.#finishing) this.#checkFlow();
    }
  }

  /** Takes a request's header (and payload, where it can be used in place) from `at` on; returns how many bytes. */
  #takeHeader(chunk: Buffer, at: number): number {
    const available = chunk.length - at;
    if (this.#partialBytes === 0 && available >= this.#headerBytes) {
      if (!this.#decode(chunk, at)) return available;
      return this.#headerBytes + this.#dispatch(chunk, at + this.#headerBytes);
    }
    const taken = Math.min(this.#headerBytes - this.#partialBytes, available);
    chunk.copy(this.#partial, this.#partialBytes, at, at + taken);
    this.#partialBytes += taken;
    if (this.#partialBytes < this.#headerBytes) return taken;
    this.#partialBytes = 0;
    if (!this.#decode(this.#partial, 0)) return available;
    return taken + this.#dispatch(chunk, at + taken);
  }

  #decode(bytes: Buffer, at: number): boolean {
    if (decodeRequest(bytes, at, this.#rules.extended, this.#request)) return true;
    this.#violated("a request did not begin with the magic number");
    return false;
  }

  /** The client broke the protocol: nothing that follows is looked at. */
  #violated(why: string): void {
    this.#finishing = true;
    this.#backlog = NO_BYTES;
    this.#context.protocolError(new NbdProtocolError(why));
  }

  /** Acts on `#request`; returns how many bytes of its payload were used from `chunk` at `at`. */
  #dispatch(chunk: Buffer, at: number): number {
    const request = this.#request;
    if (request.command === NBD_CMD_DISC) {
      this.#writer.flush();
      this.finish();
      return 0;
    }
    const payload = payloadBytes(request, this.#rules.extended);
    if (this.#rules.extended && payload > this.#rules.requestBytesMax) {
      this.#violated("a request announced more payload than the server takes");
      return 0;
    }
    const error = refusal(request, this.#rules);
    if (error !== 0 || (payload > 0 && request.command !== NBD_CMD_WRITE)) {
      return this.#refuse(payload, error, chunk, at);
    }
    if (request.command === NBD_CMD_WRITE) return this.#write(payload, chunk, at);
    if (request.command !== NBD_CMD_READ || !this.#readNow()) this.#commands.run(request);
    return 0;
  }

  #refuse(payload: number, error: number, chunk: Buffer, at: number): number {
    if (payload > 0) {
      this.#payload.discard(this.#request, payload, error);
      return this.#payload.push(chunk, at);
    }
    this.#commands.answer(this.#request, error, "the request is not valid for this export");
    return 0;
  }

  #write(payload: number, chunk: Buffer, at: number): number {
    const request = this.#request;
    const whole = payload > 0 && chunk.length - at >= payload;
    if (whole && this.#commands.writeAtOnce(request, chunk.subarray(at, at + payload))) return payload;
    this.#payload.begin(request, payload);
    return payload === 0 ? 0 : this.#payload.push(chunk, at);
  }

  /** Answers a READ from memory or the page cache. False: it has to wait for something. */
  #readNow(): boolean {
    const request = this.#request;
    const length = request.length;
    if (length === 0 || length > READ_NOW_BYTES_MAX) return false;
    const total = this.#encoder.dataHeaderBytes + length;
    const at = total <= GATHER_BYTES ? this.#writer.reserve(total) : -1;
    if (at < 0) return false;
    const out = this.#writer.buffer;
    const from = at + this.#encoder.dataHeaderBytes;
    try {
      if (this.#commands.readNow(request.offset, out.subarray(from, from + length)) < 0) return false;
    } catch (cause) {
      this.#commands.answer(request, this.#commands.errnoOf(cause, request), "the read failed");
      return true;
    }
    this.#piece.offset = request.offset;
    this.#piece.length = length;
    this.#encoder.putDataHeader(out, at, request, this.#piece);
    this.#writer.commit(total);
    return true;
  }

  /** Stops taking requests when too many are under way, or the client has to take replies first. */
  #checkFlow(): void {
    this.#commands.checkFlow();
    if (this.#waitingForRoom || !this.#writer.full) return;
    this.#waitingForRoom = true;
    this.#block();
  }

  #roomForReplies(): void {
    if (!this.#waitingForRoom) return;
    this.#waitingForRoom = false;
    this.#unblock();
  }

  #block(): void {
    if (++this.#blockers === 1) this.#stream.pause();
  }

  #unblock(): void {
    if (--this.#blockers > 0 || this.#finishing) return;
    this.#resumeBacklog();
  }

  #resumeBacklog(): void {
    const backlog = this.#backlog;
    this.#backlog = NO_BYTES;
    this.#consume(backlog, true);
    this.#writer.flush();
    if (this.#blockers === 0) this.#stream.resume();
  }
}
