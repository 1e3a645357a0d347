/**
 * One end of a simulated connection. Bytes go from the writer's buffers into the "kernel" in pieces of any length, travel
 * in order with latency and bandwidth, and arrive in pieces of any length, in a receive buffer that is overwritten as
 * soon as the sink returns. A buffer is released only when its last byte has been taken, which may be late.
 */
import type { ByteSink } from "../../src/env/links.ts";
import type { Prng } from "../support/seed.ts";
import { GARBAGE, RECEIVE_BYTES, StreamEnd } from "../support/stream-end.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimProcess } from "./sim-process.ts";

export interface LineQuality {
  readonly latencyMs: number;
  readonly bytesPerMs: number;
  /** Bytes that are on their way, or wait for the reader. */
  readonly windowBytes: number;
  /** How likely a piece is a short one. */
  readonly shortPieces: number;
}

export interface StreamParts {
  readonly scheduler: Scheduler;
  readonly rng: Prng;
  readonly quality: LineQuality;
  readonly process: SimProcess;
  readonly peer: string;
  readonly onGone: (stream: SimStream) => void;
}

export class SimStream extends StreamEnd<SimStream> {
  readonly #parts: StreamParts;
  #takeScheduled = false;
  /** Taken from our writer, not yet handed to the peer's sink, in order. */
  #line: { readonly atMs: number; bytes: Uint8Array }[] = [];
  #lineBytes = 0;
  #deliverScheduled = false;
  #lineFreeAtMs = 0;
  #cutAfterBytes = Infinity;
  #blocked = false;

  constructor(parts: StreamParts) {
    super(parts.peer);
    this.#parts = parts;
    parts.process.onDeath(() => this.destroy());
  }

  /** The connection breaks, for both ends, once so many bytes from this end have been delivered in all. */
  cutAfter(bytes: number): void {
    this.#cutAfterBytes = bytes;
    this.schedule();
  }

  /** The connection breaks now, for both ends. */
  cut(): void {
    this.break();
  }

  /** One-way partition: nothing that leaves this end arrives until `heal`. Both ways is a black hole. */
  block(): void {
    this.#blocked = true;
  }

  heal(): void {
    this.#blocked = false;
    this.schedule();
  }

  protected override get alive(): boolean {
    return this.#parts.process.alive;
  }

  protected override send(bytes: Uint8Array, release: (() => void) | undefined): void {
    const { rng, quality } = this.#parts;
    const fits = this.queue.bytes === 0 && this.#lineBytes + bytes.length <= quality.windowBytes;
    if (fits && rng.chance(0.5)) {
      // A copy: `slice` of a Buffer would be a view.
      this.#putOnLine(new Uint8Array(bytes));
      release?.();
      return;
    }
    this.queue.push(bytes, release);
    this.#scheduleTaking();
  }

  protected override later(what: "close" | "reset", work: () => void): void {
    this.#parts.scheduler.after(what === "reset" ? this.#latency() : 0, what, work);
  }

  protected override close(error: Error | undefined): void {
    if (this.closed) return;
    super.close(error);
    this.#parts.onGone(this);
  }

  #sinkIfAlive(): ByteSink | undefined {
    return this.alive && !this.closed ? this.sink : undefined;
  }

  #latency(): number {
    return this.#parts.quality.latencyMs * (1 + this.#parts.rng.float() / 4);
  }

  #scheduleTaking(): void {
    if (this.#takeScheduled || this.closed || this.queue.bytes === 0) return;
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
    let room = Math.min(quality.windowBytes - this.#lineBytes, this.queue.bytes);
    if (this.closed || room <= 0) return;
    if (rng.chance(quality.shortPieces)) room = rng.integer(1, room);
    const piece = new Uint8Array(room);
    const usedUp = this.queue.take(piece, room);
    this.#putOnLine(piece);
    for (const release of usedUp) release();
    if (this.queue.bytes === 0) this.#sinkIfAlive()?.onDrain();
    this.#scheduleTaking();
  }

  #putOnLine(bytes: Uint8Array): void {
    const { scheduler, quality } = this.#parts;
    const startMs = Math.max(this.#lineFreeAtMs, scheduler.nowMs);
    this.#lineFreeAtMs = startMs + bytes.length / quality.bytesPerMs;
    this.#line.push({ atMs: this.#lineFreeAtMs + this.#latency(), bytes });
    this.#lineBytes += bytes.length;
    this.schedule();
  }

  protected override schedule(): void {
    const idle = this.#line.length === 0 && !(this.ending && !this.endDelivered);
    if (this.#deliverScheduled || (idle && this.delivered < this.#cutAfterBytes)) return;
    this.#deliverScheduled = true;
    const { scheduler } = this.#parts;
    const atMs = this.#line[0]?.atMs ?? scheduler.nowMs + this.#latency();
    scheduler.after(atMs - scheduler.nowMs, "deliver", () => {
      this.#deliverScheduled = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    const other = this.peerEnd;
    if (this.#blocked || other.closed || other.paused || other.sink === undefined) return;
    if (this.delivered >= this.#cutAfterBytes) {
      this.break();
      return;
    }
    const first = this.#line[0];
    if (first === undefined) this.deliverEnd();
    else this.#deliverPiece(other, first);
    this.schedule();
  }

  #deliverPiece(other: SimStream, first: { bytes: Uint8Array }): void {
    const { rng, quality, scheduler } = this.#parts;
    const most = Math.min(first.bytes.length, RECEIVE_BYTES, this.#cutAfterBytes - this.delivered);
    const count = rng.chance(quality.shortPieces) ? rng.integer(1, most) : most;
    other.receive.set(first.bytes.subarray(0, count));
    if (count === first.bytes.length) this.#line.shift();
    else first.bytes = first.bytes.subarray(count);
    this.#lineBytes -= count;
    this.delivered += count;
    scheduler.trace("bytes", count, this.delivered);
    const received = Buffer.from(other.receive.buffer, 0, count);
    other.#sinkIfAlive()?.onBytes(received);
    other.receive.fill(GARBAGE, 0, count);
    this.#scheduleTaking();
  }
}
