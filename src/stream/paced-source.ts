/**
 * A source whose reads wait for the window of background requests, and tell it how long they took. Several of them, one a
 * lane, may share a window and a source. What a read takes is measured here, between the request and its last byte:
 * neither the wait for the window nor what is done with the bytes is in it.
 *
 * A read of the lane "read-ahead" ends when the session is lost: whoever waits for its bytes asks on another session,
 * rather than wait for this one to come back.
 */
import { BlockError } from "../block/error.ts";
import type { Lane, SendWindow } from "./send-window.ts";
import type { SourceState } from "./source-session.ts";
import { type StreamSource, WrappedSource } from "./wrapped-source.ts";

export class PacedSource extends WrappedSource {
  readonly #window: SendWindow;
  readonly #lane: Lane;
  readonly #unsubscribe: () => void;
  /** Counts the states that the source has gone through: a time that spans two of them is no round trip. */
  #era = 0;
  #lost = lossPromise();

  constructor(source: StreamSource, window: SendWindow, lane: Lane) {
    super(source);
    this.#lane = lane;
    this.#window = window;
    this.#unsubscribe = source.onState((state) => this.#changed(state));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const sent = await this.#window.enter(this.#lane, offset, into.length);
    const era = this.#era;
    let measured = false;
    try {
      await this.#ask(offset, into);
      measured = era === this.#era;
    } finally {
      if (measured) this.#window.received(sent);
      else this.#window.forget(sent);
    }
  }

  override async close(): Promise<void> {
    const closed = super.close();
    this.#window.close();
    await closed;
    this.#unsubscribe();
  }

  async #ask(offset: number, into: Uint8Array): Promise<void> {
    if (this.#lane === "hydration") return await this.source.read(offset, into);
    if (this.state !== "connected") throw lostError();
    await Promise.race([this.source.read(offset, into), this.#lost.promise]);
  }

  #changed(state: SourceState): void {
    this.#era += 1;
    if (state === "connected") {
      if (this.#lane === "hydration") this.#window.restart();
      return;
    }
    this.#lost.reject(lostError());
    this.#lost = lossPromise();
  }
}

function lossPromise(): PromiseWithResolvers<never> {
  const loss = Promise.withResolvers<never>();
  // That nobody waits for it is no bug.
  loss.promise.catch(() => undefined);
  return loss;
}

function lostError(): BlockError {
  return new BlockError("io", "read-ahead is given up: the session is lost");
}
