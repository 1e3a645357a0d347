/** The asking end of a control socket, over a stream that somebody dialled. */
import type { Clock } from "../env/clock.ts";
import type { ByteSink, ByteStream } from "../env/links.ts";
import { ControlError, ControlProtocolError, describeZodError } from "./errors.ts";
import { decodeBody, encodeMessage, FrameReader } from "./frame.ts";
import { ControlEvent, Hello, PROTOCOL_NAME, PROTOCOL_VERSION, parseMessage, Reply } from "./messages.ts";
import { type ParamsOf, type ResultOf, VERBS, type VerbName } from "./verbs.ts";

/** How long an answer may take that does not wait for anything. */
const REPLY_TIMEOUT_MS = 10_000;

export interface CallOptions {
  /** Null: no limit. */
  readonly timeoutMs?: number | null;
}

interface Pending {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

export class ControlClient implements Disposable, ByteSink {
  /** Called for every event that follows a subscription. Must not throw. */
  onEvent: ((event: ControlEvent) => void) | undefined;
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #reader = new FrameReader();
  readonly #pending = new Map<number, Pending>();
  readonly #hello = Promise.withResolvers<Hello>();
  readonly #closed = Promise.withResolvers<Error | undefined>();
  #greeting: Hello | undefined;
  #failure: Error | undefined;
  #isClosed = false;
  #nextId = 1;

  /** Resolves when the server has said hello. Rejects with `ControlError` or `ControlProtocolError`, the stream destroyed. */
  static async connect(stream: ByteStream, clock: Clock): Promise<ControlClient> {
    const client = new ControlClient(stream, clock);
    stream.attach(client);
    try {
      await withTimeout(client.#hello.promise, clock, REPLY_TIMEOUT_MS);
      return client;
    } catch (error) {
      stream.destroy();
      throw error;
    }
  }

  private constructor(stream: ByteStream, clock: Clock) {
    this.#stream = stream;
    this.#clock = clock;
    // The caller may not be waiting for it any more.
    this.#hello.promise.catch(() => undefined);
  }

  get hello(): Hello {
    if (this.#greeting === undefined) throw new Error("the server has not said hello");
    return this.#greeting;
  }

  /** Resolves when the connection is gone: to the reason, or to undefined when the server ended it in good order. */
  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  /**
   * Asks, and resolves to the checked result. Rejects with the server's `ControlError`, or with one of the codes "closed"
   * and "timeout", or with `ControlProtocolError` for an answer that makes no sense.
   */
  async call<V extends VerbName>(verb: V, params: ParamsOf<V>, options: CallOptions = {}): Promise<ResultOf<V>> {
    const schemas = VERBS[verb];
    const checked = schemas.params.safeParse(params);
    if (!checked.success) throw new ControlError("bad-params", `${verb}: ${describeZodError(checked.error)}`);
    const { timeoutMs = REPLY_TIMEOUT_MS } = options;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    if (this.#isClosed) throw this.#closedError();
    this.#stream.write(encodeMessage({ id, verb, params: checked.data }));
    this.#pending.set(id, { resolve, reject });
    try {
      const result = await (timeoutMs === null ? promise : withTimeout(promise, this.#clock, timeoutMs));
      return parseMessage(schemas.result, result, `the result of ${verb}`) as ResultOf<V>;
    } finally {
      this.#pending.delete(id);
    }
  }

  /** Stops taking in: for whoever cannot pass events on as fast as they come. */
  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  close(): void {
    this.#stream.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  onBytes(bytes: Uint8Array): void {
    if (this.#failure !== undefined) return;
    try {
      this.#reader.push(bytes, (body) => {
        this.#onMessage(decodeBody(body));
        return true;
      });
    } catch (error) {
      this.#failure = error as Error;
      this.#stream.destroy();
    }
  }

  onEnd(): void {
    this.#stream.end();
  }

  onClose(error?: Error): void {
    this.#isClosed = true;
    this.#failure ??= error;
    const failure = this.#closedError();
    this.#hello.reject(failure);
    for (const { reject } of this.#pending.values()) reject(failure);
    this.#pending.clear();
    this.#closed.resolve(this.#failure);
  }

  onDrain(): void {}

  #onMessage(message: unknown): void {
    if (this.#greeting === undefined) this.#onHello(message);
    else if (typeof message === "object" && message !== null && "event" in message)
      this.onEvent?.(parseMessage(ControlEvent, message, "an event"));
    else this.#onReply(parseMessage(Reply, message, "a reply"));
  }

  #onHello(message: unknown): void {
    const { protocol, version } = (message ?? {}) as { protocol?: unknown; version?: unknown };
    if (protocol !== PROTOCOL_NAME) throw new ControlProtocolError("this is not the control socket of a blockferry");
    if (version !== PROTOCOL_VERSION) {
      throw new ControlProtocolError(
        `the instance speaks version ${String(version)} of the protocol, and we ${PROTOCOL_VERSION}`,
      );
    }
    this.#greeting = parseMessage(Hello, message, "the greeting");
    this.#hello.resolve(this.#greeting);
  }

  #onReply(reply: Reply): void {
    const pending = this.#pending.get(reply.id);
    // Late: nobody waits for it any more.
    if (pending === undefined) return;
    if ("error" in reply) pending.reject(new ControlError(reply.error.code, reply.error.message, reply.error.hint));
    else pending.resolve(reply.result);
  }

  #closedError(): Error {
    if (this.#failure instanceof ControlProtocolError) return this.#failure;
    const why = this.#failure?.message ?? "the instance closed the connection";
    return new ControlError("closed", why);
  }
}

async function withTimeout<T>(promise: Promise<T>, clock: Clock, timeoutMs: number): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = clock.setTimer(timeoutMs, () =>
    late.reject(new ControlError("timeout", `there was no answer within ${Math.round(timeoutMs / 1000)} s`)),
  );
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    timer.cancel();
  }
}
