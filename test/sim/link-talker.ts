/**
 * One end of a channel in the simulator: writes so many bytes that encode their own offset, ends, and checks every byte
 * that comes, that the end comes after the last of them, and that buffers come back once.
 */
import type { ByteSink } from "../../src/env/links.ts";
import type { Channel } from "../../src/link/channel.ts";
import { pattern } from "../support/patterns.ts";
import type { Prng } from "../support/seed.ts";

export class LinkOracleError extends Error {
  override readonly name = "LinkOracleError";
}

export interface TalkParts {
  readonly rng: Prng;
  /** What this end writes, and what it expects. */
  readonly sends: { readonly bytes: number; readonly salt: number };
  readonly expects: { readonly bytes: number; readonly salt: number };
  /** How large a write is at most, and how likely a reader is to stop for a while. */
  readonly writeBytesMax: number;
  readonly pauses: number;
  readonly after: (delayMs: number, fire: () => void) => void;
}

const PENDING_MAX = 256 * 1024;

export class Talker implements ByteSink {
  readonly #channel: Channel;
  readonly #parts: TalkParts;
  readonly over = Promise.withResolvers<void>();
  received = 0;
  written = 0;
  #unreleased = 0;
  ended = false;
  closed = false;
  /** What it was closed with. */
  error: Error | undefined;
  #paused = false;
  #dead = false;

  constructor(channel: Channel, parts: TalkParts) {
    this.#channel = channel;
    this.#parts = parts;
    this.over.promise.catch(() => {});
    channel.attach(this);
    this.#talk();
  }

  get channel(): Channel {
    return this.#channel;
  }

  onBytes(bytes: Uint8Array): void {
    const { expects, rng } = this.#parts;
    if (this.closed || this.ended) this.#complain("bytes came after the end");
    else if (this.received + bytes.length > expects.bytes) this.#complain(`more than ${expects.bytes} bytes came`);
    else if (!pattern(this.received, bytes.length, expects.salt).equals(bytes)) {
      this.#complain(`the bytes from ${this.received} on are not those that were sent`);
    }
    this.received += bytes.length;
    if (!rng.chance(this.#parts.pauses)) return;
    this.#paused = true;
    this.#channel.pause();
    this.#parts.after(rng.float() * rng.pick([1, 20, 200]), () => {
      this.#paused = false;
      this.#channel.resume();
    });
  }

  onEnd(): void {
    if (this.#paused) this.#complain("the end was told to a reader that does not read");
    if (this.ended || this.closed) this.#complain("the end was told twice");
    if (this.received !== this.#parts.expects.bytes) {
      this.#complain(`the channel ended after ${this.received} of ${this.#parts.expects.bytes} bytes`);
    }
    this.ended = true;
  }

  onClose(error?: Error): void {
    if (this.closed) this.#complain("the close was told twice");
    this.closed = true;
    this.error = error;
    if (error === undefined && !this.ended) this.#complain("a channel was closed in order before it had ended");
    this.over.resolve();
  }

  onDrain(): void {
    if (this.#channel.pendingBytes > 0) this.#complain("drained, and yet something waits");
    this.#talk();
  }

  /** Its process is no more: nobody gives anything back. */
  die(): void {
    this.#dead = true;
    this.over.resolve();
  }

  /** To be called once everything is over. */
  checkReleased(): void {
    if (this.#dead) return;
    if (this.#unreleased !== 0) throw new LinkOracleError(`${this.#unreleased} buffers did not come back`);
  }

  #talk(): void {
    const { sends, rng, writeBytesMax } = this.#parts;
    while (this.written < sends.bytes && this.#channel.pendingBytes < PENDING_MAX && !this.#channel.closed) {
      const length = Math.min(rng.integer(1, writeBytesMax), sends.bytes - this.written);
      const buffer = pattern(this.written, length, sends.salt);
      this.written += length;
      this.#unreleased += 1;
      let released = false;
      this.#channel.write(buffer, () => {
        if (released) this.#complain("a buffer came back twice");
        released = true;
        this.#unreleased -= 1;
        // Ours again: who still reads it sends garbage.
        buffer.fill(0xdd);
      });
      if (rng.chance(0.2)) break;
    }
    if (this.#channel.closed) return;
    if (this.written === sends.bytes) {
      this.written += 1;
      this.#channel.end();
    } else if (this.written < sends.bytes && this.#channel.pendingBytes === 0) {
      this.#parts.after(rng.float() * 5, () => this.#talk());
    }
  }

  #complain(why: string): void {
    this.over.reject(new LinkOracleError(`${this.#channel.peer}: ${why}`));
  }
}
