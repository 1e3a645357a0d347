/**
 * The receiving side of a handshake: collects bytes and hands out exact amounts. Handshakes are short, so clarity goes
 * before speed here; transmission has a parser of its own.
 *
 * Invariant: what is held is bounded. Above `HELD_PAUSE_ABOVE` the stream is paused; a stream that goes on delivering
 * all the same is dropped.
 */
import type { ByteSink, ByteStream } from "../../env/links.ts";
import { NbdProtocolError } from "../error.ts";

const HELD_PAUSE_ABOVE = 64 * 1024;
const HELD_MAX = 1024 * 1024;

interface Reading {
  readonly bytes: number;
  readonly resolve: (bytes: Uint8Array) => void;
  readonly reject: (error: Error) => void;
}

export class HandshakeReader implements ByteSink {
  readonly #stream: ByteStream;
  #held = new Uint8Array(0);
  #reading: Reading | undefined;
  #failure: Error | undefined;
  #paused = false;

  /** `stream` is not attached here: whoever makes the reader decides when delivery begins. */
  constructor(stream: ByteStream) {
    this.#stream = stream;
  }

  /** Bytes that have arrived and were not asked for yet. */
  get heldBytes(): number {
    return this.#held.length;
  }

  /** Resolves to exactly `bytes` bytes, owned by the caller. One read at a time. */
  read(bytes: number): Promise<Uint8Array> {
    if (this.#reading !== undefined) throw new Error("two reads of one handshake at a time");
    return new Promise((resolve, reject) => {
      this.#reading = { bytes, resolve, reject };
      this.#deliver();
    });
  }

  /** All that is held; for the hand-over to whoever reads next. */
  takeRest(): Uint8Array {
    const rest = this.#held;
    this.#held = new Uint8Array(0);
    if (this.#paused) this.#stream.resume();
    this.#paused = false;
    return rest;
  }

  /** Every read from now on that what is held does not satisfy fails with `error`; the first failure counts. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#deliver();
  }

  onBytes(bytes: Uint8Array): void {
    if (this.#failure !== undefined) return;
    const total = this.#held.length + bytes.length;
    if (total > HELD_MAX) {
      const error = new NbdProtocolError(`the server sent ${total} bytes that nobody asked for`);
      this.fail(error);
      this.#stream.destroy(error);
      return;
    }
    const joined = new Uint8Array(total);
    joined.set(this.#held);
    joined.set(bytes, this.#held.length);
    this.#held = joined;
    this.#deliver();
    if (this.#held.length > HELD_PAUSE_ABOVE && !this.#paused) {
      this.#paused = true;
      this.#stream.pause();
    }
  }

  onEnd(): void {
    this.fail(new ServerHungUp("the server closed the connection"));
  }

  onClose(error?: Error): void {
    const why = error === undefined ? "the connection was closed" : `the connection broke: ${error.message}`;
    this.fail(new ServerHungUp(why, { cause: error }));
  }

  onDrain(): void {}

  #deliver(): void {
    const reading = this.#reading;
    if (reading === undefined) return;
    if (this.#held.length < reading.bytes) {
      if (this.#failure === undefined) return;
      this.#reading = undefined;
      reading.reject(this.#failure);
      return;
    }
    this.#reading = undefined;
    const bytes = this.#held.slice(0, reading.bytes);
    this.#held = this.#held.slice(reading.bytes);
    if (this.#paused && this.#held.length <= HELD_PAUSE_ABOVE) {
      this.#paused = false;
      this.#stream.resume();
    }
    reading.resolve(bytes);
  }
}

/** The peer ended the connection without a word. What that means depends on what was asked last. */
export class ServerHungUp extends Error {
  override readonly name = "ServerHungUp";
}
