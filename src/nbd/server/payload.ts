/**
 * Receives the payload of a WRITE that could not be stored straight from the receive buffer, in pieces that are written
 * as they become full; or swallows the payload of a request that was refused.
 */

import { NBD_CMD_FLAG_FUA } from "../constants.ts";
import { type CommandRunner, PIECE_BYTES, SCARCE_PIECE_BYTES } from "./commands.ts";
import type { ConnectionContext, Flow } from "./connection-context.ts";
import { copyRequest, type Request } from "./request.ts";

/** A WRITE on its way. */
interface PendingWrite {
  readonly request: Request;
  /** Payload bytes that have not arrived. */
  missing: number;
  /** Pieces handed to the device and not finished, and one more while payload is missing. */
  unfinished: number;
  severalPieces: boolean;
  /** The first failure; 0 while there is none. */
  error: number;
}

interface Piece {
  readonly buffer: Buffer;
  readonly offset: number;
  readonly length: number;
  filled: number;
}

export class PayloadReceiver {
  readonly #commands: CommandRunner;
  readonly #context: ConnectionContext;
  readonly #flow: Flow;
  #write: PendingWrite | undefined;
  #piece: Piece | undefined;
  #discard: { request: Request; missing: number; error: number } | undefined;

  constructor(commands: CommandRunner, context: ConnectionContext, flow: Flow) {
    this.#commands = commands;
    this.#context = context;
    this.#flow = flow;
  }

  /** The next bytes of the stream are payload. */
  get active(): boolean {
    return this.#write !== undefined || this.#discard !== undefined;
  }

  /** A buffer waits for payload. */
  get filling(): boolean {
    return this.#piece !== undefined;
  }

  /** Expects `total` payload bytes of a valid WRITE. */
  begin(request: Request, total: number): void {
    this.#commands.begin();
    const write = {
      request: copyRequest(request),
      missing: total,
      unfinished: 1,
      severalPieces: false,
      error: 0,
    };
    if (total === 0) {
      void this.#finish(write);
      return;
    }
    this.#write = write;
    this.#nextPiece(write);
  }

  /** Expects `total` payload bytes, drops them, then answers `error`. */
  discard(request: Request, total: number, error: number): void {
    this.#discard = { request: copyRequest(request), missing: total, error };
  }

  /** Takes payload from `chunk`, beginning at `at`; returns how many bytes. */
  push(chunk: Buffer, at: number): number {
    if (this.#discard !== undefined) return this.#pushDiscarded(this.#discard, chunk.length - at);
    const { piece, write } = { piece: this.#piece, write: this.#write };
    if (piece === undefined || write === undefined) return 0;
    const taken = Math.min(piece.length - piece.filled, chunk.length - at);
    chunk.copy(piece.buffer, piece.filled, at, at + taken);
    piece.filled += taken;
    write.missing -= taken;
    if (piece.filled === piece.length) this.#pieceFull(write, piece);
    return taken;
  }

  /** Forgets a payload that will not arrive. The WRITE it belongs to is not answered. */
  dispose(): void {
    this.#discard = undefined;
    const write = this.#write;
    this.#write = undefined;
    if (this.#piece !== undefined) this.#giveBack(this.#piece);
    this.#piece = undefined;
    if (write === undefined) return;
    write.unfinished--;
    if (write.unfinished === 0) this.#commands.uncount();
    else write.missing = -1;
  }

  #pushDiscarded(discard: { request: Request; missing: number; error: number }, available: number): number {
    const taken = Math.min(discard.missing, available);
    discard.missing -= taken;
    if (discard.missing === 0) {
      this.#discard = undefined;
      this.#commands.answer(discard.request, discard.error, "the request is not valid for this export");
    }
    return taken;
  }

  #nextPiece(write: PendingWrite): void {
    const { account, pool } = this.#context;
    const length = Math.min(PIECE_BYTES, write.missing);
    if (account.tryTake(pool.sizeFor(length))) {
      this.#startPiece(write, length);
      return;
    }
    const least = Math.min(SCARCE_PIECE_BYTES, write.missing);
    this.#flow.block();
    void account.take(pool.sizeFor(least)).then(() => {
      if (this.#write === write) this.#startPiece(write, least);
      else account.giveBack(pool.sizeFor(least));
      this.#flow.unblock();
    });
  }

  #startPiece(write: PendingWrite, length: number): void {
    const offset = write.request.offset + write.request.length - write.missing;
    write.severalPieces = length < write.request.length;
    this.#piece = { buffer: this.#context.pool.take(length), offset, length, filled: 0 };
  }

  #pieceFull(write: PendingWrite, piece: Piece): void {
    this.#piece = undefined;
    // Most payloads that come here are short ones that the end of the receive buffer has cut in two.
    if (!write.severalPieces && this.#commands.writeAtOnce(write.request, piece.buffer.subarray(0, piece.length))) {
      this.#write = undefined;
      this.#giveBack(piece);
      this.#commands.uncount();
      return;
    }
    write.unfinished++;
    void this.#store(write, piece);
    if (write.missing > 0) {
      this.#nextPiece(write);
      return;
    }
    this.#write = undefined;
    void this.#partDone(write);
  }

  async #store(write: PendingWrite, piece: Piece): Promise<void> {
    const fua = !write.severalPieces && (write.request.flags & NBD_CMD_FLAG_FUA) !== 0;
    try {
      await this.#commands.write(piece.offset, piece.buffer.subarray(0, piece.length), fua);
    } catch (cause) {
      if (write.error === 0) write.error = this.#commands.errnoOf(cause, write.request);
    }
    this.#giveBack(piece);
    await this.#partDone(write);
  }

  async #partDone(write: PendingWrite): Promise<void> {
    write.unfinished--;
    if (write.unfinished > 0) return;
    if (write.missing < 0) this.#commands.uncount();
    else await this.#finish(write);
  }

  /** Everything has arrived and is stored: makes it stable if asked to, and answers. */
  async #finish(write: PendingWrite): Promise<void> {
    if (write.error === 0 && write.severalPieces && (write.request.flags & NBD_CMD_FLAG_FUA) !== 0) {
      try {
        await this.#commands.flush();
      } catch (cause) {
        write.error = this.#commands.errnoOf(cause, write.request);
      }
    }
    this.#commands.end(write.request, write.error, write.error === 0 ? "" : "the write failed");
  }

  #giveBack({ buffer }: Piece): void {
    this.#context.account.giveBack(buffer.length);
    this.#context.pool.give(buffer);
  }
}
