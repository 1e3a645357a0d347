/**
 * What one end of a byte stream in memory has to keep track of, whoever carries the bytes: what is written and not yet
 * taken, who is to be told what, and the rules of ending and closing that `ByteStream` states. `StreamPair` carries them
 * at once, the simulator over a line with latency.
 */
import type { ByteSink, ByteStream } from "../../src/env/links.ts";

/** What an owner of the receive buffer that keeps a slice of it will read. */
export const GARBAGE = 0xee;
export const RECEIVE_BYTES = 64 * 1024;

interface Outgoing {
  readonly bytes: Uint8Array;
  taken: number;
  readonly release: (() => void) | undefined;
}

const closedSink: ByteSink = { onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: () => {} };

/** The writer's buffers, read only when the bytes are taken, and given back only when the last one was. */
export class OutgoingQueue {
  #items: Outgoing[] = [];
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  push(bytes: Uint8Array, release: (() => void) | undefined): void {
    this.#items.push({ bytes, taken: 0, release });
    this.#bytes += bytes.length;
  }

  /** Moves `count` bytes into `into`; returns the releases of the buffers that are used up. */
  take(into: Uint8Array, count: number): (() => void)[] {
    const usedUp: (() => void)[] = [];
    for (let at = 0; at < count; ) {
      const first = this.#items[0];
      if (first === undefined) throw new Error("fewer bytes than counted");
      const step = Math.min(count - at, first.bytes.length - first.taken);
      into.set(first.bytes.subarray(first.taken, first.taken + step), at);
      first.taken += step;
      at += step;
      if (first.taken < first.bytes.length) continue;
      this.#items.shift();
      if (first.release !== undefined) usedUp.push(first.release);
    }
    this.#bytes -= count;
    return usedUp;
  }

  /** Forgets everything; returns the releases of the buffers. */
  drop(): (() => void)[] {
    const items = this.#items;
    this.#items = [];
    this.#bytes = 0;
    return items.flatMap(({ release }) => release ?? []);
  }
}

/** `Self` is the class that extends this one. */
export abstract class StreamEnd<Self extends StreamEnd<Self>> implements ByteStream {
  readonly peer: string;
  protected readonly queue = new OutgoingQueue();
  protected readonly receive = new Uint8Array(RECEIVE_BYTES);
  protected sink: ByteSink | undefined;
  protected paused = false;
  protected ending = false;
  protected endDelivered = false;
  /** @internal Bytes from this end that the other one's sink has been given. */
  protected delivered = 0;
  #other: Self | undefined;
  #closed = false;
  #closeError: Error | undefined;
  #closeTold = false;

  constructor(peer: string) {
    this.peer = peer;
  }

  /** Bytes, or the end, may now leave this end. */
  protected abstract schedule(): void;

  /** Takes what is written: not empty, and the end is open. */
  protected abstract send(bytes: Uint8Array, release: (() => void) | undefined): void;

  /** Does `work` later: `close`, tells the owner of this end; `reset`, when the peer can have heard of it. */
  protected abstract later(what: "close" | "reset", work: () => void): void;

  /** Whether there is anybody to be told anything. */
  protected get alive(): boolean {
    return true;
  }

  /** @internal The two ends of one connection. */
  join(other: Self): void {
    this.#other = other;
  }

  get pendingBytes(): number {
    return this.queue.bytes;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Bytes from this end that the other one has received. */
  get deliveredBytes(): number {
    return this.delivered;
  }

  attach(sink: ByteSink): void {
    this.sink = sink;
    if (this.#closed) this.#tellClose();
    this.peerEnd.schedule();
  }

  write(bytes: Uint8Array, release?: () => void): void {
    if (this.ending) throw new Error("written after the end");
    if (this.#closed || bytes.length === 0) release?.();
    else this.send(bytes, release);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    this.peerEnd.schedule();
  }

  end(): void {
    this.ending = true;
    this.schedule();
  }

  destroy(error?: Error): void {
    if (this.#closed) return;
    this.close(error);
    const other = this.peerEnd;
    // What the kernel had taken still arrives; then comes the end of it.
    this.later("reset", () => {
      other.receiveEnd();
      other.close(undefined);
    });
  }

  protected get peerEnd(): Self {
    if (this.#other === undefined) throw new Error("this end has no other end");
    return this.#other;
  }

  /** The connection breaks, for both ends. */
  protected break(): void {
    const error = Object.assign(new Error("connection reset"), { code: "ECONNRESET" });
    this.close(error);
    this.peerEnd.close(error);
  }

  /** The end of what was written arrives, once; when both have arrived, the connection is closed. */
  protected deliverEnd(): void {
    if (!this.ending || this.endDelivered || this.queue.bytes > 0) return;
    this.endDelivered = true;
    const other = this.peerEnd;
    other.receiveEnd();
    if (!other.endDelivered) return;
    this.close(undefined);
    other.close(undefined);
  }

  protected receiveEnd(): void {
    if (this.alive && !this.#closed) this.sink?.onEnd();
  }

  protected close(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeError = error;
    const releases = this.queue.drop();
    if (!this.alive) return;
    this.later("close", () => {
      this.#tellClose();
      for (const release of releases) release();
    });
  }

  #tellClose(): void {
    const { sink } = this;
    if (this.#closeTold || sink === undefined || !this.alive) return;
    this.#closeTold = true;
    this.sink = closedSink;
    sink.onClose(this.#closeError);
  }
}
