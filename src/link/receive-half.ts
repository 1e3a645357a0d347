/**
 * What a channel receives: handed to its reader at once, or kept while the reader does not read, at most a window of it.
 *
 * Invariants
 * - consumed ≤ received ≤ granted. `received` is what a resumed link goes on from; `consumed` is what the peer is told,
 *   so that a reader which stops, stops its own channel and nothing else.
 * - The end counts as one byte; it needs no room.
 */
import { LinkProtocolError } from "./errors.ts";
import type { Credit } from "./frame.ts";
import { CREDIT_EVERY_BYTES, CREDIT_EVERY_PIECES } from "./limits.ts";

/** Kept bytes lie in pieces of this size, however small the pieces were that they came in. */
const CHUNK_BYTES = 16 * 1024;

interface Chunk {
  readonly bytes: Buffer;
  used: number;
}

export interface Reader {
  /** Someone is there, and reads. */
  reading(): boolean;
  /** `bytes` are valid until the call returns. */
  deliver(bytes: Uint8Array): void;
  /** No more will come. Called once. */
  deliverEnd(): void;
}

export class ReceiveHalf {
  readonly #reader: Reader;
  readonly #windowBytes: number;
  readonly #creditEveryBytes: number;
  readonly #creditsAll: boolean;
  #kept: Chunk[] = [];
  #received = 0;
  #consumed = 0;
  /** Where the last CREDIT said that the reader is; −1: none was sent. */
  #credited = -1;
  #granted = 0;
  /** Pieces that have arrived since the last CREDIT. */
  #pieces = 0;
  #creditDue = true;
  #endReceived = false;
  #endTold = false;
  #delivering = false;
  #dropped = false;

  /** `creditsAll`: a mutant. */
  constructor(reader: Reader, windowBytes: number, creditsAll: boolean) {
    this.#reader = reader;
    this.#windowBytes = windowBytes;
    this.#creditEveryBytes = Math.min(Math.floor(windowBytes / 4), CREDIT_EVERY_BYTES);
    this.#creditsAll = creditsAll;
  }

  /** What has arrived, the end included. */
  get received(): number {
    return this.#received + (this.#endReceived ? 1 : 0);
  }

  /** What the reader has taken, the end included. */
  get consumed(): number {
    return this.#consumed + (this.#endTold ? 1 : 0);
  }

  get endTold(): boolean {
    return this.#endTold;
  }

  /** The peer has to be told how far the reader is. */
  get creditDue(): boolean {
    return this.#creditDue;
  }

  /** The peer knows that the reader has taken the end. */
  get endCredited(): boolean {
    return this.#endTold && this.#credited === this.consumed && !this.#creditDue;
  }

  /** `bytes` have arrived; valid until the call returns. */
  accept(bytes: Uint8Array): void {
    if (this.#endReceived) throw new LinkProtocolError("data came after the end of a channel");
    if (this.#received + bytes.length > this.#granted) {
      throw new LinkProtocolError(`the peer sent more than the ${this.#granted} bytes that it was allowed`);
    }
    this.#received += bytes.length;
    this.#pieces += 1;
    if (this.#dropped) return;
    if (this.#kept.length > 0 || this.#delivering || !this.#reader.reading()) this.#keep(bytes);
    else this.#deliver(bytes);
  }

  /** The end has arrived, after `offset` bytes. */
  acceptEnd(offset: number): void {
    if (this.#endReceived || offset !== this.#received) {
      throw new LinkProtocolError(`a channel ended at ${offset}, where ${this.#received} bytes had come`);
    }
    this.#endReceived = true;
    this.deliverKept();
  }

  /** The reader is there, or reads again. */
  deliverKept(): void {
    if (this.#delivering || this.#dropped) return;
    while (this.#kept.length > 0 && this.#reader.reading()) {
      const chunk = this.#kept.shift() as Chunk;
      this.#deliver(chunk.bytes.subarray(0, chunk.used));
    }
    if (!this.#endReceived || this.#endTold || this.#kept.length > 0 || !this.#reader.reading()) return;
    this.#endTold = true;
    this.#creditDue = true;
    this.#reader.deliverEnd();
  }

  /** What a CREDIT has to say now. It counts as said. */
  takeCredit(): Credit {
    this.#creditDue = false;
    this.#pieces = 0;
    this.#credited = this.consumed;
    const offset = this.#creditsAll ? this.received : this.#credited;
    this.#granted = Math.max(this.#granted, offset + this.#windowBytes);
    return { offset, windowBytes: this.#windowBytes };
  }

  /** What was said may have been lost. */
  sayAgain(): void {
    this.#creditDue = true;
  }

  /** Nobody reads any more. What still comes is counted and dropped. */
  drop(): void {
    this.#dropped = true;
    this.#kept = [];
  }

  #deliver(bytes: Uint8Array): void {
    this.#delivering = true;
    this.#reader.deliver(bytes);
    this.#delivering = false;
    this.#consumed += bytes.length;
    const many = this.#consumed - this.#credited >= this.#creditEveryBytes || this.#pieces >= CREDIT_EVERY_PIECES;
    if (many) this.#creditDue = true;
  }

  #keep(bytes: Uint8Array): void {
    if (this.#creditsAll) this.#creditDue = true;
    let at = 0;
    while (at < bytes.length) {
      let chunk = this.#kept.at(-1);
      if (chunk === undefined || chunk.used === chunk.bytes.length) {
        chunk = { bytes: Buffer.allocUnsafeSlow(CHUNK_BYTES), used: 0 };
        this.#kept.push(chunk);
      }
      const count = Math.min(bytes.length - at, chunk.bytes.length - chunk.used);
      chunk.bytes.set(bytes.subarray(at, at + count), chunk.used);
      chunk.used += count;
      at += count;
    }
  }
}
