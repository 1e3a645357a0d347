/**
 * Two ends of a byte stream in memory, as unkind as the contract of `ByteStream` allows: bytes arrive in pieces cut
 * anywhere, in a receive buffer that is overwritten as soon as the sink returns; what is written is read from the
 * caller's buffer only when it is delivered. Whoever keeps a slice, or uses a buffer again too early, reads garbage.
 */
import type { ByteSink } from "../../src/env/links.ts";
import type { Prng } from "./seed.ts";
import { GARBAGE, RECEIVE_BYTES, StreamEnd } from "./stream-end.ts";

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

export class PairedStream extends StreamEnd<PairedStream> {
  readonly #cut: Cut;
  #breakAfterBytes = Infinity;
  #stalled = false;
  #scheduled = false;

  /** @internal Use `streamPair`. `cut` is how this end receives. */
  constructor(peer: string, cut: Cut) {
    super(peer);
    this.#cut = cut;
  }

  /** The connection breaks, for both ends, once the other end has received `bytes` bytes in all. */
  breakAfter(bytes: number): void {
    this.#breakAfterBytes = bytes;
    this.schedule();
  }

  /** Nothing leaves this end any more, until `unstall`. */
  stall(): void {
    this.#stalled = true;
  }

  unstall(): void {
    this.#stalled = false;
    this.schedule();
  }

  protected override send(bytes: Uint8Array, release: (() => void) | undefined): void {
    this.queue.push(bytes, release);
    this.schedule();
  }

  protected override schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#deliverPiece();
    });
  }

  protected override later(_what: "close" | "reset", work: () => void): void {
    queueMicrotask(work);
  }

  #deliverPiece(): void {
    const other = this.peerEnd;
    if (this.closed || this.#stalled || other.paused || other.sink === undefined) return;
    if (this.delivered >= this.#breakAfterBytes) this.break();
    else if (this.queue.bytes === 0) this.deliverEnd();
    else this.#deliverBytes(other, other.sink);
  }

  #deliverBytes(other: PairedStream, sink: ByteSink): void {
    const waiting = Math.min(this.queue.bytes, this.#breakAfterBytes - this.delivered, RECEIVE_BYTES);
    const count = Math.min(other.#cut(this.delivered, waiting), waiting);
    const usedUp = this.queue.take(other.receive, count);
    this.delivered += count;
    sink.onBytes(other.receive.subarray(0, count));
    other.receive.fill(GARBAGE, 0, count);
    // An owner may do anything now, close the stream included.
    for (const release of usedUp) release();
    if (this.queue.bytes === 0) this.sink?.onDrain();
    this.schedule();
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
