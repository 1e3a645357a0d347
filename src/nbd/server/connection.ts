/**
 * One client, from the accepted stream to its end: handshake (perhaps twice, when TLS comes between), then transmission.
 *
 *   handshake → transmission → leaving → closed
 *   handshake → tls → handshake → …                            (any state → closed)
 *
 * Leaving: we have finished sending, and the client has yet to close its side.
 */
import type { Clock, Timer } from "../../env/clock.ts";
import type { ByteStream } from "../../env/links.ts";
import type { TlsServer } from "../../env/tls.ts";
import type { BufferPool } from "../../util/buffer-pool.ts";
import type { BudgetAccount, PayloadBudget } from "../../util/payload-budget.ts";
import { NbdProtocolError } from "../error.ts";
import type { Negotiated } from "./connection-context.ts";
import type { NbdExport } from "./export.ts";
import type { DeviceGuard } from "./guard.ts";
import { ServerHandshake } from "./handshake.ts";
import type { ServerLimits } from "./limits.ts";
import type { OptionUpgrade } from "./options.ts";
import type { ServerLog } from "./server-log.ts";
import { Transmission } from "./transmission.ts";

/** Sessions may turn into something else, by a private option. What is refused under TLS rules is refused here as well. */
export interface SessionUpgrade extends OptionUpgrade {
  /** The stream is the callee's; `rest` are bytes that have arrived behind the option. */
  take(stream: ByteStream, rest: Uint8Array): void;
}

/** What every connection of a server shares. */
export interface ServerShared {
  readonly clock: Clock;
  readonly exports: readonly NbdExport[];
  readonly tls: { readonly mode: "on" | "require"; readonly server: TlsServer } | undefined;
  readonly upgrade: SessionUpgrade | undefined;
  readonly limits: ServerLimits;
  readonly log: ServerLog;
  readonly pool: BufferPool;
  readonly budget: PayloadBudget;
  guardOf(exported: NbdExport): DeviceGuard;
}

export type ConnectionState = "handshake" | "tls" | "transmission" | "leaving" | "closed";

export const CONNECTION_EDGES: Readonly<Record<ConnectionState, readonly ConnectionState[]>> = {
  handshake: ["tls", "transmission", "leaving", "closed"],
  tls: ["handshake", "closed"],
  transmission: ["leaving", "closed"],
  leaving: ["closed"],
  closed: [],
};

/** A payload that comes more slowly than this per stall period does not come. */
const OWED_STEP_BYTES = 64 * 1024;

export class Connection {
  readonly #shared: ServerShared;
  readonly #account: BudgetAccount;
  readonly #onStateChange: (connection: Connection) => void;
  #state: ConnectionState = "handshake";
  #stream: ByteStream;
  #transmission: Transmission | undefined;
  #deadline: Timer | undefined;
  #lingerMs: number;
  #receivedBytes = 0;
  readonly #unsent = new Standstill();
  readonly #returned = new Standstill();
  readonly #owed = new Standstill();

  constructor(stream: ByteStream, shared: ServerShared, onStateChange: (connection: Connection) => void) {
    this.#shared = shared;
    this.#stream = stream;
    this.#onStateChange = onStateChange;
    this.#lingerMs = shared.limits.lingerMs;
    this.#account = shared.budget.openAccount();
    this.#deadline = shared.clock.setTimer(shared.limits.handshakeTimeoutMs, () => this.#handshakeTooLong());
    this.#beginHandshake();
  }

  get state(): ConnectionState {
    return this.#state;
  }

  get peer(): string {
    return this.#stream.peer;
  }

  get inHandshake(): boolean {
    return this.#state === "handshake" || this.#state === "tls";
  }

  /** Nothing is owed to the client any more: it has yet to close its side. */
  get isDone(): boolean {
    return this.#state === "leaving" && (this.#transmission === undefined || this.#stream.pendingBytes === 0);
  }

  /** Takes no more requests, answers those under way, closes. */
  finish(): void {
    this.#lingerMs = this.#shared.limits.closingLingerMs;
    if (this.#state === "transmission") this.#transmission?.finish();
    else if (this.#state === "leaving") this.#linger(Number.POSITIVE_INFINITY);
    else this.destroy("the server is closing");
  }

  /** Closes at once, whatever is under way. */
  destroy(why: string): void {
    if (this.#state === "closed") return;
    this.#shared.log.warn("closing a connection", { peer: this.peer, why });
    this.#stream.destroy();
    this.#closed();
  }

  /** True when for `periodMs` the client has taken none of its replies, or sent none of a payload. To be asked at intervals. */
  isStalled(periodMs: number): boolean {
    const now = this.#shared.clock.nowMs();
    const unsent = this.#stream.pendingBytes;
    const owed = this.#transmission?.owedPayload === true ? 1 + Math.floor(this.#receivedBytes / OWED_STEP_BYTES) : 0;
    // A busy stream is often seen with the same amount unsent: memory that comes back tells it from one that stands.
    const returnedMs = this.#returned.lasts(this.#account.returnedBytes, now);
    const untakenMs = Math.min(this.#unsent.lasts(unsent, now), returnedMs);
    const owedMs = this.#owed.lasts(owed, now);
    return (unsent > 0 && untakenMs >= periodMs) || (owed > 0 && owedMs >= periodMs);
  }

  #advance(to: ConnectionState): void {
    if (!CONNECTION_EDGES[this.#state].includes(to))
      throw new Error(`a connection cannot go from ${this.#state} to ${to}`);
    this.#state = to;
    this.#onStateChange(this);
  }

  #beginHandshake(resumed?: { noZeroes: boolean; optionsSeen: number }): void {
    const { exports, tls, limits, upgrade } = this.#shared;
    const handshake: ServerHandshake = new ServerHandshake(
      this.#stream,
      { exports, tls: tls?.mode ?? "off", limits, upgrade },
      {
        go: (negotiated, rest) => this.#beginTransmission(negotiated, rest),
        startTls: () => void this.#startTls(handshake.carriedOver),
        upgraded: (rest) => {
          this.#closed();
          upgrade?.take(this.#stream, rest);
        },
        left: () => {
          this.#stream.attach({
            onBytes: () => {},
            onEnd: () => {},
            onDrain: () => {},
            onClose: () => this.#closed(),
          });
          this.#leave();
        },
        lost: () => this.#closed(),
        failed: (error) => this.#fail(error),
      },
      resumed,
    );
    this.#stream.attach(handshake);
  }

  async #startTls(carriedOver: { noZeroes: boolean; optionsSeen: number }): Promise<void> {
    const { tls, log } = this.#shared;
    if (tls === undefined) throw new Error("STARTTLS was accepted without credentials");
    this.#advance("tls");
    try {
      const secured = await tls.server.accept(this.#stream);
      if (this.state === "closed") {
        secured.destroy();
        return;
      }
      this.#stream = secured;
    } catch (cause) {
      log.warn("a TLS handshake failed", { peer: this.peer, why: (cause as Error).message });
      this.#closed();
      return;
    }
    this.#advance("handshake");
    this.#beginHandshake(carriedOver);
  }

  #beginTransmission(negotiated: Negotiated, rest: Buffer): void {
    const { limits, pool, log } = this.#shared;
    this.#deadline?.cancel();
    log.debug("a client opened an export", { peer: this.peer, export: negotiated.exported.name });
    const transmission = new Transmission(this.#stream, negotiated, {
      limits,
      pool,
      account: this.#account,
      guard: this.#shared.guardOf(negotiated.exported),
      finished: () => this.#leave(),
      protocolError: (error) => this.#fail(error),
    });
    this.#transmission = transmission;
    this.#stream.attach({
      onBytes: (bytes) => {
        this.#receivedBytes += bytes.length;
        transmission.onBytes(bytes);
      },
      onEnd: () => transmission.onEnd(),
      onDrain: () => transmission.onDrain(),
      onClose: (error) => {
        transmission.onClose();
        if (error !== undefined) log.debug("a connection was lost", { peer: this.peer, why: error.message });
        this.#closed();
      },
    });
    // Only now: whoever hears of it may close the server, and with it this connection.
    if (this.#state === "handshake") this.#advance("transmission");
    if (rest.length > 0) transmission.onBytes(rest);
  }

  /** Sends what is queued and closes our side. */
  #leave(): void {
    if (this.#state === "closed") return;
    this.#advance("leaving");
    this.#stream.end();
    // It may have been paused, and then would not notice that the client closes.
    this.#stream.resume();
    this.#linger(Number.POSITIVE_INFINITY);
  }

  #linger(unsentBytes: number): void {
    this.#deadline?.cancel();
    this.#deadline = this.#shared.clock.setTimer(this.#lingerMs, () => {
      const { pendingBytes } = this.#stream;
      // While the server closes, its own deadline is the one for replies.
      const closing = this.#lingerMs < this.#shared.limits.lingerMs;
      if (pendingBytes > 0 && (closing || pendingBytes < unsentBytes)) this.#linger(pendingBytes);
      else this.destroy("the client does not close its side");
    });
  }

  #fail(error: NbdProtocolError): void {
    if (this.#state === "closed") return;
    this.#shared.log.warn("a client broke the protocol", { peer: this.peer, why: error.message });
    this.#stream.destroy();
    this.#closed();
  }

  #handshakeTooLong(): void {
    if (!this.inHandshake) return;
    this.#fail(new NbdProtocolError(`the handshake took longer than ${this.#shared.limits.handshakeTimeoutMs} ms`));
  }

  #closed(): void {
    if (this.#state === "closed") return;
    this.#deadline?.cancel();
    this.#account.close();
    this.#advance("closed");
  }
}

/** Notices for how long a number has stayed the same. */
class Standstill {
  #value = 0;
  #sinceMs = 0;

  /** Milliseconds since `value` was first seen, without another in between. */
  lasts(value: number, nowMs: number): number {
    if (value !== this.#value) {
      this.#value = value;
      this.#sinceMs = nowMs;
    }
    return nowMs - this.#sinceMs;
  }
}
