/**
 * The asking end of a QEMU monitor (QMP). Source: docs/interop/qmp-spec of QEMU.
 *
 * Invariants
 * - A reply goes to the command with its id, whatever came before it; one that nobody waits for any more is dropped.
 * - Once the connection is gone every command, present or later, fails with `closed`. Whether the last ones were carried
 *   out is then not known.
 */
import type { Clock } from "../env/clock.ts";
import { FileError } from "../env/files.ts";
import { type Address, type ByteSink, type ByteStream, formatAddress, type Links } from "../env/links.ts";
import { QmpCommandError, QmpError, QmpProtocolError } from "./errors.ts";
import { COMMAND_TIMEOUT_MS, COMMANDS_MAX, DIAL_AGAIN_MS, GREETING_TIMEOUT_MS, UNSENT_BYTES_MAX } from "./limits.ts";
import { Greeting, parseMessage, QmpEvent, RESULTS, Reply } from "./messages.ts";
import { MessageSplitter } from "./splitter.ts";

export interface QmpWorld {
  readonly clock: Clock;
  readonly links: Links;
}

export interface CommandOptions {
  /** Null: no limit. */
  readonly timeoutMs?: number | null;
}

/** Must not throw. */
export type EventListener = (event: QmpEvent) => void;

type Results = typeof RESULTS;
type ResultOf<C extends string> = C extends keyof Results ? ReturnType<Results[C]["parse"]> : unknown;

interface Pending {
  readonly command: string;
  resolve(result: unknown): void;
  reject(error: Error): void;
}

const ABSENT_HINT = "start QEMU with -qmp unix:PATH,server=on,wait=off";
/** What is said of the socket when somebody else has it. */
const TAKEN_HINT =
  "a monitor has one client at a time: give QEMU a second -qmp socket, or close the other client (for libvirt, migrate by hand)";

export class QmpClient implements Disposable, ByteSink {
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #splitter = new MessageSplitter();
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<EventListener>();
  readonly #greeted = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<QmpError | QmpProtocolError>();
  #greeting: Greeting | undefined;
  #failure: Error | undefined;
  #over: QmpError | QmpProtocolError | undefined;
  #nextId = 1;

  /** Dials, and resolves when commands can be given. Rejects with `QmpError` (`taken`, `closed`) or `QmpProtocolError`. */
  static async dial({ clock, links }: QmpWorld, address: Address): Promise<QmpClient> {
    const where = formatAddress(address);
    const lastMs = clock.nowMs() + GREETING_TIMEOUT_MS;
    for (;;) {
      try {
        return await QmpClient.over(await links.dial(address), clock, where);
      } catch (cause) {
        if (!(cause instanceof FileError)) throw cause;
        // Others wait to be let in, and there is room for one; or they have gone, and QEMU has yet to find out.
        if (cause.code !== "EAGAIN") throw new QmpError("closed", cause.message, { cause, hint: ABSENT_HINT });
        if (clock.nowMs() >= lastMs) throw taken(where, { cause });
      }
      await new Promise<void>((resolve) => clock.setTimer(DIAL_AGAIN_MS, resolve));
    }
  }

  /** As `dial`, over a stream, which becomes the client's own. `where` is for messages. */
  static async over(stream: ByteStream, clock: Clock, where = stream.peer): Promise<QmpClient> {
    const client = new QmpClient(stream, clock);
    stream.attach(client);
    try {
      await within(client.#greeted.promise, clock, GREETING_TIMEOUT_MS, () => taken(where));
      await client.execute("qmp_capabilities");
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
    this.#greeted.promise.catch(() => undefined);
  }

  get clock(): Clock {
    return this.#clock;
  }

  /** "7.2.19" */
  get version(): string {
    const qemu = this.#greeting?.QMP.version.qemu;
    if (qemu === undefined) throw new Error("QEMU has not greeted");
    return `${qemu.major}.${qemu.minor}.${qemu.micro}`;
  }

  /** Resolves to the reason when the connection is gone. */
  get closed(): Promise<QmpError | QmpProtocolError> {
    return this.#closed.promise;
  }

  /**
   * Resolves to what the command returns, checked where `RESULTS` knows it. Rejects with `QmpCommandError` when QEMU
   * refuses, `QmpError` (`closed`, `timeout`, `limit`) or `QmpProtocolError`.
   */
  async execute<C extends string>(
    command: C,
    args?: Readonly<Record<string, unknown>>,
    options: CommandOptions = {},
  ): Promise<ResultOf<C>> {
    const { timeoutMs = COMMAND_TIMEOUT_MS } = options;
    if (this.#over !== undefined) throw this.#over;
    if (this.#pending.size >= COMMANDS_MAX) throw new QmpError("limit", "too many commands at once for QEMU");
    if (this.#stream.pendingBytes > UNSENT_BYTES_MAX) throw new QmpError("limit", "QEMU does not read its commands");
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { command, resolve, reject });
    const line = JSON.stringify({ execute: command, ...(args !== undefined && { arguments: args }), id });
    this.#stream.write(Buffer.from(`${line}\n`));
    try {
      const late = () => new QmpError("timeout", `QEMU did not answer ${command} within ${(timeoutMs ?? 0) / 1000} s`);
      const result = await (timeoutMs === null ? promise : within(promise, this.#clock, timeoutMs, late));
      const schema = (RESULTS as Partial<Record<string, Results[keyof Results]>>)[command];
      return (schema === undefined ? result : parseMessage(schema, result, `the result of ${command}`)) as ResultOf<C>;
    } finally {
      this.#pending.delete(id);
    }
  }

  /** Calls `listener` for every event from now on, until what is returned is disposed of. */
  listen(listener: EventListener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
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
      for (const text of this.#splitter.push(bytes)) this.#onMessage(parseJson(text));
    } catch (error) {
      this.#failure = error as Error;
      this.#stream.destroy();
    }
  }

  onEnd(): void {
    this.#stream.end();
  }

  onClose(error?: Error): void {
    const cause = this.#failure ?? error;
    const over =
      cause instanceof QmpProtocolError
        ? cause
        : new QmpError("closed", `QEMU's monitor is gone${cause ? `: ${cause.message}` : ""}`, { cause });
    this.#over = over;
    this.#greeted.reject(over);
    for (const { reject } of this.#pending.values()) reject(over);
    this.#pending.clear();
    this.#closed.resolve(over);
  }

  onDrain(): void {}

  #onMessage(message: object): void {
    if (this.#greeting === undefined) {
      this.#greeting = parseMessage(Greeting, message, "the greeting");
      this.#greeted.resolve();
    } else if ("event" in message) {
      const event = parseMessage(QmpEvent, message, "an event");
      for (const listener of [...this.#listeners]) listener(event);
    } else this.#onReply(parseMessage(Reply, message, "a reply"));
  }

  #onReply(reply: Reply): void {
    if (reply.id === undefined) throw new QmpProtocolError("QEMU could not read a command");
    const pending = this.#pending.get(reply.id);
    // Late: nobody waits for it any more.
    if (pending === undefined) return;
    this.#pending.delete(reply.id);
    if ("error" in reply) pending.reject(new QmpCommandError(pending.command, reply.error.class, reply.error.desc));
    else pending.resolve(reply.return);
  }
}

function taken(where: string, options: ErrorOptions = {}): QmpError {
  const why = "QEMU does not greet: another client, libvirt perhaps, has its monitor";
  return new QmpError("taken", `${where}: ${why}`, { ...options, hint: TAKEN_HINT });
}

function parseJson(text: string): object {
  try {
    return JSON.parse(text) as object;
  } catch (cause) {
    throw new QmpProtocolError(`a message is not JSON: ${(cause as Error).message}`, { cause });
  }
}

async function within<T>(promise: Promise<T>, clock: Clock, timeoutMs: number, late: () => Error): Promise<T> {
  const expired = Promise.withResolvers<never>();
  const timer = clock.setTimer(timeoutMs, () => expired.reject(late()));
  try {
    return await Promise.race([promise, expired.promise]);
  } finally {
    timer.cancel();
  }
}
