/**
 * Gathers the replies of one connection into few writes. Replies to requests that arrived together leave together, in a
 * buffer that is used again as soon as the kernel has taken it.
 *
 * Invariant: at most `BUFFERS_MAX` gathering buffers are alive per connection. When the client is slower than that, the
 * writer is `full`: `reserve` answers −1, the connection stops taking requests, and `onRoom` is called once there is room.
 * The buffers are paid for out of the connection's budget account; while that has nothing to give they are so small that
 * they take replies without data only.
 */
import type { ByteStream } from "../../env/links.ts";
import type { BufferPool } from "../../util/buffer-pool.ts";
import type { BudgetAccount } from "../../util/payload-budget.ts";
import { SMALL_REPLY_BYTES } from "./reply.ts";

/** Room for one 256 KiB read with its header, or some sixty of 4 KiB: all of a buffer of the pool's. */
export const GATHER_BYTES = 256 * 1024 + 64;
/** Send what has been gathered once it is this much: more would leave the second-level cache. */
const FLUSH_AT_BYTES = 128 * 1024;
const BUFFERS_MAX = 2;
/** What a gathering buffer shrinks to when memory is scarce. Not counted: the smallest buffer of the pool's. */
const SCARCE_GATHER_BYTES = 4096;

export class ReplyWriter {
  readonly #stream: ByteStream;
  readonly #pool: BufferPool;
  readonly #account: BudgetAccount;
  #current: GatherBuffer | undefined;
  #used = 0;
  #alive = 0;
  readonly #onRoom: () => void;

  constructor(stream: ByteStream, memory: { pool: BufferPool; account: BudgetAccount }, onRoom: () => void) {
    this.#stream = stream;
    this.#pool = memory.pool;
    this.#account = memory.account;
    this.#onRoom = onRoom;
  }

  /** No reply with data can be gathered until the client has taken something. */
  get full(): boolean {
    return this.#current === undefined && this.#alive >= BUFFERS_MAX;
  }

  /** The buffer in which the last reservation lies. */
  get buffer(): Buffer {
    if (this.#current === undefined) throw new Error("nothing is reserved");
    return this.#current.bytes;
  }

  /**
   * Where `bytes` (≤ GATHER_BYTES) may be put in `buffer`; −1 when the client must take something first, or memory is too
   * scarce for so many. `commit` makes them count.
   */
  reserve(bytes: number): number {
    if (this.#current !== undefined && this.#used + bytes > this.#current.bytes.length) this.flush();
    if (this.#current === undefined) {
      if (this.#alive >= BUFFERS_MAX) return -1;
      this.#current = this.#takeBuffer();
    }
    return bytes <= this.#current.bytes.length ? this.#used : -1;
  }

  commit(bytes: number): void {
    this.#used += bytes;
    if (this.#used >= FLUSH_AT_BYTES) this.flush();
  }

  /** Where a reply without data may be put, even when the client takes nothing: bounded by the requests under way. */
  reserveSmall(): number {
    const at = this.reserve(SMALL_REPLY_BYTES);
    if (at >= 0) return at;
    this.#current = new GatherBuffer(Buffer.allocUnsafe(SMALL_REPLY_BYTES), () => {});
    return 0;
  }

  /** As `commit`, after `reserveSmall`. */
  commitSmall(bytes: number): void {
    this.#used += bytes;
    if (this.#current !== undefined && this.#current.bytes.length < GATHER_BYTES) this.flush();
  }

  /** Sends what has been gathered. A buffer that nothing was put into goes back, so that nobody has to pay for it. */
  flush(): void {
    const current = this.#current;
    const used = this.#used;
    if (current === undefined) return;
    if (used === 0) {
      this.dispose();
      return;
    }
    this.#current = undefined;
    this.#used = 0;
    this.#stream.write(current.bytes.subarray(0, used), current.release);
  }

  /** Gives an unused buffer back; what has been gathered is dropped. */
  dispose(): void {
    const current = this.#current;
    this.#current = undefined;
    this.#used = 0;
    current?.release();
  }

  #takeBuffer(): GatherBuffer {
    this.#alive++;
    const paid = this.#account.tryTake(this.#pool.sizeFor(GATHER_BYTES));
    const bytes = this.#pool.take(paid ? GATHER_BYTES : SCARCE_GATHER_BYTES);
    const buffer: GatherBuffer = new GatherBuffer(bytes, () => this.#released(buffer));
    return buffer;
  }

  #released(buffer: GatherBuffer): void {
    const wasFull = this.full;
    this.#alive--;
    if (buffer.bytes.length >= GATHER_BYTES) this.#account.giveBack(buffer.bytes.length);
    this.#pool.give(buffer.bytes);
    if (wasFull) this.#onRoom();
  }
}

class GatherBuffer {
  readonly bytes: Buffer;
  readonly release: () => void;

  constructor(bytes: Buffer, release: () => void) {
    this.bytes = bytes;
    this.release = release;
  }
}
