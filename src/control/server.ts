/**
 * The instance's end of control sockets. It does not listen: whoever owns a socket calls `accept`. Invariants: at most
 * `CONNECTIONS_MAX` clients; nothing that a client does delays another one or the instance.
 */
import type { ByteStream } from "../env/links.ts";
import { type ConnectionOwner, ControlConnection } from "./connection.ts";
import { encodeMessage } from "./frame.ts";
import { CONNECTIONS_MAX } from "./limits.ts";
import { type Hello, PROTOCOL_NAME, PROTOCOL_VERSION } from "./messages.ts";
import type { ControlServerOptions } from "./server-options.ts";

export class ControlServer implements AsyncDisposable {
  readonly #options: ControlServerOptions;
  /** The one that has been quiet longest comes first. */
  readonly #connections = new Set<ControlConnection>();
  readonly #owner: ConnectionOwner;
  #closing: Promise<void> | undefined;
  #allClosed: (() => void) | undefined;

  constructor(options: ControlServerOptions) {
    this.#options = options;
    this.#owner = {
      options,
      onUsed: (connection) => this.#moveBack(connection),
      onClosed: (connection) => this.#remove(connection),
    };
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Serves a client on `stream`, from now on the server's. Says hello first. */
  accept(stream: ByteStream): void {
    if (this.#closing !== undefined || !this.#makeRoom()) {
      if (this.#closing === undefined) this.#options.log.warn("refusing a control connection", { why: "all are busy" });
      stream.destroy();
      return;
    }
    const connection = new ControlConnection(stream, this.#owner);
    this.#connections.add(connection);
    connection.start(encodeMessage(this.#hello()));
  }

  /**
   * Takes no more clients; requests under way are answered with "closing", what is queued is sent, for `graceMs` at most.
   * Idempotent.
   */
  close(options: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(options.graceMs ?? 1000);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#allClosed = resolve;
    for (const connection of [...this.#connections]) connection.finish();
    if (this.#connections.size === 0) return;
    const deadline = this.#options.clock.setTimer(graceMs, () => {
      for (const connection of [...this.#connections]) connection.destroy();
    });
    await promise;
    deadline.cancel();
  }

  #hello(): Hello {
    const { identity, registry } = this.#options;
    return { protocol: PROTOCOL_NAME, version: PROTOCOL_VERSION, ...identity, verbs: registry.verbs };
  }

  /** False: everybody who is connected is in the middle of something. */
  #makeRoom(): boolean {
    if (this.#connections.size < CONNECTIONS_MAX) return true;
    const idle = [...this.#connections].find((connection) => !connection.isBusy);
    if (idle === undefined) return false;
    this.#connections.delete(idle);
    idle.destroy();
    return true;
  }

  #moveBack(connection: ControlConnection): void {
    if (this.#connections.delete(connection)) this.#connections.add(connection);
  }

  #remove(connection: ControlConnection): void {
    this.#connections.delete(connection);
    if (this.#connections.size === 0) this.#allClosed?.();
  }
}
