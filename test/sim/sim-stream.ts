/**
 * One end of a simulated connection. Bytes go from the writer's buffers into the "kernel" in pieces of any length, travel
 * in order with latency and bandwidth, and arrive in pieces of any length, in a receive buffer that is overwritten as
 * soon as the sink returns. A buffer is released only when its last byte has been taken, which may be late.
 */
import type { ByteSink, ByteStream } from "../../src/env/links.ts";
import type { Prng } from "../support/seed.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimProcess } from "./sim-process.ts";

const GARBAGE = 0xee;
const RECEIVE_BYTES = 64 * 1024;

export interface LineQuality {
  readonly latencyMs: number;
  readonly bytesPerMs: number;
  /** Bytes that are on their way, or wait for the reader. */
  readonly windowBytes: number;
  /** How likely a piece is a short one. */
  readonly shortPieces: number;
}

interface Outgoing {
  readonly bytes: Uint8Array;
  taken: number;
  readonly release: (() => void) | undefined;
}

export interface StreamParts {
  readonly scheduler: Scheduler;
  readonly rng: Prng;
  readonly quality: LineQuality;
  readonly process: SimProcess;
  readonly peer: string;
  readonly onGone: (stream: SimStream) => void;
}

export class SimStream implements ByteStream {
  readonly peer: string;
  readonly #parts: StreamParts;
  readonly #receive = new Uint8Array(RECEIVE_BYTES);
  #other: SimStream | undefined;
  #sink: ByteSink | undefined;
  #queue: Outgoing[] = [];
  #pendingBytes = 0;
  #takeScheduled = false;
  /** Taken from our writer, not yet handed to the peer's sink, in order. */
  #line: { readonly atMs: number; bytes: Uint8Array }[] = [];
  #lineBytes = 0;
  #deliverScheduled = false;
  #lineFreeAtMs = 0;
  #deliveredBytes = 0;
  #cutAfterBytes = Infinity;
  #blocked = false;
  #paused = false;
  #ending = false;
  #endDelivered = false;
  #closed = false;
  #closeTold = false;
  #closeError: Error | undefined;

  constructor(parts: StreamParts) {
    this.peer = parts.peer;
    this.#parts = parts;
    parts.process.onDeath(() => this.destroy());
  }

  /** @internal The two ends of one connection. */
  join(other: SimStream): void {
    this.#other = other;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Bytes from this end that the other one's sink has been given. */
  get deliveredBytes(): number {
    return this.#deliveredBytes;
  }

  /** The connection breaks, for both ends, once so many bytes from this end have been delivered in all. */
  cutAfter(bytes: number): void {
    this.#cutAfterBytes = bytes;
    this.#scheduleDelivery();
  }

  /** The connection breaks now, for both ends. */
  cut(): void {
    const error = Object.assign(new Error("connection reset"), { code: "ECONNRESET" });
    this.#close(error);
    this.#peerEnd.#close(error);
  }

  /** One-way partition: nothing that leaves this end arrives until `heal`. Both ways is a black hole. */
  block(): void {
    this.#blocked = true;
  }

  heal(): void {
    this.#blocked = false;
    this.#scheduleDelivery();
  }

  attach(sink: ByteSink): void {
    this.#sink = sink;
    if (this.#closed) this.#tellClose();
    this.#peerEnd.#scheduleDelivery();
  }

  write(bytes: Uint8Array, release?: () => void): void {
    if (this.#ending) throw new Error("written after the end");
    if (this.#closed || bytes.length === 0) {
      release?.();
      return;
    }
    const { rng, quality } = this.#parts;
    const fits = this.#queue.length === 0 && this.#lineBytes + bytes.length <= quality.windowBytes;
    if (fits && rng.chance(0.5)) {
      // A copy: `slice` of a Buffer would be a view.
      this.#putOnLine(new Uint8Array(bytes));
      release?.();
      return;
    }
    this.#queue.push({ bytes, taken: 0, release });
    this.#pendingBytes += bytes.length;
    this.#scheduleTaking();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#peerEnd.#scheduleDelivery();
  }

  end(): void {
    this.#ending = true;
    this.#scheduleDelivery();
  }

  destroy(error?: Error): void {
    if (this.#closed) return;
    this.#close(error);
    const other = this.#peerEnd;
    // What the kernel had taken still arrives; then comes the end of it.
    this.#parts.scheduler.after(this.#latency(), "reset", () => {
      if (other.#closed) return;
      other.#sinkIfAlive()?.onEnd();
      other.#close(undefined);
    });
  }

  get #peerEnd(): SimStream {
    if (this.#other === undefined) throw new Error("this end has no other end");
    return this.#other;
  }

  #sinkIfAlive(): ByteSink | undefined {
    return this.#parts.process.alive && !this.#closed ? this.#sink : undefined;
  }

  #latency(): number {
    return this.#parts.quality.latencyMs * (1 + this.#parts.rng.float() / 4);
  }

  #scheduleTaking(): void {
    if (this.#takeScheduled || this.#closed || this.#queue.length === 0) return;
    if (this.#lineBytes >= this.#parts.quality.windowBytes) return;
    this.#takeScheduled = true;
    this.#parts.scheduler.after(this.#parts.rng.float() * 0.05, "take", () => {
      this.#takeScheduled = false;
      this.#take();
    });
  }

  /** Moves bytes from the writer's buffers onto the line; buffers that are used up go back. */
  #take(): void {
    const { rng, quality } = this.#parts;
    let room = Math.min(quality.windowBytes - this.#lineBytes, this.#pendingBytes);
    if (this.#closed || room <= 0) return;
    if (rng.chance(quality.shortPieces)) room = rng.integer(1, room);
    const piece = new Uint8Array(room);
    const done: (() => void)[] = [];
    for (let at = 0; at < room; ) {
      const first = this.#queue[0];
      if (first === undefined) throw new Error("fewer bytes than counted");
      const step = Math.min(room - at, first.bytes.length - first.taken);
      piece.set(first.bytes.subarray(first.taken, first.taken + step), at);
      first.taken += step;
      at += step;
      if (first.taken < first.bytes.length) continue;
      this.#queue.shift();
      if (first.release !== undefined) done.push(first.release);
    }
    this.#pendingBytes -= room;
    this.#putOnLine(piece);
    for (const release of done) release();
    if (this.#pendingBytes === 0) this.#sinkIfAlive()?.onDrain();
    this.#scheduleTaking();
  }

  #putOnLine(bytes: Uint8Array): void {
    const { scheduler, quality } = this.#parts;
    const startMs = Math.max(this.#lineFreeAtMs, scheduler.nowMs);
    this.#lineFreeAtMs = startMs + bytes.length / quality.bytesPerMs;
    this.#line.push({ atMs: this.#lineFreeAtMs + this.#latency(), bytes });
    this.#lineBytes += bytes.length;
    this.#scheduleDelivery();
  }

  #scheduleDelivery(): void {
    const idle = this.#line.length === 0 && !(this.#ending && !this.#endDelivered);
    if (this.#deliverScheduled || (idle && this.#deliveredBytes < this.#cutAfterBytes)) return;
    this.#deliverScheduled = true;
    const { scheduler } = this.#parts;
    const atMs = this.#line[0]?.atMs ?? scheduler.nowMs + this.#latency();
    scheduler.after(atMs - scheduler.nowMs, "deliver", () => {
      this.#deliverScheduled = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    const other = this.#peerEnd;
    if (this.#blocked || other.#closed || other.#paused || other.#sink === undefined) return;
    if (this.#deliveredBytes >= this.#cutAfterBytes) {
      this.cut();
      return;
    }
    const first = this.#line[0];
    if (first === undefined) this.#deliverEnd(other);
    else this.#deliverPiece(other, first);
    this.#scheduleDelivery();
  }

  #deliverPiece(other: SimStream, first: { bytes: Uint8Array }): void {
    const { rng, quality, scheduler } = this.#parts;
    const most = Math.min(first.bytes.length, RECEIVE_BYTES, this.#cutAfterBytes - this.#deliveredBytes);
    const count = rng.chance(quality.shortPieces) ? rng.integer(1, most) : most;
    other.#receive.set(first.bytes.subarray(0, count));
    if (count === first.bytes.length) this.#line.shift();
    else first.bytes = first.bytes.subarray(count);
    this.#lineBytes -= count;
    this.#deliveredBytes += count;
    scheduler.trace("bytes", count, this.#deliveredBytes);
    const received = Buffer.from(other.#receive.buffer, 0, count);
    other.#sinkIfAlive()?.onBytes(received);
    other.#receive.fill(GARBAGE, 0, count);
    this.#scheduleTaking();
  }

  #deliverEnd(other: SimStream): void {
    if (!this.#ending || this.#endDelivered || this.#queue.length > 0) return;
    this.#endDelivered = true;
    other.#sinkIfAlive()?.onEnd();
    if (!other.#endDelivered) return;
    this.#close(undefined);
    other.#close(undefined);
  }

  #close(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeError = error;
    const queue = this.#queue;
    this.#queue = [];
    this.#pendingBytes = 0;
    this.#parts.onGone(this);
    if (!this.#parts.process.alive) return;
    this.#parts.scheduler.after(0, "close", () => {
      this.#tellClose();
      for (const { release } of queue) release?.();
    });
  }

  #tellClose(): void {
    if (this.#closeTold || this.#sink === undefined || !this.#parts.process.alive) return;
    this.#closeTold = true;
    this.#sink.onClose(this.#closeError);
  }
}
