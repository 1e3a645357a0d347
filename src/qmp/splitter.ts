/**
 * Cuts what QEMU sends into JSON objects. An ordinary monitor sends one a line; one that was made with `pretty=on` spreads
 * them over many. Neither needs a parser to be told apart: an object ends where its braces balance, outside of strings.
 *
 * Room is made for bytes that have arrived, up to the longest message, and for nothing else.
 */
import { QmpProtocolError } from "./errors.ts";
import { MESSAGE_BYTES_MAX } from "./limits.ts";

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN = 0x7b;
const CLOSE = 0x7d;
const SPACES = new Set([0x20, 0x09, 0x0a, 0x0d]);

export class MessageSplitter {
  readonly #bytesMax: number;
  #held: Uint8Array[] = [];
  #heldBytes = 0;
  #depth = 0;
  #inString = false;
  #escaped = false;

  constructor(bytesMax = MESSAGE_BYTES_MAX) {
    this.#bytesMax = bytesMax;
  }

  /** The texts of the objects that are complete with `bytes`. Throws `QmpProtocolError`, and is then of no use any more. */
  push(bytes: Uint8Array): string[] {
    const texts: string[] = [];
    let start = 0;
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at] as number;
      if (this.#depth === 0 && byte !== OPEN) {
        if (!SPACES.has(byte)) throw new QmpProtocolError("this is not QMP: something between the messages");
        start = at + 1;
      } else if (this.#endsWith(byte)) {
        this.#hold(bytes.subarray(start, at + 1));
        texts.push(this.#taken());
        start = at + 1;
      }
    }
    // A copy: a Buffer's own `slice` would be a view of what is gone when we return.
    this.#hold(new Uint8Array(bytes.subarray(start)));
    return texts;
  }

  /** Takes a byte of an object in; true when it is its last. */
  #endsWith(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === BACKSLASH) this.#escaped = true;
      else if (byte === QUOTE) this.#inString = false;
      return false;
    }
    if (byte === QUOTE) this.#inString = true;
    else if (byte === OPEN) this.#depth += 1;
    else if (byte === CLOSE) this.#depth -= 1;
    return this.#depth === 0;
  }

  #hold(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#held.push(bytes);
    this.#heldBytes += bytes.length;
    if (this.#heldBytes > this.#bytesMax) {
      throw new QmpProtocolError(`a message has more than ${this.#bytesMax} bytes`);
    }
  }

  #taken(): string {
    const text = Buffer.concat(this.#held).toString("utf8");
    this.#held = [];
    this.#heldBytes = 0;
    return text;
  }
}
