/**
 * Sends requests over a stream. Headers and small payloads that are submitted together leave together, in one write;
 * large payloads go from the caller's buffer, in pieces, as fast as the stream takes them.
 *
 * A piece belongs to the stream until it is released; `PendingRequest.heldWrites` counts them.
 */
import type { ByteStream } from "../../env/links.ts";
import { EXTENDED_REQUEST_BYTES, NBD_CMD_FLAG_PAYLOAD_LEN } from "../constants.ts";
import type { PendingRequest } from "./pending.ts";
import { viewOf, writeRequest } from "./wire.ts";

/** What is written together: some two thousand headers. */
const BATCH_BYTES = 64 * 1024;
/** Payloads up to this are copied behind their header; a write of its own would cost more. */
const COPIED_PAYLOAD_MAX = 8 * 1024;
const PIECE_BYTES = 1024 * 1024;
/** What may wait in the stream before we stop adding to it. */
const SEND_AHEAD_BYTES = 2 * PIECE_BYTES;
/** Idle batch buffers that are kept. */
const SPARE_BATCHES_MAX = 2;

export class RequestWriter {
  readonly #stream: ByteStream;
  readonly #extended: boolean;
  readonly #onReleased: (request: PendingRequest) => void;
  readonly #spares: Uint8Array[] = [];
  #batch: Uint8Array = new Uint8Array(BATCH_BYTES);
  #view = viewOf(this.#batch);
  #filled = 0;
  /** A request whose payload is on its way; nothing may come in between. */
  #underway: PendingRequest | undefined;
  #stopped = false;

  /** `onReleased` is called when the stream has given one piece of a request's payload back. */
  constructor(stream: ByteStream, extended: boolean, onReleased: (request: PendingRequest) => void) {
    this.#stream = stream;
    this.#extended = extended;
    this.#onReleased = onReleased;
  }

  /** Another request may be given to `send`. */
  get ready(): boolean {
    return this.#underway === undefined && this.#stream.pendingBytes + this.#filled < SEND_AHEAD_BYTES;
  }

  /** Takes a request whose cookie is set. Call only while `ready`, and `flush` after the last one. */
  send(request: PendingRequest): void {
    const { payload } = request;
    const copied = payload.length <= COPIED_PAYLOAD_MAX;
    if (this.#filled + EXTENDED_REQUEST_BYTES + (copied ? payload.length : 0) > BATCH_BYTES) this.flush();
    this.#filled += writeRequest(this.#view, this.#filled, this.#header(request), this.#extended);
    if (copied) {
      this.#batch.set(payload, this.#filled);
      this.#filled += payload.length;
      return;
    }
    request.unsentBytes = payload.length;
    this.#underway = request;
    this.flush();
  }

  /** Passes on what has been collected, and as much payload as the stream will take. Call again when it has room. */
  flush(): void {
    if (this.#stopped) return;
    this.#flushBatch();
    while (this.#underway !== undefined && !this.#stopped && this.#stream.pendingBytes < SEND_AHEAD_BYTES) {
      this.#sendPiece(this.#underway);
    }
  }

  /** The stream is gone: nothing more is sent. */
  stop(): void {
    this.#stopped = true;
    this.#underway = undefined;
  }

  #header(request: PendingRequest): Parameters<typeof writeRequest>[2] {
    const { command, flags, cookieHigh, slot, offset, length, payload } = request;
    const cookie = { cookieHigh, cookieLow: slot };
    if (!this.#extended || payload.length === 0) return { command, flags, ...cookie, offset, length };
    return { command, flags: flags | NBD_CMD_FLAG_PAYLOAD_LEN, ...cookie, offset, length: payload.length };
  }

  #flushBatch(): void {
    if (this.#filled === 0) return;
    const batch = this.#batch;
    const filled = batch.subarray(0, this.#filled);
    this.#filled = 0;
    this.#batch = this.#spares.pop() ?? new Uint8Array(BATCH_BYTES);
    this.#view = viewOf(this.#batch);
    this.#stream.write(filled, () => {
      if (this.#spares.length < SPARE_BATCHES_MAX) this.#spares.push(batch);
    });
  }

  #sendPiece(request: PendingRequest): void {
    const { payload } = request;
    const start = payload.length - request.unsentBytes;
    const piece = payload.subarray(start, Math.min(start + PIECE_BYTES, payload.length));
    request.unsentBytes -= piece.length;
    request.heldWrites++;
    if (request.unsentBytes === 0) this.#underway = undefined;
    // The release may come within the call.
    this.#stream.write(piece, () => {
      request.heldWrites--;
      this.#onReleased(request);
    });
  }
}
