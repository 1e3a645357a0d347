/** One message channel, seen from one side: checked messages in, messages out. */
import type * as z from "zod";
import type { Channel } from "../link/channel.ts";
import { LinkError } from "../link/errors.ts";
import { MessageStream } from "../link/message-stream.ts";
import { Change } from "../stream/change.ts";
import { messageOf } from "./errors.ts";
import { decodeMessage, encodeMessage, type FromDestination, type FromSource } from "./messages.ts";

/** Long answers wait until the channel has taken what is before them. */
const BULK_PENDING_BYTES_MAX = 128 * 1024;

export interface PortHooks<In> {
  /** Must not throw, but for `MigrationProtocolError`, which closes the port. */
  onMessage(message: In): void;
  /** Nothing can be sent or received any more. Called once. */
  onClose(why: string): void;
}

export class MessagePort<S extends z.ZodType, Out extends FromDestination | FromSource> {
  readonly #channel: Channel;
  readonly #stream: MessageStream;
  readonly #drained = new Change();
  #closed = false;

  constructor(channel: Channel, schema: S, hooks: PortHooks<z.output<S>>) {
    this.#channel = channel;
    this.#stream = new MessageStream(channel, {
      onMessage: (body) => {
        try {
          if (!this.#closed) hooks.onMessage(decodeMessage(schema, body));
        } catch (error) {
          this.#close(hooks, messageOf(error));
        }
      },
      onEnd: () => this.#close(hooks, "the peer has closed the message channel"),
      onClose: (error) => this.#close(hooks, error?.message ?? "the message channel was closed"),
      onDrain: () => this.#drained.notify(),
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Nothing is sent on a port that is closed; a peer that takes no messages closes it. */
  send(message: Out): void {
    if (this.#closed) return;
    try {
      this.#stream.send(encodeMessage(message));
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      this.#channel.destroy(error);
    }
  }

  /** Resolves when there is room for a long message. */
  async room(): Promise<void> {
    while (!this.#closed && this.#stream.pendingBytes > BULK_PENDING_BYTES_MAX) await this.#drained.next();
  }

  close(): void {
    this.#stream.destroy();
  }

  #close(hooks: PortHooks<z.output<S>>, why: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#channel.destroy();
    this.#drained.notify();
    hooks.onClose(why);
  }
}
