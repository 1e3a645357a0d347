/**
 * Messages on a byte stream, in both directions alike:
 *
 *     offset  size  what
 *     0       4     N, the length of the body: unsigned, big-endian, 1 … 65,536
 *     4       N     the body: one msgpack map (nil, booleans, integers, floats, UTF-8 strings, arrays, maps)
 *
 * Room is made for bytes that have arrived, never for a length that a peer has named.
 */
import { Decoder, Encoder } from "@msgpack/msgpack";
import { ControlError, ControlProtocolError } from "./errors.ts";
import { DEPTH_MAX, MESSAGE_BYTES_MAX } from "./limits.ts";
import { checkShape } from "./shape.ts";

const HEADER_BYTES = 4;

// One of each for the process: 150 ns a message, against 1 µs for a new one.
const encoder = new Encoder({ ignoreUndefined: true, maxDepth: DEPTH_MAX + 1 });
const decoder = new Decoder({
  maxStrLength: MESSAGE_BYTES_MAX,
  maxBinLength: 0,
  maxExtLength: 0,
  maxArrayLength: MESSAGE_BYTES_MAX,
  maxMapLength: 1024,
});

/** One message as it goes over the wire. The bytes are the caller's. Throws `ControlError("too-large")`. */
export function encodeMessage(message: object): Uint8Array {
  const body = encoder.encodeSharedRef(message);
  if (body.length > MESSAGE_BYTES_MAX) {
    throw new ControlError("too-large", `a message of ${body.length} bytes does not fit into ${MESSAGE_BYTES_MAX}`);
  }
  const frame = new Uint8Array(HEADER_BYTES + body.length);
  new DataView(frame.buffer).setUint32(0, body.length);
  frame.set(body, HEADER_BYTES);
  return frame;
}

/** The map in a body. Throws `ControlProtocolError` for anything else. */
export function decodeBody(body: Uint8Array): unknown {
  checkShape(body);
  try {
    return decoder.decode(body);
  } catch (error) {
    throw new ControlProtocolError(`a message cannot be decoded: ${(error as Error).message}`);
  }
}

/** Cuts what arrives into bodies. Of no use any more once it has thrown. */
export class FrameReader {
  /** The beginning of a frame that has not arrived completely. */
  #held = new Uint8Array(0);
  #heldBytes = 0;

  /**
   * Calls `onBody` for every message that is complete with `bytes`; a body is valid until the call returns. When it
   * returns false, the rest of `bytes` is left alone, and returned. Throws `ControlProtocolError` for a length that
   * cannot be.
   */
  push(bytes: Uint8Array, onBody: (body: Uint8Array) => boolean): Uint8Array {
    let rest = bytes;
    let goOn = true;
    const take = (body: Uint8Array): boolean => {
      goOn = onBody(body);
      return goOn;
    };
    while (goOn && rest.length > 0) {
      if (this.#heldBytes === 0) rest = this.#takeWhole(rest, take);
      if (goOn && rest.length > 0) rest = this.#takePart(rest, take);
    }
    return rest;
  }

  /** Messages that lie complete in `bytes` are not copied. Returns what is left. */
  #takeWhole(bytes: Uint8Array, onBody: (body: Uint8Array) => boolean): Uint8Array {
    let at = 0;
    while (bytes.length - at >= HEADER_BYTES) {
      const end = at + HEADER_BYTES + lengthOf(bytes, at);
      if (end > bytes.length) break;
      const body = bytes.subarray(at + HEADER_BYTES, end);
      at = end;
      if (!onBody(body)) break;
    }
    return bytes.subarray(at);
  }

  /** Adds to the frame that has begun, and no more than belongs to it. Returns what is left. */
  #takePart(bytes: Uint8Array, onBody: (body: Uint8Array) => boolean): Uint8Array {
    const known = this.#heldBytes >= HEADER_BYTES;
    const frameBytes = HEADER_BYTES + (known ? lengthOf(this.#held, 0) : 0);
    const count = Math.min(frameBytes - this.#heldBytes, bytes.length);
    this.#hold(bytes.subarray(0, count));
    if (!known && this.#heldBytes === HEADER_BYTES) lengthOf(this.#held, 0);
    if (known && this.#heldBytes === frameBytes) {
      const body = this.#held.subarray(HEADER_BYTES, frameBytes);
      this.#held = new Uint8Array(0);
      this.#heldBytes = 0;
      onBody(body);
    }
    return bytes.subarray(count);
  }

  #hold(bytes: Uint8Array): void {
    const needed = this.#heldBytes + bytes.length;
    if (needed > this.#held.length) {
      const larger = new Uint8Array(Math.min(2 * needed, HEADER_BYTES + MESSAGE_BYTES_MAX));
      larger.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = larger;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = needed;
  }
}

function lengthOf(frame: Uint8Array, at: number): number {
  const length = new DataView(frame.buffer, frame.byteOffset + at, HEADER_BYTES).getUint32(0);
  if (length >= 1 && length <= MESSAGE_BYTES_MAX) return length;
  throw new ControlProtocolError(`a message says that it has ${length} bytes, and 1 to ${MESSAGE_BYTES_MAX} may be`);
}
