/**
 * Carries out the requests of one connection that cannot be answered at once, and sends their outcomes.
 *
 * Memory: payloads are held in pooled buffers that the connection's budget account has paid for. Order: requests run
 * side by side and are answered as they end, which NBD allows; a FLUSH covers what was answered before it, because
 * devices promise that of `flush`.
 */
import { BlockError } from "../../block/error.ts";
import type { ByteStream } from "../../env/links.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE_ZEROES,
} from "../constants.ts";
import { statusBytesMax, statusChunk } from "./block-status.ts";
import type { ConnectionContext, Flow, Negotiated } from "./connection-context.ts";
import type { DeviceGuard } from "./guard.ts";
import type { DataPiece, ReplyEncoder } from "./reply.ts";
import { GATHER_BYTES, type ReplyWriter } from "./reply-writer.ts";
import { copyRequest, type Request } from "./request.ts";

/** Structured reads move in chunks of at most this size. */
export const PIECE_BYTES = 1024 * 1024;
/** What they shrink to when memory is scarce: some is always to be had in such pieces. */
export const SCARCE_PIECE_BYTES = 64 * 1024;
/** A write of up to this size goes to the page cache at once; larger ones would hold up other connections. */
const WRITE_NOW_BYTES_MAX = 128 * 1024;
/** About what a write takes that the stream cannot pass on yet, besides its bytes. */
const WRITE_BYTES = 1024;
/** A read in pieces waits when the client has so much left to take. */
const UNSENT_BYTES_MAX = 2 * PIECE_BYTES;

export interface CommandSetup {
  readonly stream: ByteStream;
  readonly negotiated: Negotiated;
  readonly context: ConnectionContext;
  readonly writer: ReplyWriter;
  readonly encoder: ReplyEncoder;
  readonly flow: Flow;
}

export class CommandRunner {
  readonly #setup: CommandSetup;
  readonly #guard: DeviceGuard;
  #inFlight = 0;
  #blocked = false;
  #closed = false;
  #idle: (() => void) | undefined;
  #drainWaiters: (() => void)[] = [];

  constructor(setup: CommandSetup) {
    this.#setup = setup;
    this.#guard = setup.context.guard;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Starts a request that carries no payload. `request` is copied. */
  run(request: Request): void {
    this.begin();
    void this.#execute(copyRequest(request));
  }

  /** Counts a request as under way until `end`. */
  begin(): void {
    this.#inFlight++;
  }

  /** Stops the taking of requests while too many are under way. Not to be called in the middle of a payload. */
  checkFlow(): void {
    if (this.#inFlight <= this.#setup.context.limits.inFlightMax || this.#blocked) return;
    this.#blocked = true;
    this.#setup.flow.block();
  }

  /** Answers a request that `begin` counted. */
  end(request: Request, error: number, message: string): void {
    this.answer(request, error, message);
    this.#setup.writer.flush();
    this.#ended();
  }

  /** Counts a request no longer: it has been answered, or never will be because its connection ended. */
  uncount(): void {
    this.#ended();
  }

  /** Puts the outcome of a request among the replies to be sent. */
  answer(request: Request, error: number, message: string): void {
    if (this.#closed) return;
    const { writer, encoder } = this.#setup;
    const at = writer.reserveSmall();
    writer.commitSmall(encoder.putOutcome(writer.buffer, at, request, { error, message }));
  }

  /** Calls `idle` once no request is under way. */
  whenIdle(idle: () => void): void {
    this.#idle = idle;
    if (this.#inFlight === 0) this.#reportIdle();
  }

  /** The stream has nothing left to send. */
  drained(): void {
    const waiters = this.#drainWaiters;
    this.#drainWaiters = [];
    for (const waiter of waiters) waiter();
  }

  /** Nothing can be answered any more. Requests under way end by themselves. */
  connectionClosed(): void {
    this.#closed = true;
    this.drained();
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#guard.device.readNow(offset, into);
  }

  /** Carries out a whole WRITE and answers it, if it is small, needs no sync and will not block. False: nothing was done. */
  writeAtOnce(request: Request, payload: Uint8Array): boolean {
    if (payload.length > WRITE_NOW_BYTES_MAX || (request.flags & NBD_CMD_FLAG_FUA) !== 0) return false;
    let error = 0;
    try {
      this.#guard.checkWritable();
      if (this.#guard.device.writeNow(request.offset, payload) < 0) return false;
    } catch (cause) {
      error = this.#guard.errnoOf(cause, request);
    }
    this.answer(request, error, error === 0 ? "" : "the write failed");
    return true;
  }

  async write(offset: number, from: Uint8Array, fua: boolean): Promise<void> {
    this.#guard.checkWritable();
    await this.#guard.device.write(offset, from, { fua });
  }

  async flush(): Promise<void> {
    await this.#guard.device.flush();
  }

  errnoOf(cause: unknown, request: Request): number {
    return this.#guard.errnoOf(cause, request);
  }

  async #execute(request: Request): Promise<void> {
    let error = 0;
    let answered = false;
    try {
      answered = await this.#carryOut(request);
    } catch (cause) {
      error = this.#guard.errnoOf(cause, request);
    }
    if (answered) this.#ended();
    else this.end(request, error, error === 0 ? "" : "the operation failed on the device");
  }

  /** Resolves to true when the reply has been sent already. */
  async #carryOut(request: Request): Promise<boolean> {
    const { device } = this.#guard;
    const { command, offset, length, flags } = request;
    const fua = (flags & NBD_CMD_FLAG_FUA) !== 0;
    switch (command) {
      case NBD_CMD_READ:
        return this.#read(request);
      case NBD_CMD_BLOCK_STATUS:
        return this.#blockStatus(request);
      case NBD_CMD_FLUSH:
        await device.flush();
        return false;
      case NBD_CMD_CACHE:
        await device.cache(offset, length);
        return false;
      case NBD_CMD_TRIM:
        this.#guard.checkWritable();
        await device.discard(offset, length, { fua });
        return false;
      case NBD_CMD_WRITE_ZEROES:
        this.#guard.checkWritable();
        await device.writeZeroes(offset, length, {
          fua,
          noHole: (flags & NBD_CMD_FLAG_NO_HOLE) !== 0,
          fastOnly: (flags & NBD_CMD_FLAG_FAST_ZERO) !== 0,
        });
        return false;
      default:
        throw new BlockError("invalid", `command ${command} is not known`);
    }
  }

  async #read(request: Request): Promise<boolean> {
    const { dialect } = this.#setup.encoder;
    if (request.length === 0) return false;
    const whole = dialect === "simple" || (request.flags & NBD_CMD_FLAG_DF) !== 0;
    if (whole && dialect !== "simple" && request.length > PIECE_BYTES) {
      throw new BlockError("too-big", "the read is too long to be answered in one piece");
    }
    const end = request.offset + request.length;
    for (let offset = request.offset; offset < end && !this.#closed; ) {
      const length = await (whole ? this.#takeWhole(request.length) : this.#takePiece(end - offset));
      await this.#readPiece(request, { offset, length, done: offset + length === end });
      await this.#roomToSend();
      offset += length;
    }
    return true;
  }

  /** Takes memory for a reply with `length` bytes of data, and resolves to `length`. */
  async #takeWhole(length: number): Promise<number> {
    await this.#setup.context.account.take(this.#replyBytes(length));
    return length;
  }

  /** Takes memory for as much as may be sent at a time of `rest` bytes; resolves to how much that is. */
  #takePiece(rest: number): number | Promise<number> {
    const length = Math.min(PIECE_BYTES, rest);
    if (this.#setup.context.account.tryTake(this.#replyBytes(length))) return length;
    return this.#takeWhole(Math.min(SCARCE_PIECE_BYTES, rest));
  }

  /** The memory that a reply with `length` bytes of data takes. */
  #replyBytes(length: number): number {
    return this.#setup.context.pool.sizeFor(this.#setup.encoder.dataHeaderBytes + length);
  }

  /** Reads and sends `piece`, for which memory was taken. */
  async #readPiece(request: Request, piece: DataPiece): Promise<void> {
    const { context, encoder, stream } = this.#setup;
    const headerBytes = encoder.dataHeaderBytes;
    const total = headerBytes + piece.length;
    const buffer = context.pool.take(total);
    const release = (): void => {
      context.account.giveBack(buffer.length);
      context.pool.give(buffer);
    };
    try {
      const into = buffer.subarray(headerBytes, total);
      const { device } = this.#guard;
      if (device.readNow(piece.offset, into) < 0) await device.read(piece.offset, into);
    } catch (cause) {
      release();
      throw cause;
    }
    if (this.#closed) {
      release();
      return;
    }
    encoder.putDataHeader(buffer, 0, request, piece);
    stream.write(buffer.subarray(0, total), release);
  }

  /** All contexts are asked before anything is sent, so that a failure is the only reply. */
  async #blockStatus(request: Request): Promise<boolean> {
    const { context, negotiated, encoder } = this.#setup;
    const { contexts } = negotiated;
    const takenBytes = contexts.length * statusBytesMax(request);
    await context.account.take(takenBytes);
    const chunks: Buffer[] = [];
    try {
      for (const [index, selected] of contexts.entries()) {
        chunks.push(await statusChunk(selected, request, { encoder, done: index === contexts.length - 1 }));
      }
    } catch (cause) {
      context.account.giveBack(takenBytes);
      throw cause;
    }
    const reply = Buffer.concat(chunks);
    const keptBytes = Math.min(takenBytes, reply.length + WRITE_BYTES);
    context.account.giveBack(takenBytes - keptBytes);
    this.#send(reply, () => context.account.giveBack(keptBytes));
    await this.#roomToSend();
    return true;
  }

  /** Sends a whole reply, with the others if there is room among them. `release` is called once its bytes are not needed. */
  #send(reply: Buffer, release: () => void): void {
    const { writer, stream } = this.#setup;
    const at = this.#closed || reply.length > GATHER_BYTES ? -1 : writer.reserve(reply.length);
    if (at >= 0) {
      reply.copy(writer.buffer, at);
      writer.commit(reply.length);
      writer.flush();
    }
    if (at >= 0 || this.#closed) release();
    else stream.write(reply, release);
  }

  #roomToSend(): Promise<void> | undefined {
    if (this.#closed || this.#setup.stream.pendingBytes <= UNSENT_BYTES_MAX) return undefined;
    return new Promise((resume) => {
      this.#drainWaiters.push(resume);
    });
  }

  #ended(): void {
    this.#inFlight--;
    if (this.#inFlight === 0) this.#reportIdle();
    if (!this.#blocked || this.#inFlight > this.#setup.context.limits.inFlightMax) return;
    this.#blocked = false;
    this.#setup.flow.unblock();
  }

  #reportIdle(): void {
    const idle = this.#idle;
    this.#idle = undefined;
    idle?.();
  }
}
