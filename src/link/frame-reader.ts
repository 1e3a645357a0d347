/**
 * Cuts a byte stream into frames. DATA is passed on in whatever pieces it arrives, without a copy; all other frames are
 * short, and are collected.
 *
 * Invariant: what is held is at most one header and one frame that is not DATA.
 */
import { FRAME_DATA, FRAME_HEADER_BYTES } from "./constants.ts";
import { CONTROL_PAYLOAD_MAX, checkHeader, type FrameHeader, readHeader } from "./frame.ts";

export interface FrameHandler {
  /** Bytes of a DATA frame of `channel`, valid until the call returns. */
  onData(channel: number, bytes: Uint8Array): void;
  /** Any other frame; both are valid until the call returns. */
  onFrame(header: Readonly<FrameHeader>, payload: Uint8Array): void;
}

const NO_BYTES = new Uint8Array(0);

export class FrameReader {
  readonly #handler: FrameHandler;
  readonly #header: FrameHeader = { type: 0, channel: 0, flags: 0, length: 0 };
  readonly #headerBytes = new Uint8Array(FRAME_HEADER_BYTES);
  #headerHeld = 0;
  /** Bytes of the payload that have not arrived; −1 while a header is awaited. */
  #missing = -1;
  /** Grows to the longest frame that came, which the form of its type bounds. */
  #held: Uint8Array = NO_BYTES;
  #stopped = false;

  constructor(handler: FrameHandler) {
    this.#handler = handler;
  }

  /** Nothing more is passed on: also within a call of the handler. */
  stop(): void {
    this.#stopped = true;
  }

  /** Throws `LinkProtocolError`, and whatever the handler throws; of no use any more afterwards. */
  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#stopped; ) {
      at += this.#missing < 0 ? this.#takeHeader(bytes, at) : this.#takePayload(bytes, at);
    }
  }

  #takeHeader(bytes: Uint8Array, at: number): number {
    if (this.#headerHeld === 0 && bytes.length - at >= FRAME_HEADER_BYTES) {
      readHeader(bytes, at, this.#header);
      this.#begin();
      return FRAME_HEADER_BYTES;
    }
    const count = Math.min(FRAME_HEADER_BYTES - this.#headerHeld, bytes.length - at);
    this.#headerBytes.set(bytes.subarray(at, at + count), this.#headerHeld);
    this.#headerHeld += count;
    if (this.#headerHeld === FRAME_HEADER_BYTES) {
      this.#headerHeld = 0;
      readHeader(this.#headerBytes, 0, this.#header);
      this.#begin();
    }
    return count;
  }

  #begin(): void {
    checkHeader(this.#header);
    this.#missing = this.#header.length;
    if (this.#missing === 0) this.#complete(NO_BYTES);
  }

  #takePayload(bytes: Uint8Array, at: number): number {
    const { type, channel, length } = this.#header;
    const count = Math.min(this.#missing, bytes.length - at);
    const piece = bytes.subarray(at, at + count);
    if (type === FRAME_DATA) {
      this.#missing -= count;
      if (this.#missing === 0) this.#missing = -1;
      this.#handler.onData(channel, piece);
      return count;
    }
    if (count === length) {
      this.#complete(piece);
      return count;
    }
    if (this.#held.length < length) this.#held = this.#grown(length);
    this.#held.set(piece, length - this.#missing);
    this.#missing -= count;
    if (this.#missing === 0) this.#complete(this.#held.subarray(0, length));
    return count;
  }

  /** Only at the start of a payload, when nothing is held. */
  #grown(length: number): Uint8Array {
    if (length > CONTROL_PAYLOAD_MAX) throw new Error("a frame was let through that is too long");
    return new Uint8Array(length);
  }

  #complete(payload: Uint8Array): void {
    this.#missing = -1;
    this.#handler.onFrame(this.#header, payload);
  }
}
