/**
 * One instance that is watched: a connection to its control socket, kept as long as it lasts and made anew when it was
 * lost, what it last said of itself, and the last thing that happened to it.
 */
import { ControlClient } from "../../control/client.ts";
import { ControlError } from "../../control/errors.ts";
import type { ControlEvent } from "../../control/messages.ts";
import type { Status } from "../../control/status.ts";
import type { Clock } from "../../env/clock.ts";
import { FileError } from "../../env/files.ts";
import type { ByteStream } from "../../env/links.ts";

/** An instance that takes longer is shown as one that does not answer, and asked again. */
export const ANSWER_MS_MAX = 3000;

/** How an instance is: as it says itself, or why it says nothing; `ended`: there is nobody to ask any more. */
export interface InstanceView {
  /** Its control socket. */
  readonly control: string;
  readonly status?: Status;
  readonly trouble?: string;
  readonly ended: boolean;
  readonly lastEvent?: ControlEvent;
}

export interface WatchOptions {
  readonly control: string;
  readonly clock: Clock;
  /** Rejects with `FileError`; "ENOENT" and "ECONNREFUSED": nobody listens. */
  readonly dial: (path: string) => Promise<ByteStream>;
  /** Something happened to the instance: there is reason to ask it. Must not throw. */
  readonly onEvent: () => void;
}

const GONE: ReadonlySet<string> = new Set(["ENOENT", "ECONNREFUSED"]);

export class Watched implements Disposable {
  readonly control: string;
  readonly #options: WatchOptions;
  #client: ControlClient | undefined;
  #view: InstanceView;
  #asking: Promise<InstanceView> | undefined;
  #disposed = false;

  constructor(options: WatchOptions) {
    this.control = options.control;
    this.#options = options;
    this.#view = { control: options.control, ended: false, trouble: "not asked yet" };
  }

  /** Asks the instance how it is; whoever comes while it is being asked gets the same answer. Never rejects. */
  refresh(): Promise<InstanceView> {
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#forget();
  }

  async #ask(): Promise<InstanceView> {
    try {
      const client = this.#client ?? (await this.#connect());
      const status = await client.call("status", {}, { timeoutMs: ANSWER_MS_MAX });
      this.#view = { ...this.#kept(), status, ended: false };
    } catch (error) {
      this.#forget();
      const ended = error instanceof FileError && GONE.has(error.code);
      // Its last words may have been good ones, and are not how it is now.
      this.#view = { ...this.#kept(), ended, trouble: ended ? "it has ended" : reasonOf(error) };
    }
    return this.#view;
  }

  async #connect(): Promise<ControlClient> {
    const stream = await this.#options.dial(this.control);
    const client = await ControlClient.connect(stream, this.#options.clock);
    if (this.#disposed) {
      client.close();
      throw new ControlError("closed", "it is not watched any more");
    }
    this.#client = client;
    client.onEvent = (event) => this.#note(event);
    // The next question finds out what has become of it.
    void client.closed.then(() => {
      if (this.#client !== client) return;
      this.#client = undefined;
      this.#options.onEvent();
    });
    const last = await client.call("events", { follow: true }, { timeoutMs: ANSWER_MS_MAX }).then(
      ({ recent }) => recent.at(-1),
      // Without events it is asked every second all the same; one that is gone is found out by the next question.
      () => undefined,
    );
    if (last !== undefined) this.#view = { ...this.#view, lastEvent: last };
    return client;
  }

  #note(event: ControlEvent): void {
    this.#view = { ...this.#view, lastEvent: event };
    this.#options.onEvent();
  }

  #kept(): Pick<InstanceView, "control" | "lastEvent"> {
    const { control, lastEvent } = this.#view;
    return lastEvent === undefined ? { control } : { control, lastEvent };
  }

  #forget(): void {
    const client = this.#client;
    this.#client = undefined;
    client?.close();
  }
}

function reasonOf(error: unknown): string {
  if (error instanceof ControlError && error.code === "timeout") return "it does not answer";
  return error instanceof Error ? error.message : String(error);
}
