/**
 * Messages over a channel: each is a length (u32, big-endian) and so many bytes. What the bytes mean is for others.
 *
 * Invariants
 * - Room is made for bytes that have arrived, never for a length that the peer has named.
 * - What waits to be sent is bounded: a peer that does not read makes `send` fail, it does not make us keep more and more.
 */
import type { ByteSink, ByteStream } from "../env/links.ts";
import { LinkError, LinkProtocolError } from "./errors.ts";

const LENGTH_BYTES = 4;
export const MESSAGE_BYTES_MAX = 64 * 1024;
/** Messages that the channel has not taken. */
const UNSENT_BYTES_MAX = 1024 * 1024;

export interface MessageHooks {
  /** `message` is owned by the callee. Must not throw. */
  onMessage(message: Uint8Array): void;
  /** The peer sends no more messages. */
  onEnd(): void;
  /** Nothing can be sent or received any more. Called once. */
  onClose(error?: Error): void;
  /** The channel has taken all that was sent. */
  onDrain?(): void;
}

export class MessageStream implements ByteSink {
  readonly #stream: ByteStream;
  readonly #hooks: MessageHooks;
  readonly #bytesMax: number;
  #held = new Uint8Array(LENGTH_BYTES);
  #heldBytes = 0;
  #over = false;

  /** `stream` becomes the message stream's own. */
  constructor(stream: ByteStream, hooks: MessageHooks, bytesMax = MESSAGE_BYTES_MAX) {
    this.#stream = stream;
    this.#hooks = hooks;
    this.#bytesMax = bytesMax;
    stream.attach(this);
  }

  /** Sends a message; `message` may be used again afterwards. Throws `LinkError("limit")` when the peer reads too slowly. */
  send(message: Uint8Array): void {
    if (message.length === 0 || message.length > this.#bytesMax) {
      throw new RangeError(`a message has 1 to ${this.#bytesMax} bytes, not ${message.length}`);
    }
    if (this.#over) throw new LinkError("closed", "the message channel is closed");
    if (this.#stream.pendingBytes > UNSENT_BYTES_MAX)
      throw new LinkError("limit", "the peer does not take its messages");
    const framed = new Uint8Array(LENGTH_BYTES + message.length);
    new DataView(framed.buffer).setUint32(0, message.length);
    framed.set(message, LENGTH_BYTES);
    this.#stream.write(framed);
  }

  /** Bytes that the channel has not taken; too many of them make `send` fail. */
  get pendingBytes(): number {
    return this.#stream.pendingBytes;
  }

  /** Sends what was given, then no more. */
  end(): void {
    this.#stream.end();
  }

  destroy(error?: Error): void {
    this.#stream.destroy(error);
  }

  onBytes(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#over; ) at += this.#take(bytes, at);
  }

  onEnd(): void {
    if (this.#over) return;
    if (this.#heldBytes > 0) this.#violated("the peer ended within a message");
    else this.#hooks.onEnd();
  }

  onClose(error?: Error): void {
    if (this.#over) return;
    this.#over = true;
    this.#hooks.onClose(error);
  }

  onDrain(): void {
    if (!this.#over) this.#hooks.onDrain?.();
  }

  /** Takes from `bytes` what belongs to the present message; returns how much that was. */
  #take(bytes: Uint8Array, at: number): number {
    const wanted = this.#heldBytes < LENGTH_BYTES ? LENGTH_BYTES : LENGTH_BYTES + this.#length;
    const count = Math.min(wanted - this.#heldBytes, bytes.length - at);
    this.#hold(bytes.subarray(at, at + count), wanted);
    if (this.#heldBytes < wanted) return count;
    if (wanted > LENGTH_BYTES) {
      const message = this.#held.slice(LENGTH_BYTES, wanted);
      this.#heldBytes = 0;
      this.#held = new Uint8Array(LENGTH_BYTES);
      this.#hooks.onMessage(message);
    } else if (this.#length === 0 || this.#length > this.#bytesMax) {
      this.#violated(`the peer announced a message of ${this.#length} bytes`);
    }
    return count;
  }

  get #length(): number {
    return new DataView(this.#held.buffer).getUint32(0);
  }

  #hold(bytes: Uint8Array, wanted: number): void {
    const needed = this.#heldBytes + bytes.length;
    if (needed > this.#held.length) {
      const larger = new Uint8Array(Math.min(wanted, 2 * needed));
      larger.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = larger;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = needed;
  }

  #violated(why: string): void {
    const error = new LinkProtocolError(why);
    this.#over = true;
    this.#stream.destroy(error);
    this.#hooks.onClose(error);
  }
}
