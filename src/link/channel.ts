/**
 * One channel of a link: an ordered byte stream in each direction, which knows nothing of what it carries. To its user it
 * is a `ByteStream` like a socket's, except that it lives on while the link has no connection.
 *
 * - It closes in order once both sides have ended, and each knows that the other has taken everything.
 * - `destroy` resets it: what was not taken by then may never be. So does a restart of either process.
 */
import type { ByteSink, ByteStream } from "../env/links.ts";
import { LinkProtocolError } from "./errors.ts";
import { type Credit, encodeClose, encodeCredit, encodeOpen } from "./frame.ts";
import type { HelloEntry } from "./hello.ts";
import type { ChannelKind } from "./limits.ts";
import { ReceiveHalf } from "./receive-half.ts";
import type { Run, SendBufferParts } from "./send-buffer.ts";
import { type SendChaos, SendHalf } from "./send-half.ts";

/** What a channel asks of the link. */
export interface ChannelOwner {
  /** The channel may have something to send. */
  wake(channel: Channel): void;
  /** It was destroyed, and is of no more use: the peer is to be told. */
  destroyed(channel: Channel): void;
}

export interface ChannelParts extends SendBufferParts {
  readonly owner: ChannelOwner;
  readonly serial: number;
  readonly kind: ChannelKind;
  readonly label: string;
  readonly openedHere: boolean;
  /** What the peer may send ahead of the reader. `capacityBytes` is what we keep of what we send. */
  readonly windowBytes: number;
  readonly chaos: SendChaos & { readonly pausedReaderIsCredited: boolean };
}

export class Channel implements ByteStream {
  readonly peer: string;
  /** Its number on the wire; used again by a later channel. */
  readonly id: number;
  /** Counts the channels that one side has opened. */
  readonly serial: number;
  readonly kind: ChannelKind;
  /** What the opener calls it. */
  readonly label: string;
  readonly openedHere: boolean;
  /** Memory that it may take. */
  readonly memoryBytes: number;
  readonly #owner: ChannelOwner;
  readonly #sending: SendHalf;
  readonly #receiving: ReceiveHalf;
  #sink: ByteSink | undefined;
  #paused = false;
  #kickScheduled = false;
  /** OPEN was sent on the present connection, or the peer has it from an earlier one. */
  #announced: boolean;
  /** OPEN was ever sent. */
  #everAnnounced: boolean;
  #closed = false;
  /** Closed, and not in order. */
  #reset = false;
  #closeTold = false;
  #error: Error | undefined;

  /** @internal Use `Link.open`. */
  constructor(parts: ChannelParts) {
    this.id = parts.channel;
    this.serial = parts.serial;
    this.kind = parts.kind;
    this.label = parts.label;
    this.openedHere = parts.openedHere;
    this.memoryBytes = parts.windowBytes + parts.capacityBytes;
    this.peer = `${parts.label} (${parts.kind} channel ${parts.channel})`;
    this.#owner = parts.owner;
    this.#announced = !parts.openedHere;
    this.#everAnnounced = !parts.openedHere;
    this.#sending = new SendHalf(parts, parts.chaos);
    const reader = {
      reading: () => this.#sink !== undefined && !this.#paused && !this.#closed,
      deliver: (bytes: Uint8Array) => this.#sink?.onBytes(bytes),
      deliverEnd: () => this.#sink?.onEnd(),
    };
    this.#receiving = new ReceiveHalf(reader, parts.windowBytes, parts.chaos.pausedReaderIsCredited);
  }

  get pendingBytes(): number {
    return this.#sending.pendingBytes;
  }

  /** It was closed or destroyed, or the peer has reset it. */
  get closed(): boolean {
    return this.#closed;
  }

  attach(sink: ByteSink): void {
    this.#sink = sink;
    if (this.#closed) this.#tellClose();
    else this.#kick();
  }

  write(bytes: Uint8Array, release?: () => void): void {
    if (this.#closed || bytes.length === 0) {
      release?.();
      return;
    }
    if (this.#sending.ending) throw new Error("written after the end");
    this.#sending.write(bytes, release);
    this.#owner.wake(this);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#kick();
  }

  end(): void {
    if (this.#closed) return;
    this.#sending.end();
    this.#owner.wake(this);
  }

  destroy(error?: Error): void {
    if (this.#closed) return;
    this.closeWith(error);
    this.#owner.destroyed(this);
  }

  // What follows is for the link and its parts.

  /** @internal The peer may know of it. */
  get everAnnounced(): boolean {
    return this.#everAnnounced;
  }

  /** @internal The peer knows of it, unless OPEN was lost with the last connection. */
  get announced(): boolean {
    return this.#announced;
  }

  /** @internal What a HELLO tells of it. It counts as a CREDIT that was sent. */
  takeEntry(): Omit<HelloEntry, "resetting"> {
    const { offset: consumed, windowBytes } = this.#receiving.takeCredit();
    return { channel: this.id, serial: this.serial, received: this.#receiving.received, consumed, windowBytes };
  }

  /** @internal Both ends are known to both sides: it can be forgotten. */
  get finished(): boolean {
    return this.#sending.endAcknowledged && this.#receiving.endCredited;
  }

  /** @internal There is data that may be sent; never of one that was destroyed, whatever it had left. */
  get sendable(): boolean {
    return this.#announced && !this.#closed && this.#sending.sendable;
  }

  /** @internal There is something to send besides data. */
  get controlDue(): boolean {
    return !this.#reset && (!this.#announced || this.#receiving.creditDue || this.#sending.endDue);
  }

  /** @internal Frames other than DATA, in their order. They count as sent. */
  takeControl(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    if (!this.#announced) {
      this.#announced = true;
      this.#everAnnounced = true;
      frames.push(encodeOpen(this.id, { serial: this.serial, kind: this.kind, label: this.label }));
    }
    if (this.#receiving.creditDue) frames.push(encodeCredit(this.id, this.#receiving.takeCredit()));
    if (this.#sending.endDue) frames.push(encodeClose(this.id, this.#sending.sendEnd()));
    return frames;
  }

  /** @internal */
  takeData(bytesMax: number): Run | undefined {
    return this.#sending.take(bytesMax);
  }

  /** @internal */
  onData(bytes: Uint8Array): void {
    this.#receiving.accept(bytes);
    if (this.#receiving.creditDue) this.#owner.wake(this);
  }

  /** @internal */
  onCredit(credit: Credit): void {
    if (this.#sending.credit(credit)) this.#sink?.onDrain();
    this.closeIfDone();
  }

  /** @internal */
  onEnd(offset: number): void {
    this.#receiving.acceptEnd(offset);
    this.closeIfDone();
    if (this.controlDue) this.#owner.wake(this);
  }

  /** @internal A new connection: so far is the peer. */
  resumeAt({ received, consumed, windowBytes }: HelloEntry): void {
    this.#announced = true;
    this.#everAnnounced = true;
    const drained = this.#sending.credit({ offset: consumed, windowBytes });
    this.#sending.resumeAt(received);
    if (drained) this.#sink?.onDrain();
    this.closeIfDone();
  }

  /** @internal A new connection: the peer has never heard of the channel. */
  resumeUnknown(): void {
    if (this.#receiving.received > 0) throw new LinkProtocolError("the peer does not know a channel it has sent on");
    this.#announced = false;
    this.#sending.resumeAt(0);
    this.#receiving.sayAgain();
  }

  /** @internal A new connection: the peer has forgotten the channel, as it does when both have ended. */
  resumeForgotten(): void {
    if (!this.#receiving.endTold || !this.#sending.assumeDone()) {
      throw new LinkProtocolError("the peer has forgotten a channel that is not at its end");
    }
    this.closeIfDone();
  }

  /** @internal Closes it when both sides are through. */
  closeIfDone(): void {
    if (this.#sending.endAcknowledged && this.#receiving.endTold && !this.#closed) this.#close(undefined);
  }

  /** @internal Drops everything, without a word to the peer. Idempotent. */
  closeWith(error: Error | undefined): void {
    if (this.#closed) return;
    this.#reset = true;
    this.#receiving.drop();
    this.#close(error);
  }

  /** The sink is told in a turn of its own, as a socket's is; then the writer gets back what is left. */
  #close(error: Error | undefined): void {
    this.#closed = true;
    this.#error = error;
    const releases = this.#sending.drop();
    queueMicrotask(() => {
      this.#tellClose();
      for (const release of releases) release();
    });
  }

  #tellClose(): void {
    if (this.#closeTold || this.#sink === undefined) return;
    this.#closeTold = true;
    this.#sink.onClose(this.#error);
  }

  #kick(): void {
    if (this.#kickScheduled) return;
    this.#kickScheduled = true;
    queueMicrotask(() => {
      this.#kickScheduled = false;
      if (this.#closed) return;
      this.#receiving.deliverKept();
      this.closeIfDone();
      if (this.controlDue) this.#owner.wake(this);
    });
  }
}
