/**
 * What a channel sends: the writer's buffers that do not fit yet, the bytes kept for being sent again, how much the peer
 * allows, and the end.
 *
 * The end of a channel counts as one byte after the last: it is acknowledged, and repeated after a cut, like any other.
 */
import { LinkProtocolError } from "./errors.ts";
import type { Credit } from "./frame.ts";
import { WINDOW_BYTES_MAX } from "./limits.ts";
import { type Run, SendBuffer, type SendBufferParts } from "./send-buffer.ts";

interface Outgoing {
  readonly bytes: Uint8Array;
  taken: number;
  readonly release: (() => void) | undefined;
}

/** Mutants; all false in production. */
export interface SendChaos {
  readonly creditCountedTwice: boolean;
  readonly replayFromWrongOffset: boolean;
  readonly replayFromCredit: boolean;
  readonly closeBeforeData: boolean;
}

export class SendHalf {
  readonly #buffer: SendBuffer;
  readonly #chaos: SendChaos;
  #queue: Outgoing[] = [];
  #pendingBytes = 0;
  /** Up to here the peer has room. */
  #limit = 0;
  #ending = false;
  #endSent = false;
  #endAcknowledged = false;

  constructor(parts: SendBufferParts, chaos: SendChaos) {
    this.#buffer = new SendBuffer(parts);
    this.#chaos = chaos;
  }

  /** Written, and not yet copied to where it can be sent from. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  get ending(): boolean {
    return this.#ending;
  }

  get endAcknowledged(): boolean {
    return this.#endAcknowledged;
  }

  /** There is data that may be sent. */
  get sendable(): boolean {
    const { sent, end, crowded } = this.#buffer;
    return sent < end && sent < this.#limit && !crowded;
  }

  /** All that was written has been sent, and the end is next. */
  get endDue(): boolean {
    const through = this.#queue.length === 0 && this.#buffer.sent === this.#buffer.end;
    return this.#ending && !this.#endSent && (through || this.#chaos.closeBeforeData);
  }

  /** Offset behind the last byte that was sent. */
  get sent(): number {
    return this.#buffer.sent + (this.#endSent ? 1 : 0);
  }

  write(bytes: Uint8Array, release: (() => void) | undefined): void {
    const taken = this.#queue.length === 0 ? this.#buffer.append(bytes, 0) : 0;
    if (taken === bytes.length) {
      release?.();
      return;
    }
    this.#queue.push({ bytes, taken, release });
    this.#pendingBytes += bytes.length - taken;
  }

  end(): void {
    this.#ending = true;
  }

  take(bytesMax: number): Run | undefined {
    return this.#buffer.take(this.#limit, bytesMax);
  }

  /** The end goes out; returns its offset. */
  sendEnd(): number {
    this.#endSent = true;
    return this.#buffer.sent;
  }

  /** Takes a CREDIT; true when nothing that was written waits for room any more, though something did. */
  credit({ offset, windowBytes }: Credit): boolean {
    if (offset > this.sent || offset < this.#acknowledged || windowBytes > WINDOW_BYTES_MAX) {
      throw new LinkProtocolError(`a CREDIT of ${offset} + ${windowBytes}, where ${this.sent} bytes were sent`);
    }
    const before = this.#acknowledged;
    this.#acknowledge(offset);
    const twice = this.#chaos.creditCountedTwice ? offset - before : 0;
    this.#limit = Math.max(this.#limit, offset + windowBytes) + twice;
    return this.#fill();
  }

  /** After a cut: the peer has received everything below `received`. */
  resumeAt(received: number): void {
    if (received > this.sent || received < this.#acknowledged) {
      throw new LinkProtocolError(`the peer has received ${received} bytes, where ${this.sent} were sent`);
    }
    if (this.#chaos.replayFromWrongOffset) return;
    const from = this.#chaos.replayFromCredit ? Math.min(this.#acknowledged, this.#buffer.end) : received;
    this.#endSent = from > this.#buffer.end;
    this.#buffer.rewind(Math.min(from, this.#buffer.end));
  }

  /** The peer has forgotten the channel, which it does only when it has received everything. False: then it may not have. */
  assumeDone(): boolean {
    if (this.#endSent) this.#acknowledge(this.sent);
    return this.#endSent;
  }

  /** Drops everything; returns the releases of what the writer has not got back. */
  drop(): (() => void)[] {
    const releases = this.#queue.flatMap(({ release }) => release ?? []);
    this.#queue = [];
    this.#pendingBytes = 0;
    this.#buffer.drop();
    return releases;
  }

  get #acknowledged(): number {
    return this.#buffer.acknowledged + (this.#endAcknowledged ? 1 : 0);
  }

  #acknowledge(offset: number): void {
    if (offset > this.#buffer.end) this.#endAcknowledged = true;
    this.#buffer.acknowledge(Math.min(offset, this.#buffer.end));
  }

  /** Moves what waits into the buffer. */
  #fill(): boolean {
    if (this.#queue.length === 0) return false;
    for (let first = this.#queue[0]; first !== undefined; first = this.#queue[0]) {
      const taken = this.#buffer.append(first.bytes, first.taken);
      first.taken += taken;
      this.#pendingBytes -= taken;
      if (first.taken < first.bytes.length) break;
      this.#queue.shift();
      first.release?.();
    }
    return this.#pendingBytes === 0;
  }
}
