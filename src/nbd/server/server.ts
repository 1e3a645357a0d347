/**
 * An NBD server: gives accepted streams to connections, keeps the limits that concern all of them, and closes in order.
 * It does not listen: whoever owns sockets, or channels inside a link, calls `accept`.
 */
import type { Clock, Timer } from "../../env/clock.ts";
import type { ByteStream } from "../../env/links.ts";
import type { TlsServer } from "../../env/tls.ts";
import { BufferPool } from "../../util/buffer-pool.ts";
import { PayloadBudget } from "../../util/payload-budget.ts";
import { Connection, type ServerShared, type SessionUpgrade } from "./connection.ts";
import { checkContexts, type NbdExport } from "./export.ts";
import { DeviceGuard } from "./guard.ts";
import { DEFAULT_LIMITS, type ServerLimits } from "./limits.ts";
import type { ServerLog } from "./server-log.ts";

export interface NbdServerOptions {
  readonly clock: Clock;
  /** Names must differ, and so must those of one export's contexts. Several may share a device. */
  readonly exports: readonly NbdExport[];
  /** "on": offered; "require": nothing is told to a client without it. */
  readonly tls?: { readonly mode: "on" | "require"; readonly server: TlsServer };
  /** A private option that hands the stream to somebody else. */
  readonly upgrade?: SessionUpgrade;
  readonly limits?: Partial<ServerLimits>;
  readonly log: ServerLog;
  /** Told how many clients are in transmission, whenever that changes. */
  readonly onClientCount?: (clients: number) => void;
}

const SWEEP_MS = 5000;

export class NbdServer implements AsyncDisposable {
  readonly #shared: ServerShared;
  readonly #options: NbdServerOptions;
  readonly #connections = new Set<Connection>();
  #clients = 0;
  #sweep: Timer | undefined;
  #closing: Promise<void> | undefined;
  #allClosed: (() => void) | undefined;

  constructor(options: NbdServerOptions) {
    const names = new Set(options.exports.map((exported) => exported.name));
    if (names.size !== options.exports.length) throw new Error("two exports have the same name");
    for (const exported of options.exports) checkContexts(exported);
    const limits = { ...DEFAULT_LIMITS, ...options.limits };
    const guards = new Map(options.exports.map(({ device }) => [device, new DeviceGuard(device, options.log)]));
    const budget = new PayloadBudget(limits.payloadBytesMax);
    this.#options = options;
    this.#shared = {
      clock: options.clock,
      exports: options.exports,
      tls: options.tls,
      upgrade: options.upgrade,
      limits,
      log: options.log,
      // Idle buffers have what the budget leaves: both together are within it, but for what is taken while some are idle.
      pool: new BufferPool(() => budget.totalBytes - budget.heldBytes),
      budget,
      guardOf: ({ device }) => guards.get(device) ?? new DeviceGuard(device, options.log),
    };
  }

  /** Clients in transmission. */
  get clients(): number {
    return this.#clients;
  }

  /** Clients in any state. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Payload bytes in memory, for all clients together. */
  get heldBytes(): number {
    return this.#shared.budget.heldBytes;
  }

  /** Serves a client on `stream`, from now on the server's. */
  accept(stream: ByteStream): void {
    const { limits, log } = this.#shared;
    if (this.#closing === undefined && this.#connections.size >= limits.connectionsMax) this.#makeRoom();
    if (this.#closing !== undefined || this.#connections.size >= limits.connectionsMax) {
      log.warn("refusing a connection", {
        peer: stream.peer,
        why: this.#closing ? "the server is closing" : "too many connections",
      });
      stream.destroy();
      return;
    }
    this.#makeRoomForHandshake();
    const connection: Connection = new Connection(stream, this.#shared, (changed) => this.#stateChanged(changed));
    if (connection.state === "closed") return;
    this.#connections.add(connection);
    this.#scheduleSweep();
  }

  /**
   * Takes no more connections or requests, answers what is under way (for `graceMs` at most), then flushes every device.
   * Rejects when a flush fails. Idempotent.
   */
  close(options: { graceMs?: number } = {}): Promise<void> {
    if (this.#closing === undefined) {
      // Set before anything happens: `onClientCount` may call this again.
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#closing = promise;
      resolve(this.#close(options.graceMs ?? 5000));
    }
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    await this.#drain(graceMs);
    this.#sweep?.cancel();
    const devices = new Set(this.#shared.exports.map((exported) => exported.device));
    const writable = [...devices].filter((device) => !device.capabilities.readOnly);
    await Promise.all(writable.map((device) => device.flush()));
  }

  #drain(graceMs: number): Promise<void> {
    for (const connection of [...this.#connections]) connection.finish();
    if (this.#connections.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const deadline = this.#shared.clock.setTimer(graceMs, () => {
        for (const connection of [...this.#connections]) connection.destroy("the server is closing");
      });
      this.#allClosed = () => {
        deadline.cancel();
        resolve();
      };
    });
  }

  /** Who has been told everything, and only has to close, gives way: otherwise such clients could keep others out. */
  #makeRoom(): void {
    const done = [...this.#connections].find((connection) => connection.isDone);
    done?.destroy("its place is needed, and it does not close its side");
  }

  /** The oldest unfinished handshake gives way: clients that are quick get in, however many idle ones there are. */
  #makeRoomForHandshake(): void {
    const unfinished = [...this.#connections].filter((connection) => connection.inHandshake);
    if (unfinished.length >= this.#shared.limits.handshakesMax) {
      unfinished[0]?.destroy("too many clients are in the handshake, and this one is the oldest");
    }
  }

  #stateChanged(connection: Connection): void {
    if (connection.state === "closed") this.#connections.delete(connection);
    const clients = [...this.#connections].filter((candidate) => candidate.state === "transmission").length;
    if (clients !== this.#clients) {
      this.#clients = clients;
      this.#options.onClientCount?.(clients);
    }
    if (this.#connections.size === 0) this.#allClosed?.();
  }

  /** While clients wait for memory, those that hold some and do not move are closed. */
  #scheduleSweep(): void {
    if (this.#sweep !== undefined) return;
    this.#sweep = this.#shared.clock.setTimer(SWEEP_MS, () => {
      this.#sweep = undefined;
      const { budget, limits } = this.#shared;
      for (const connection of [...this.#connections]) {
        const stalled = connection.isStalled(limits.stalledMs);
        if (stalled && budget.waiting > 0)
          connection.destroy("it holds memory that others wait for, and does not move");
      }
      if (this.#connections.size > 0) this.#scheduleSweep();
    });
  }
}
