/**
 * Recycled payload buffers in classes, so that a busy connection does not touch fresh pages for each request (a new
 * 256 KiB buffer per read cost a third of the sequential throughput). A class is a power of two and room for what
 * precedes the payload on the wire. What is kept while idle is bounded; what is not kept is freed at once: left to the
 * garbage collector, a burst of large buffers was seen to triple the process's memory.
 */

const HEADER_ROOM_BYTES = 64;
const SMALLEST_CLASS_BYTES = 4096 + HEADER_ROOM_BYTES;
/** Buffers above this are not worth keeping. */
const LARGEST_CLASS_BYTES = 2 * 1024 * 1024 + HEADER_ROOM_BYTES;
/** All idle buffers together. */
const IDLE_BYTES_MAX = 16 * 1024 * 1024;

export class BufferPool {
  readonly #idle = new Map<number, Buffer[]>();
  readonly #roomBytes: () => number;
  #idleBytes = 0;

  /** `roomBytes`: how much memory there is for idle buffers at the moment, where others need it too. */
  constructor(roomBytes: () => number = () => IDLE_BYTES_MAX) {
    this.#roomBytes = roomBytes;
  }

  /** What a buffer for `bytes` takes of memory: the length that `take` would give it. */
  sizeFor(bytes: number): number {
    if (bytes > LARGEST_CLASS_BYTES) return bytes;
    if (bytes <= SMALLEST_CLASS_BYTES) return SMALLEST_CLASS_BYTES;
    return 2 ** (32 - Math.clz32(bytes - HEADER_ROOM_BYTES - 1)) + HEADER_ROOM_BYTES;
  }

  /** A buffer of `sizeFor(bytes)` bytes, with unspecified contents. */
  take(bytes: number): Buffer {
    const size = this.sizeFor(bytes);
    const buffer = this.#idle.get(size)?.pop();
    if (buffer === undefined) {
      this.#makeRoom();
      return Buffer.allocUnsafeSlow(size);
    }
    this.#idleBytes -= size;
    return buffer;
  }

  /** Hands a buffer from `take` back. The caller must not use it, or any view of it, again. */
  give(buffer: Buffer): void {
    const bytes = buffer.length;
    if (bytes > LARGEST_CLASS_BYTES || this.#idleBytes + bytes > this.#idleBytesMax()) {
      free(buffer);
      return;
    }
    const list = this.#idle.get(bytes);
    if (list === undefined) this.#idle.set(bytes, [buffer]);
    else list.push(buffer);
    this.#idleBytes += bytes;
  }

  get idleBytes(): number {
    return this.#idleBytes;
  }

  #idleBytesMax(): number {
    return Math.min(IDLE_BYTES_MAX, this.#roomBytes());
  }

  /** Frees what there is no room for any more. */
  #makeRoom(): void {
    const max = this.#idleBytesMax();
    for (const list of this.#idle.values()) {
      while (this.#idleBytes > max) {
        const buffer = list.pop();
        if (buffer === undefined) break;
        this.#idleBytes -= buffer.length;
        free(buffer);
      }
    }
  }
}

function free(buffer: Buffer): void {
  // Only this frees the memory now.
  (buffer.buffer as ArrayBuffer).transfer(0);
}
