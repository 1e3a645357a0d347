/**
 * The transmission phase over one stream: any number of requests, so many in flight, replies in any order. It knows
 * commands and replies; what a block device makes of them is `remote-device.ts`.
 *
 * Invariants
 * - A request's promise settles exactly once: with its own reply, or, when the link is lost before that, with
 *   `ConnectionLostError`. It never succeeds without a complete and consistent reply (CVE-2022-0485).
 * - After a violation not one further byte is looked at.
 * - A cookie is a slot and the number of the slot's use: a reply that comes twice, or too late, finds nobody.
 */
import { BlockError } from "../../block/error.ts";
import type { Clock, Timer } from "../../env/clock.ts";
import type { ByteStream } from "../../env/links.ts";
import { NBD_CMD_DISC } from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { ConnectionLostError } from "./errors.ts";
import type { Dialect } from "./negotiate.ts";
import { PendingRequest, type RequestParts } from "./pending.ts";
import { ReplyParser } from "./reply-parser.ts";
import { RequestWriter } from "./request-writer.ts";
import { StallWatch } from "./stall-watch.ts";
import { CONNECTION_EDGES, type ConnectionState, StateMachine } from "./states.ts";
import { WaitingLine } from "./waiting-line.ts";

export const IN_FLIGHT_DEFAULT = 64;
/** Requests that wait for a slot; more are refused. */
const WAITING_MAX = 16_384;
/** How long a server may take to close after DISC. */
const DISCONNECT_MS_MAX = 5000;
const RETIRED = "the server is shutting down";
/** Slot numbers of a cookie; DISC, which is never answered, uses one that no slot has. */
const SLOT_OF_DISC = 0xffff_ffff;

export interface ConnectionOptions {
  /** Past the handshake; becomes the connection's own. */
  readonly stream: ByteStream;
  /** Bytes that arrived behind the handshake. */
  readonly rest: Uint8Array;
  readonly clock: Clock;
  readonly dialect: Dialect;
  readonly inFlightMax: number;
  /** The link counts as lost when an answer is due and nothing moves for so long; 0: never. */
  readonly stallTimeoutMs: number;
}

export class NbdConnection {
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #state = new StateMachine<ConnectionState>(CONNECTION_EDGES, "open");
  readonly #parser: ReplyParser;
  readonly #writer: RequestWriter;
  readonly #watch: StallWatch | undefined;
  readonly #waiting = new WaitingLine<PendingRequest>(WAITING_MAX);
  /** Requests by slot, from when they are sent until they are settled. */
  readonly #slots: (PendingRequest | undefined)[];
  readonly #freeSlots: number[];
  #uses = 0;
  #pumpScheduled = false;
  readonly #pumpNow = (): void => this.#pump();
  #lost: ConnectionLostError | undefined;
  readonly #lostListeners = new Set<(error: ConnectionLostError) => void>();
  /** Set when the server has told that it is going away. */
  #retired: BlockError | undefined;
  readonly #ended = Promise.withResolvers<void>();
  #disconnectTimer: Timer | undefined;

  constructor(options: ConnectionOptions) {
    if (!(options.inFlightMax >= 1)) throw new RangeError("a connection needs room for one request at least");
    this.#stream = options.stream;
    this.#clock = options.clock;
    this.#slots = new Array<PendingRequest | undefined>(options.inFlightMax).fill(undefined);
    this.#freeSlots = this.#slots.map((_, slot) => slot).reverse();
    const table = {
      find: (high: number, low: number) => this.#find(high, low),
      complete: (request: PendingRequest) => this.#complete(request),
    };
    this.#parser = new ReplyParser(table, options.dialect);
    const onReleased = (request: PendingRequest): void => this.#onReleased(request);
    this.#writer = new RequestWriter(this.#stream, options.dialect === "extended", onReleased);
    if (options.stallTimeoutMs > 0) {
      const onStall = (ms: number): void =>
        this.#lose(`the server has been silent for ${Math.round(ms)} ms`, undefined);
      this.#watch = new StallWatch(options.clock, options.stallTimeoutMs, onStall);
    }
    this.#stream.attach({
      onBytes: (bytes) => this.#onBytes(bytes),
      // What is under way there is a read of a request that is not settled: its buffer is ours.
      receiveInto: () => (this.#lost === undefined ? this.#parser.wanted : undefined),
      onEnd: () => this.#onEnd(),
      onClose: (error) => this.#onClose(error),
      onDrain: () => this.#schedulePump(),
    });
    if (options.rest.length > 0) this.#onBytes(options.rest);
  }

  get state(): ConnectionState {
    return this.#state.current;
  }

  /** Requests that were sent and are not settled. */
  get inFlight(): number {
    return this.#slots.length - this.#freeSlots.length;
  }

  /** Sends a request as soon as there is room. Rejects with `BlockError`. The buffers are ours until it settles. */
  request(parts: RequestParts): Promise<void> {
    const refused = this.refusal();
    if (refused !== undefined) return Promise.reject(refused);
    return new Promise((resolve, reject) => {
      if (this.#waiting.join(new PendingRequest(parts, resolve, reject))) this.#schedulePump();
      else reject(new BlockError("no-memory", `${WAITING_MAX} requests are already waiting for the server`));
    });
  }

  /** Why a request would be refused now. */
  refusal(): BlockError | undefined {
    if (this.#lost !== undefined) return new ConnectionLostError(this.#lost.message, this.#lost.cause);
    if (this.#retired !== undefined) return new ConnectionLostError(RETIRED, this.#retired);
    return this.#state.current === "open" ? undefined : new BlockError("shutting-down", "the connection is closed");
  }

  /**
   * `listener` is called once, when the link is lost without our having closed it, or soon if it is already; what was
   * pending has failed by then. Returns the way to unsubscribe. Listeners must not throw.
   */
  onLost(listener: (error: ConnectionLostError) => void): () => void {
    const once = (error: ConnectionLostError): void => {
      if (this.#lostListeners.delete(once)) listener(error);
    };
    this.#lostListeners.add(once);
    const lost = this.#lost;
    if (lost !== undefined) queueMicrotask(() => once(lost));
    return () => void this.#lostListeners.delete(once);
  }

  /** Finishes what was asked for, says goodbye, and waits for the end. Idempotent; a lost connection is closed already. */
  close(): Promise<void> {
    if (this.#state.current === "open") {
      this.#state.advance("draining");
      this.#schedulePump();
    }
    return this.#ended.promise;
  }

  /** Breaks the link at once: the way out when a server does not answer. Idempotent. */
  drop(why: string): void {
    this.#lose(why, undefined);
  }

  #schedulePump(): void {
    if (this.#pumpScheduled) return;
    this.#pumpScheduled = true;
    // Requests made in one turn leave in one write.
    queueMicrotask(this.#pumpNow);
  }

  #pump(): void {
    this.#pumpScheduled = false;
    if (!this.#sending) return;
    this.#writer.flush();
    while (this.#freeSlots.length > 0 && this.#writer.ready) {
      const request = this.#waiting.take();
      if (request === undefined) break;
      this.#send(request);
    }
    this.#writer.flush();
    const idle = this.inFlight === 0 && this.#waiting.length === 0;
    if (idle && this.#state.current === "draining") this.#disconnect();
  }

  get #sending(): boolean {
    const state = this.#state.current;
    return state === "open" || state === "draining";
  }

  #send(request: PendingRequest): void {
    const slot = this.#freeSlots.pop();
    if (slot === undefined) throw new Error("no slot is free");
    this.#uses = (this.#uses + 1) >>> 0;
    request.cookieHigh = this.#uses;
    request.slot = slot;
    this.#slots[slot] = request;
    this.#watch?.start();
    this.#writer.send(request);
  }

  #find(cookieHigh: number, cookieLow: number): PendingRequest | undefined {
    const request = this.#slots[cookieLow];
    return request === undefined || request.replied || request.cookieHigh !== cookieHigh ? undefined : request;
  }

  #complete(request: PendingRequest): void {
    request.replied = true;
    if (request.failure?.code === "shutting-down") this.#retire(request.failure);
    this.#settleIfFinished(request);
  }

  #onReleased(request: PendingRequest): void {
    this.#watch?.moved();
    this.#settleIfFinished(request);
    this.#schedulePump();
  }

  #settleIfFinished(request: PendingRequest): void {
    if (!request.finished || this.#slots[request.slot] !== request) return;
    this.#slots[request.slot] = undefined;
    this.#freeSlots.push(request.slot);
    request.settle();
    if (this.inFlight === 0) this.#watch?.stop();
    if (this.#waiting.length > 0 || this.#state.current === "draining") this.#schedulePump();
  }

  /** The server goes away: proto.md asks us to leave politely. What is in flight still gets its answers. */
  #retire(cause: BlockError): void {
    if (this.#retired !== undefined) return;
    this.#retired = cause;
    if (this.#state.current === "open") this.#state.advance("draining");
    this.#failWaiting(new ConnectionLostError(RETIRED, cause));
    this.#schedulePump();
  }

  #disconnect(): void {
    const goodbye = new PendingRequest({ command: NBD_CMD_DISC, flags: 0, offset: 0, length: 0 }, nothing, nothing);
    goodbye.slot = SLOT_OF_DISC;
    this.#state.advance("disconnecting");
    this.#writer.send(goodbye);
    this.#writer.flush();
    this.#stream.end();
    this.#disconnectTimer = this.#clock.setTimer(DISCONNECT_MS_MAX, () => this.#stream.destroy());
    if (this.#retired !== undefined) this.#die(new ConnectionLostError(RETIRED, this.#retired));
  }

  #onBytes(bytes: Uint8Array): void {
    const state = this.#state.current;
    if (state === "dead" || state === "closed") return;
    this.#watch?.moved();
    try {
      this.#parser.push(bytes);
    } catch (error) {
      // Anything but a violation is our own fault; the session cannot go on after either.
      const why = error instanceof NbdProtocolError ? "the server broke the protocol" : "decoding a reply failed";
      this.#lose(`${why}: ${error instanceof Error ? error.message : String(error)}`, error);
    }
  }

  #onEnd(): void {
    if (this.#sending) this.#lose("the server closed the connection", undefined);
  }

  #onClose(error: Error | undefined): void {
    this.#disconnectTimer?.cancel();
    if (this.#state.current === "disconnecting") {
      this.#state.advance("closed");
      this.#ended.resolve();
    } else {
      this.#lose(error === undefined ? "the connection was closed" : `the connection broke: ${error.message}`, error);
    }
    // The stream touches nothing any more, whether it gave everything back or not.
    for (const request of this.#slots) {
      if (request === undefined) continue;
      request.heldWrites = 0;
      this.#settleIfFinished(request);
    }
  }

  #lose(why: string, cause: unknown): void {
    const state = this.#state.current;
    if (state === "dead" || state === "closed") return;
    const error = new ConnectionLostError(`the link to ${this.#stream.peer} was lost: ${why}`, cause);
    this.#die(error);
    this.#stream.destroy(cause instanceof Error ? cause : error);
  }

  #die(lost: ConnectionLostError): void {
    this.#state.advance("dead");
    this.#lost = lost;
    this.#writer.stop();
    this.#watch?.stop();
    for (const request of this.#slots) if (request !== undefined) this.#fail(request, lost);
    this.#failWaiting(lost);
    this.#ended.resolve();
    for (const listener of this.#lostListeners) listener(lost);
  }

  #fail(request: PendingRequest, lost: ConnectionLostError): void {
    request.unsentBytes = 0;
    // A reply that has come tells how it went; only what the stream still holds is waited for.
    if (!request.replied) request.failure = new ConnectionLostError(lost.message, lost.cause);
    request.replied = true;
    this.#settleIfFinished(request);
  }

  #failWaiting(lost: ConnectionLostError): void {
    for (let request = this.#waiting.take(); request !== undefined; request = this.#waiting.take()) {
      request.failure = new ConnectionLostError(lost.message, lost.cause);
      request.settle();
    }
  }
}

function nothing(): void {}
