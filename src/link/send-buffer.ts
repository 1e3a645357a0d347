/**
 * The bytes of one channel, in one direction, that the peer has not acknowledged, laid out as frames: they are copied in
 * once, and go out (again and again, if need be) straight from where they lie.
 *
 * A block holds frames one behind the other, each with room for its header in front. A frame grows until it is sent for
 * the first time; then its length, and with it its header, stands. Frames that follow each other in a block leave in one
 * write. When a frame cannot be sent as it is (the peer's window ends within it, or after a cut the peer has a part of
 * it) its rest gets a header of its own.
 *
 * Invariants
 * - acknowledged ≤ sent ≤ end; bytes from `acknowledged` on are here.
 * - A block goes back to the pool when all its frames are acknowledged *and* no stream holds a piece of it.
 * - What is held, headers included, is at most the capacity, a frame more, and the rest of one block.
 */
import type { BufferPool } from "../util/buffer-pool.ts";
import { FRAME_HEADER_BYTES } from "./constants.ts";
import { putDataHeader } from "./frame.ts";
import { DATA_BYTES_MAX, FRAMES_IN_FLIGHT_MAX } from "./limits.ts";

/** Two full frames. */
const BLOCK_BYTES = 2 * (DATA_BYTES_MAX + FRAME_HEADER_BYTES);
/** An idle channel's few bytes must not take a whole block. */
const SMALL_BLOCK_BYTES = 4096;

/** Bytes to be written as they are, in this order, with a release to be called once for `bytes`. */
export interface Run {
  /** Set when the frame's header is not in front of its bytes. */
  readonly header: Uint8Array | undefined;
  readonly bytes: Uint8Array;
  readonly release: () => void;
  /** Bytes of the channel in it. */
  readonly dataBytes: number;
}

export interface SendBufferParts {
  readonly channel: number;
  readonly pool: BufferPool;
  readonly capacityBytes: number;
}

class Block {
  readonly bytes: Buffer;
  used = 0;
  /** Frames in it that are not acknowledged. */
  frames = 0;
  /** Pieces of it that a stream has. */
  written = 0;
  readonly release: () => void;

  constructor(bytes: Buffer, onReleased: (block: Block) => void) {
    this.bytes = bytes;
    this.release = () => onReleased(this);
  }

  get roomBytes(): number {
    return this.bytes.length - this.used - FRAME_HEADER_BYTES;
  }
}

interface Frame {
  readonly block: Block;
  /** Where its first byte of data is, in the block and in the channel. */
  readonly at: number;
  readonly offset: number;
  length: number;
  sealed: boolean;
}

export class SendBuffer {
  readonly #parts: SendBufferParts;
  #frames: Frame[] = [];
  /** The block that new frames are added to. */
  #tail: Block | undefined;
  /** The first frame that is not acknowledged; those before it are gone. */
  #head = 0;
  /** The first frame that is not sent completely. */
  #next = 0;
  #acknowledged = 0;
  #sent = 0;
  #end = 0;
  #dropped = false;

  constructor(parts: SendBufferParts) {
    this.#parts = parts;
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  get sent(): number {
    return this.#sent;
  }

  get end(): number {
    return this.#end;
  }

  /** So many frames wait to be acknowledged that the next ones have to wait, too. */
  get crowded(): boolean {
    return this.#next - this.#head >= FRAMES_IN_FLIGHT_MAX;
  }

  /** Copies as much of `bytes`, from `from` on, as there is room for; returns how much that was. */
  append(bytes: Uint8Array, from: number): number {
    let at = from;
    while (at < bytes.length && !this.#dropped) {
      const frame = this.#growing(bytes.length - at);
      if (frame === undefined) break;
      const inBlock = Math.min(DATA_BYTES_MAX - frame.length, frame.block.bytes.length - frame.block.used);
      const count = Math.min(bytes.length - at, inBlock, this.#roomBytes);
      frame.block.bytes.set(bytes.subarray(at, at + count), frame.block.used);
      frame.block.used += count;
      frame.length += count;
      this.#end += count;
      at += count;
    }
    return at - from;
  }

  /** What comes next, of at most about `bytesMax` and not past the offset `limit`. Undefined: there is nothing to send. */
  take(limit: number, bytesMax: number): Run | undefined {
    const frame = this.#frames[this.#next];
    const most = Math.min(limit, this.#end) - this.#sent;
    if (frame === undefined || most <= 0) return undefined;
    const skip = this.#sent - frame.offset;
    this.#seal(frame);
    if (skip > 0 || frame.length > most) return this.#takePart(frame, skip, most);
    return this.#takeWhole(frame, most, bytesMax);
  }

  /** The peer has everything up to `offset`, and will not ask for it again. */
  acknowledge(offset: number): void {
    if (offset < this.#acknowledged || offset > this.#sent) throw new RangeError("acknowledged what was not sent");
    this.#acknowledged = offset;
    while (this.#head < this.#next) {
      const frame = this.#frames[this.#head] as Frame;
      if (frame.offset + frame.length > offset) break;
      this.#head++;
      frame.block.frames--;
      this.#giveBack(frame.block);
    }
    if (this.#head < 64 || this.#head * 2 < this.#frames.length) return;
    this.#frames = this.#frames.slice(this.#head);
    this.#next -= this.#head;
    this.#head = 0;
  }

  /** From now on sends from `offset` on, which is not below what was acknowledged nor above what was sent. */
  rewind(offset: number): void {
    if (offset < this.#acknowledged || offset > this.#sent) throw new RangeError("cannot send from there");
    this.#sent = offset;
    this.#next = this.#head;
    for (let frame = this.#frames[this.#next]; frame !== undefined; frame = this.#frames[++this.#next]) {
      if (frame.offset + frame.length > offset) break;
    }
  }

  /** Forgets everything. Blocks that a stream holds go back when it has released them. */
  drop(): void {
    this.#dropped = true;
    const frames = this.#frames.slice(this.#head);
    this.#frames = [];
    for (const frame of frames) {
      frame.block.frames--;
      this.#giveBack(frame.block);
    }
    this.#head = 0;
    this.#next = 0;
  }

  #takeWhole(first: Frame, most: number, bytesMax: number): Run {
    const { block } = first;
    let dataBytes = 0;
    let end = first.at;
    for (let frame: Frame | undefined = first; frame !== undefined; frame = this.#frames[this.#next]) {
      const fits = dataBytes === 0 || dataBytes + frame.length <= bytesMax;
      if (frame.block !== block || dataBytes + frame.length > most || !fits) break;
      this.#seal(frame);
      dataBytes += frame.length;
      end = frame.at + frame.length;
      this.#next++;
    }
    this.#sent += dataBytes;
    return this.#run(block, { header: undefined, from: first.at - FRAME_HEADER_BYTES, end, dataBytes });
  }

  #takePart(frame: Frame, skip: number, most: number): Run {
    const length = Math.min(frame.length - skip, most);
    const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES);
    putDataHeader(header, 0, this.#parts.channel, length);
    this.#sent += length;
    if (skip + length === frame.length) this.#next++;
    const from = frame.at + skip;
    return this.#run(frame.block, { header, from, end: from + length, dataBytes: length });
  }

  #run(block: Block, what: { header: Uint8Array | undefined; from: number; end: number; dataBytes: number }): Run {
    block.written++;
    const { header, from, end, dataBytes } = what;
    return { header, bytes: block.bytes.subarray(from, end), release: block.release, dataBytes };
  }

  /**
   * What is not acknowledged, and its headers. Not the memory that is held: a frame of which only the beginning is
   * acknowledged would count whole, and could fill the buffer while its reader sees no reason for a CREDIT yet.
   */
  get #usedBytes(): number {
    return this.#end - this.#acknowledged + (this.#frames.length - this.#head) * FRAME_HEADER_BYTES;
  }

  get #roomBytes(): number {
    return this.#parts.capacityBytes - this.#usedBytes;
  }

  /** The frame that `bytes` more may be added to, if there is room for any. */
  #growing(bytes: number): Frame | undefined {
    // A frame that is not sealed was never sent, so it is here.
    const last = this.#frames.at(-1);
    const open = last !== undefined && !last.sealed && last.length < DATA_BYTES_MAX;
    if (open && last.block.used < last.block.bytes.length) return this.#roomBytes > 0 ? last : undefined;
    if (this.#roomBytes <= FRAME_HEADER_BYTES) return undefined;
    if (this.#tail === undefined || this.#tail.roomBytes <= 0) this.#tail = this.#newBlock(bytes);
    const block = this.#tail;
    block.used += FRAME_HEADER_BYTES;
    block.frames++;
    const frame = { block, at: block.used, offset: this.#end, length: 0, sealed: false };
    this.#frames.push(frame);
    return frame;
  }

  #newBlock(bytes: number): Block {
    const needed = bytes + FRAME_HEADER_BYTES;
    const size = needed <= SMALL_BLOCK_BYTES && this.#usedBytes < SMALL_BLOCK_BYTES ? SMALL_BLOCK_BYTES : BLOCK_BYTES;
    return new Block(this.#parts.pool.take(size), (block) => {
      block.written--;
      this.#giveBack(block);
    });
  }

  #seal(frame: Frame): void {
    if (frame.sealed) return;
    frame.sealed = true;
    putDataHeader(frame.block.bytes, frame.at - FRAME_HEADER_BYTES, this.#parts.channel, frame.length);
  }

  /** Called whenever one of the two numbers has come down. */
  #giveBack(block: Block): void {
    if (block.frames > 0 || block.written > 0) return;
    if (this.#tail === block) this.#tail = undefined;
    this.#parts.pool.give(block.bytes);
  }
}
