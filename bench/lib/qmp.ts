/**
 * A very small QMP client: commands one after the other, and events to wait for. What QEMU's programs are told to do
 * while they run, as management tools do it.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

export interface QmpEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

interface Message {
  readonly QMP?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly data?: Readonly<Record<string, unknown>>;
}

interface Waiter {
  resolve(message: Message): void;
  reject(error: Error): void;
}

export class QmpClient implements AsyncDisposable {
  readonly #socket: Socket;
  /** Answers come in the order of the commands; the first that comes of all is the greeting. */
  readonly #answers: Waiter[] = [];
  readonly #events = new Map<string, Waiter[]>();
  #failure: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    let rest = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#take(line);
    });
    socket.on("error", (error) => {
      this.#failure ??= error;
    });
    socket.on("close", () => this.#fail(this.#failure ?? new Error("QMP: the program hung up")));
  }

  /** Resolves when commands can be given. Rejects when nobody listens there. */
  static async connect(socketPath: string): Promise<QmpClient> {
    const client = new QmpClient(connect(socketPath));
    try {
      await client.#next(client.#answers);
      await client.execute("qmp_capabilities");
      return client;
    } catch (error) {
      client.#socket.destroy();
      throw error;
    }
  }

  /** Resolves to what the command returns; rejects with the program's own words when it was refused. */
  async execute(command: string, options: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: options })}\n`);
    const { error, ...answer } = await this.#next(this.#answers);
    if (error !== undefined) throw new Error(`${command}: ${error.desc}`);
    return answer.return;
  }

  /** The next event of that name, counted from this call on: ask before giving the command that leads to it. */
  async event(name: string): Promise<QmpEvent> {
    const waiting = this.#events.get(name) ?? [];
    this.#events.set(name, waiting);
    const { data = {} } = await this.#next(waiting);
    return { name, data };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#socket.closed) return;
    this.#socket.destroy();
    await once(this.#socket, "close");
  }

  #next(queue: Waiter[]): Promise<Message> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => queue.push({ resolve, reject }));
  }

  #take(line: string): void {
    const message = JSON.parse(line) as Message;
    const queue = message.event === undefined ? this.#answers : this.#events.get(message.event);
    queue?.shift()?.resolve(message);
  }

  #fail(error: Error): void {
    this.#failure = error;
    for (const queue of [this.#answers, ...this.#events.values()]) {
      for (const { reject } of queue.splice(0)) reject(error);
    }
  }
}
