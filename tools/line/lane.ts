/**
 * One direction of a line: a bounded queue before a bottleneck, the bottleneck itself, and the way to the other end.
 *
 *   push → [queue ≤ queueBytes] → serialised at the bandwidth, packet by packet → [flight: rtt / 2] → deliver
 *
 * Everything is computed from the times handed in, so being called late makes a delivery late but never changes a due
 * time: the mean bandwidth is exact. Packets never overtake each other, also not when the round-trip time falls.
 * Times are milliseconds on any monotonic clock.
 */

import { Fifo } from "./fifo.ts";

/** What travels: the news of a connection, bytes, the end of a sender's stream, the news that the sender is gone. */
export type Load =
  | { readonly kind: "open" }
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  | { readonly kind: "end" }
  | { readonly kind: "reset" };

export interface Packet<To> {
  readonly to: To;
  readonly load: Load;
  readonly arrivedMs: number;
  readonly dueMs: number;
  /** How much of the way from arrival to `dueMs` is propagation. */
  readonly propagationMs: number;
}

export interface Shape {
  /** Half of it is spent each way. */
  readonly rttMs: number;
  /** Infinity: no bottleneck. */
  readonly bitsPerSecond: number;
  /** What may wait before the bottleneck; at least one read always may. */
  readonly queueBytes: number;
}

/** A packet occupies the bottleneck for at most this long, unless it is a single Ethernet-sized one. */
const PACKET_MS_MAX = 0.25;
const PACKET_BYTES_MIN = 1448;
/** Without a bottleneck nothing queues; then this bounds what is under way. 10 Gb/s × 50 ms fit. */
const FLIGHT_BYTES_MAX = 64 * 1024 * 1024;
/** How long the bottleneck may have idled, because its owner woke up late, and still have the time credited. */
const CREDIT_MS_MAX = 10;
/** A sender that was held back has this long to hand over more before its backlog counts as gone. */
const BACKLOG_PROOF_MS = 2;

interface Queued<To> {
  readonly to: To;
  readonly load: Load;
  readonly arrivedMs: number;
  /** From when on the bottleneck could have had it; before `arrivedMs` when it had to wait outside. */
  readonly readyMs: number;
  /** Bytes of the load that have left the queue. */
  sent: number;
}

export class Lane<To> {
  readonly #readBytesMax: number;
  readonly #queue = new Fifo<Queued<To>>();
  #queuedBytes = 0;
  #queuedBytesPeak = 0;
  readonly #flight = new Fifo<Packet<To>>();
  #flightBytes = 0;
  #shape: Shape;
  /** The bottleneck is busy until then. */
  #freeMs = Number.NEGATIVE_INFINITY;
  #lastDueMs = Number.NEGATIVE_INFINITY;
  #stalledSinceMs: number | undefined;
  #wasFull = false;
  #emptiedMs = Number.NEGATIVE_INFINITY;

  /** `readBytesMax`: the most that one `push` brings; `accepts` keeps that much of the queue free. */
  constructor(shape: Shape, readBytesMax: number) {
    this.#shape = shape;
    this.#readBytesMax = readBytesMax;
  }

  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  get queuedBytesPeak(): number {
    return this.#queuedBytesPeak;
  }

  /** Whether senders may be read from. Checked before each `push` of bytes, it bounds the queue. */
  get accepts(): boolean {
    const room = this.#queuedBytes === 0 || this.#queuedBytes + this.#readBytesMax <= this.#shape.queueBytes;
    return room && this.#flightBytes < FLIGHT_BYTES_MAX;
  }

  /** Holds from the next packet on that reaches the bottleneck. */
  reshape(shape: Shape): void {
    this.#shape = shape;
  }

  resetPeak(): void {
    this.#queuedBytesPeak = this.#queuedBytes;
  }

  push(nowMs: number, to: To, load: Load): void {
    this.#queue.push({ to, load, arrivedMs: nowMs, readyMs: this.#readyMs(nowMs), sent: 0 });
    if (load.kind === "bytes") this.#queuedBytes += load.bytes.length;
    if (this.#queuedBytes > this.#queuedBytesPeak) this.#queuedBytesPeak = this.#queuedBytes;
    if (!this.accepts) this.#wasFull = true;
  }

  /** Moves everything as far as it is at `nowMs`, and calls `deliver` for each packet that has arrived, in order. */
  advance(nowMs: number, deliver: (packet: Packet<To>) => void): void {
    if (this.#stalledSinceMs !== undefined) return;
    this.#serialise(nowMs);
    for (let packet = this.#flight.first; packet !== undefined && packet.dueMs <= nowMs; packet = this.#flight.first) {
      this.#flight.shift();
      this.#flightBytes -= loadBytes(packet.load);
      deliver(packet);
    }
  }

  /** When `advance` has something to do next; Infinity when nothing is under way, or the lane is stalled. */
  get nextMs(): number {
    if (this.#stalledSinceMs !== undefined) return Number.POSITIVE_INFINITY;
    const due = this.#flight.first?.dueMs ?? Number.POSITIVE_INFINITY;
    const head = this.#queue.first;
    return head === undefined ? due : Math.min(due, Math.max(this.#freeMs, head.readyMs));
  }

  /** Freezes everything under way. New pushes are taken until the queue is full. Idempotent. */
  stall(nowMs: number): void {
    this.#stalledSinceMs ??= nowMs;
  }

  /** Goes on where `stall` stopped; what was under way is late by as long as the stall lasted. Idempotent. */
  resume(nowMs: number): void {
    if (this.#stalledSinceMs === undefined) return;
    const lostMs = nowMs - this.#stalledSinceMs;
    this.#stalledSinceMs = undefined;
    this.#flight.replaceEach((packet) => ({ ...packet, dueMs: packet.dueMs + lostMs }));
    this.#lastDueMs += lostMs;
    this.#freeMs = Math.max(this.#freeMs + lostMs, nowMs);
  }

  /** The time from which on the bottleneck could have worked on what arrives now. */
  #readyMs(nowMs: number): number {
    const heldBack = this.#wasFull && nowMs - this.#emptiedMs <= BACKLOG_PROOF_MS;
    if (this.#queue.first !== undefined || !heldBack) return nowMs;
    return Math.max(this.#freeMs, nowMs - CREDIT_MS_MAX);
  }

  #serialise(nowMs: number): void {
    if (this.#queue.first === undefined) {
      if (nowMs - this.#emptiedMs > BACKLOG_PROOF_MS) this.#wasFull = false;
      return;
    }
    const bytesPerMs = this.#shape.bitsPerSecond / 8000;
    const packetBytesMax = Math.max(PACKET_BYTES_MIN, Math.floor(bytesPerMs * PACKET_MS_MAX));
    for (let head = this.#queue.first; head !== undefined; head = this.#queue.first) {
      const startMs = Math.max(this.#freeMs, head.readyMs);
      if (startMs > nowMs) return;
      const length = Math.min(packetBytesMax, loadBytes(head.load) - head.sent);
      this.#freeMs = startMs + length / bytesPerMs;
      this.#launch(head, length);
      if (head.sent === loadBytes(head.load)) this.#queue.shift();
    }
    this.#emptiedMs = nowMs;
  }

  /** Sends the next `length` bytes of `head`, whose serialisation ends at `#freeMs`, on their way. */
  #launch(head: Queued<To>, length: number): void {
    const propagationMs = this.#shape.rttMs / 2;
    const dueMs = Math.max(this.#lastDueMs, this.#freeMs + propagationMs);
    const load = slice(head.load, head.sent, length);
    head.sent += length;
    this.#lastDueMs = dueMs;
    this.#queuedBytes -= length;
    this.#flightBytes += length;
    this.#flight.push({ to: head.to, load, arrivedMs: head.arrivedMs, dueMs, propagationMs });
  }
}

function loadBytes(load: Load): number {
  return load.kind === "bytes" ? load.bytes.length : 0;
}

function slice(load: Load, from: number, length: number): Load {
  if (load.kind !== "bytes" || length === load.bytes.length) return load;
  return { kind: "bytes", bytes: load.bytes.subarray(from, from + length) };
}
