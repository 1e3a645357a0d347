/**
 * Two ends of a byte stream in memory, as unkind as the contract of `ByteStream` allows: bytes arrive in pieces cut
 * anywhere, in a receive buffer that is overwritten as soon as the sink returns; what is written is read from the
 * caller's buffer only when it is delivered. Whoever keeps a slice, or uses a buffer again too early, reads garbage.
 */
import type { ByteSink, ByteStream } from "../../src/env/links.ts";
import type { Prng } from "./seed.ts";

const RECEIVE_BYTES = 64 * 1024;
const GARBAGE = 0xee;

/** How long the next piece is, given the bytes delivered so far and those that wait; at least 1. */
export type Cut = (deliveredBytes: number, waitingBytes: number) => number;

/** Everything that waits, at once. */
export const whole: Cut = (_delivered, waiting) => waiting;

export const byteByByte: Cut = () => 1;

/** One cut, after exactly `bytes` bytes. */
export function cutAt(bytes: number): Cut {
  return (delivered, waiting) => (delivered < bytes ? Math.min(bytes - delivered, waiting) : waiting);
}

/** Pieces of any length, most of them short. */
export function seeded(rng: Prng): Cut {
  return (_delivered, waiting) => rng.integer(1, rng.chance(0.7) ? Math.min(waiting, 40) : waiting);
}

interface Outgoing {
  readonly bytes: Uint8Array;
  sent: number;
  readonly release: (() => void) | undefined;
}

const closedSink: ByteSink = { onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: () => {} };

export class PairedStream implements ByteStream {
  readonly peer: string;
  #other: PairedStream | undefined;
  #sink: ByteSink | undefined;
  readonly #cut: Cut;
  readonly #receive = new Uint8Array(RECEIVE_BYTES);
  #queue: Outgoing[] = [];
  #pendingBytes = 0;
  #deliveredBytes = 0;
  #breakAfterBytes = Infinity;
  #paused = false;
  #stalled = false;
  #scheduled = false;
  #ending = false;
  #endDelivered = false;
  #closed = false;
  #closeError: Error | undefined;
  #closeTold = false;

  /** @internal Use `streamPair`. `cut` is how this end receives. */
  constructor(peer: string, cut: Cut) {
    this.peer = peer;
    this.#cut = cut;
  }

  /** @internal */
  join(other: PairedStream): void {
    this.#other = other;
  }

  get #peerEnd(): PairedStream {
    if (this.#other === undefined) throw new Error("this end has no other end");
    return this.#other;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Bytes from this end that the other one has received. */
  get deliveredBytes(): number {
    return this.#deliveredBytes;
  }

  /** The connection breaks, for both ends, once the other end has received `bytes` bytes in all. */
  breakAfter(bytes: number): void {
    this.#breakAfterBytes = bytes;
    this.#schedule();
  }

  /** Nothing leaves this end any more, until `unstall`. */
  stall(): void {
    this.#stalled = true;
  }

  unstall(): void {
    this.#stalled = false;
    this.#schedule();
  }

  attach(sink: ByteSink): void {
    this.#sink = sink;
    if (this.#closed) this.#tellClose();
    this.#peerEnd.#schedule();
  }

  write(bytes: Uint8Array, release?: () => void): void {
    if (this.#ending) throw new Error("written after the end");
    if (this.#closed || bytes.length === 0) {
      release?.();
      return;
    }
    this.#queue.push({ bytes, sent: 0, release });
    this.#pendingBytes += bytes.length;
    this.#schedule();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#peerEnd.#schedule();
  }

  end(): void {
    this.#ending = true;
    this.#schedule();
  }

  destroy(error?: Error): void {
    if (this.#closed) return;
    this.#close(error);
    const other = this.#peerEnd;
    queueMicrotask(() => {
      other.#receiveEnd();
      other.#close(undefined);
    });
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#deliverPiece();
    });
  }

  #deliverPiece(): void {
    const other = this.#peerEnd;
    if (this.#closed || this.#stalled || other.#paused || other.#sink === undefined) return;
    if (this.#deliveredBytes >= this.#breakAfterBytes) this.#break();
    else if (this.#queue.length === 0) this.#deliverEnd();
    else this.#deliverBytes(other, other.#sink);
  }

  #deliverBytes(other: PairedStream, sink: ByteSink): void {
    const waiting = Math.min(this.#pendingBytes, this.#breakAfterBytes - this.#deliveredBytes, RECEIVE_BYTES);
    const count = Math.min(other.#cut(this.#deliveredBytes, waiting), waiting);
    const usedUp = this.#fill(other.#receive, count);
    this.#deliveredBytes += count;
    sink.onBytes(other.#receive.subarray(0, count));
    other.#receive.fill(GARBAGE, 0, count);
    // An owner may do anything now, close the stream included.
    for (const release of usedUp) release();
    if (this.#pendingBytes === 0) this.#sink?.onDrain();
    this.#schedule();
  }

  /** Moves `count` bytes out of the queue; returns the releases of the buffers that are used up. */
  #fill(into: Uint8Array, count: number): (() => void)[] {
    const usedUp: (() => void)[] = [];
    for (let at = 0; at < count; ) {
      const first = this.#queue[0];
      if (first === undefined) throw new Error("fewer bytes than counted");
      const step = Math.min(count - at, first.bytes.length - first.sent);
      into.set(first.bytes.subarray(first.sent, first.sent + step), at);
      first.sent += step;
      at += step;
      this.#pendingBytes -= step;
      if (first.sent < first.bytes.length) continue;
      this.#queue.shift();
      if (first.release !== undefined) usedUp.push(first.release);
    }
    return usedUp;
  }

  #deliverEnd(): void {
    if (!this.#ending || this.#endDelivered) return;
    this.#endDelivered = true;
    const other = this.#peerEnd;
    other.#receiveEnd();
    if (other.#endDelivered) {
      this.#close(undefined);
      other.#close(undefined);
    }
  }

  #receiveEnd(): void {
    if (!this.#closed) this.#sink?.onEnd();
  }

  #break(): void {
    const error = new Error("connection reset");
    this.#close(error);
    this.#peerEnd.#close(error);
  }

  #close(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeError = error;
    const queue = this.#queue;
    this.#queue = [];
    this.#pendingBytes = 0;
    queueMicrotask(() => {
      this.#tellClose();
      for (const { release } of queue) release?.();
    });
  }

  #tellClose(): void {
    const sink = this.#sink;
    if (this.#closeTold || sink === undefined) return;
    this.#closeTold = true;
    this.#sink = closedSink;
    sink.onClose(this.#closeError);
  }
}

export interface PairOptions {
  /** How each end receives; default: as much as waits. */
  readonly clientCut?: Cut;
  readonly serverCut?: Cut;
}

export function streamPair(options: PairOptions = {}): { client: PairedStream; server: PairedStream } {
  const client = new PairedStream("test server", options.clientCut ?? whole);
  const server = new PairedStream("test client", options.serverCut ?? whole);
  client.join(server);
  server.join(client);
  return { client, server };
}
