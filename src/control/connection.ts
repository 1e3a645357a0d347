/** One client of a control socket: its requests, their replies, and the events it wants. */
import type { ByteSink, ByteStream } from "../env/links.ts";
import { ControlError, ControlProtocolError, cutText } from "./errors.ts";
import { isoTime } from "./event-hub.ts";
import { decodeBody, encodeMessage, FrameReader } from "./frame.ts";
import { EVENT_BACKLOG_BYTES_MAX, REQUESTS_MAX, UNSENT_BYTES_MAX } from "./limits.ts";
import { type ControlEvent, parseMessage, Request } from "./messages.ts";
import type { VerbCall } from "./registry.ts";
import type { ControlServerOptions } from "./server-options.ts";
import type { EventListener, EventSource } from "./subscription.ts";

const EMPTY = new Uint8Array(0);

export interface ConnectionOwner {
  readonly options: ControlServerOptions;
  /** The client has asked something, or has had its answer. */
  onUsed(connection: ControlConnection): void;
  onClosed(connection: ControlConnection): void;
}

export class ControlConnection implements ByteSink, EventListener {
  readonly #stream: ByteStream;
  readonly #owner: ConnectionOwner;
  readonly #reader = new FrameReader();
  readonly #gone = new AbortController();
  /** Received, and not looked at before the peer has taken what we sent. */
  #backlog: Uint8Array = EMPTY;
  #requests = 0;
  #events: EventSource | undefined;
  #dropped = 0;
  #lastDropped = 0;
  #closed = false;
  /** Nothing more is read: the peer has finished, or we are closing. */
  #finishing = false;

  constructor(stream: ByteStream, owner: ConnectionOwner) {
    this.#stream = stream;
    this.#owner = owner;
  }

  /** Whether it would miss something if it were closed now. */
  get isBusy(): boolean {
    return this.#requests > 0 || this.#events !== undefined;
  }

  start(hello: Uint8Array): void {
    this.#stream.attach(this);
    this.#send(hello);
  }

  /** Requests under way are told that the instance is ending; what is queued is sent; then the connection ends. */
  finish(): void {
    if (this.#closed) return;
    this.#finishing = true;
    this.#unsubscribe();
    this.#gone.abort(new ControlError("closing", "the instance is ending"));
    this.#endWhenDone();
  }

  destroy(): void {
    this.#stream.destroy();
  }

  onBytes(bytes: Uint8Array): void {
    if (this.#backlog.length === 0) this.#take(bytes);
    else this.#backlog = joined(this.#backlog, bytes);
  }

  onEnd(): void {
    this.#finishing = true;
    this.#unsubscribe();
    this.#endWhenDone();
  }

  onClose(): void {
    this.#closed = true;
    this.#unsubscribe();
    this.#gone.abort(new ControlError("closed", "the client is gone"));
    this.#owner.onClosed(this);
  }

  onDrain(): void {
    if (this.#closed) return;
    if (this.#dropped > 0) this.#sendMarker();
    const backlog = this.#backlog;
    this.#backlog = EMPTY;
    this.#take(backlog);
    if (this.#backlog.length === 0) this.#stream.resume();
  }

  onEvent(frame: Uint8Array, event: ControlEvent): void {
    if (this.#dropped === 0 && this.#stream.pendingBytes <= EVENT_BACKLOG_BYTES_MAX) {
      this.#send(frame);
      return;
    }
    this.#dropped++;
    this.#lastDropped = event.seq;
  }

  /** Whoever asks and does not listen to the answers is not heard any more: the rest waits until `onDrain`. */
  #take(bytes: Uint8Array): void {
    if (this.#finishing || this.#closed) return;
    try {
      const rest = this.#reader.push(bytes, (body) => {
        this.#onBody(body);
        return this.#stream.pendingBytes <= UNSENT_BYTES_MAX;
      });
      if (this.#stream.pendingBytes <= UNSENT_BYTES_MAX) return;
      this.#backlog = rest.slice();
      this.#stream.pause();
    } catch (error) {
      this.#drop(error);
    }
  }

  #onBody(body: Uint8Array): void {
    if (this.#finishing || this.#closed) return;
    const request = parseMessage(Request, decodeBody(body), "a request");
    this.#owner.onUsed(this);
    if (this.#requests >= REQUESTS_MAX) {
      const hint = "wait for a reply before asking more";
      this.#reply(request.id, undefined, new ControlError("busy", `${REQUESTS_MAX} requests are under way`, hint));
      return;
    }
    this.#requests++;
    this.#answer(request);
  }

  #answer({ id, verb, params }: Request): void {
    const call: VerbCall = { signal: this.#gone.signal, subscribe: (events) => this.#subscribe(events) };
    const fail = (error: unknown): void => this.#finishRequest(id, undefined, this.#toControlError(verb, error));
    try {
      const result = this.#owner.options.registry.call(verb, params, call);
      if (result instanceof Promise) result.then((value) => this.#finishRequest(id, value), fail);
      else this.#finishRequest(id, result);
    } catch (error) {
      fail(error);
    }
  }

  #finishRequest(id: number, result: object | undefined, error?: ControlError): void {
    this.#requests--;
    if (this.#closed) return;
    this.#reply(id, result, error);
    this.#owner.onUsed(this);
    if (this.#finishing) this.#endWhenDone();
  }

  #reply(id: number, result: object | undefined, error?: ControlError): void {
    try {
      this.#send(encodeMessage(error === undefined ? { id, result } : { id, error: errorBody(error) }));
    } catch (failure) {
      if (!(failure instanceof ControlError)) throw failure;
      this.#send(encodeMessage({ id, error: errorBody(failure) }));
    }
  }

  #subscribe(events: EventSource): void {
    this.#events = events;
    events.subscribe(this);
  }

  #unsubscribe(): void {
    this.#events?.unsubscribe(this);
    this.#events = undefined;
  }

  #sendMarker(): void {
    const count = this.#dropped;
    this.#dropped = 0;
    const time = isoTime(this.#owner.options.clock);
    this.#send(encodeMessage({ event: "dropped", seq: this.#lastDropped, time, count }));
  }

  #send(frame: Uint8Array): void {
    if (!this.#closed) this.#stream.write(frame);
  }

  #endWhenDone(): void {
    if (this.#requests === 0) this.#stream.end();
  }

  #drop(error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    const { log } = this.#owner.options;
    if (error instanceof ControlProtocolError) log.warn("closing a control connection", { why });
    else log.error("a control connection failed", { why, stack: error instanceof Error ? error.stack : undefined });
    this.#finishing = true;
    this.#unsubscribe();
    this.#stream.destroy();
  }

  #toControlError(verb: string, error: unknown): ControlError {
    if (error instanceof ControlError) return error;
    const stack = error instanceof Error ? error.stack : String(error);
    this.#owner.options.log.error("a control verb failed", { verb, stack });
    return new ControlError("bug", `${verb} failed inside the instance`, "its log has the details; please report them");
  }
}

function errorBody({ code, message, hint }: ControlError): object {
  return { code, message: cutText(message), ...(hint !== undefined && { hint: cutText(hint) }) };
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
