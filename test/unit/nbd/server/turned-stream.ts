/** A stream whose bytes are all turned round (XOR 255) on their way over another stream: what TLS is, to whoever only counts on not being understood. */
import type { ByteSink, ByteStream } from "../../../../src/env/links.ts";

export class TurnedStream implements ByteStream {
  readonly peer = "turned";
  readonly #under: ByteStream;

  constructor(under: ByteStream) {
    this.#under = under;
  }

  get pendingBytes(): number {
    return this.#under.pendingBytes;
  }

  attach(sink: ByteSink): void {
    this.#under.attach({
      onBytes: (bytes) => sink.onBytes(turned(bytes)),
      onEnd: () => sink.onEnd(),
      onClose: (error) => sink.onClose(error),
      onDrain: () => sink.onDrain(),
    });
  }

  write(bytes: Uint8Array, release?: () => void): void {
    this.#under.write(turned(bytes));
    release?.();
  }

  pause(): void {
    this.#under.pause();
  }

  resume(): void {
    this.#under.resume();
  }

  end(): void {
    this.#under.end();
  }

  destroy(error?: Error): void {
    this.#under.destroy(error);
  }
}

function turned(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.map((byte) => byte ^ 0xff));
}
