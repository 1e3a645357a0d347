/**
 * Recycled payload buffers in power-of-two classes, so that a busy connection does not touch fresh pages for each
 * request (a new 256 KiB buffer per read cost a third of the sequential throughput). What is kept while idle is bounded.
 */

const SMALLEST_CLASS_BYTES = 4096;
/** Buffers above this are not worth keeping. */
const LARGEST_CLASS_BYTES = 2 * 1024 * 1024;
/** All idle buffers together. */
const IDLE_BYTES_MAX = 32 * 1024 * 1024;

export class BufferPool {
  readonly #idle = new Map<number, Buffer[]>();
  #idleBytes = 0;

  /** A buffer of at least `bytes`, with unspecified contents; exactly the length of its class, or `bytes` if larger. */
  take(bytes: number): Buffer {
    if (bytes > LARGEST_CLASS_BYTES) return Buffer.allocUnsafeSlow(bytes);
    const classBytes = classOf(bytes);
    const buffer = this.#idle.get(classBytes)?.pop();
    if (buffer === undefined) return Buffer.allocUnsafeSlow(classBytes);
    this.#idleBytes -= classBytes;
    return buffer;
  }

  /** Hands a buffer from `take` back. The caller must not use it, or any view of it, again. */
  give(buffer: Buffer): void {
    const bytes = buffer.length;
    if (bytes > LARGEST_CLASS_BYTES || this.#idleBytes + bytes > IDLE_BYTES_MAX) return;
    const list = this.#idle.get(bytes);
    if (list === undefined) this.#idle.set(bytes, [buffer]);
    else list.push(buffer);
    this.#idleBytes += bytes;
  }

  get idleBytes(): number {
    return this.#idleBytes;
  }
}

function classOf(bytes: number): number {
  if (bytes <= SMALLEST_CLASS_BYTES) return SMALLEST_CLASS_BYTES;
  return 2 ** (32 - Math.clz32(bytes - 1));
}
