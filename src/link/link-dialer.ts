/**
 * Keeps a link connected, on the side that dials: dials, upgrades, attaches, and when the connection is lost does so
 * again, less and less often while that fails.
 */
import type { Env } from "../env/env.ts";
import { type NbdConnectCode, NbdConnectError } from "../nbd/client/errors.ts";
import { LinkError } from "./errors.ts";
import type { Link } from "./link.ts";
import type { LinkLog } from "./link-options.ts";
import type { Upgraded } from "./upgrade.ts";

export interface LinkDialerOptions {
  readonly env: Pick<Env, "clock" | "random">;
  readonly link: Link;
  /** Makes an upgraded connection, in bounded time: `dialLink`. */
  readonly connect: (signal: AbortSignal) => Promise<Upgraded>;
  readonly retryMs?: { readonly first: number; readonly max: number };
  readonly log: LinkLog;
}

const RETRY_MS_DEFAULT = { first: 100, max: 5000 };
/** A connection that did not live so long counts as a failed attempt. */
const USEFUL_LIFE_MS = 2000;

/** Answers that will not be others later: what listens there is no link port, or does not take our key. */
const HOPELESS: ReadonlySet<NbdConnectCode> = new Set<NbdConnectCode>([
  "not-nbd",
  "oldstyle",
  "tls-required",
  "tls-unavailable",
  "unsupported",
  "policy",
]);

export class LinkDialer implements AsyncDisposable {
  readonly #options: LinkDialerOptions;
  readonly #abort = new AbortController();
  readonly #running: Promise<void>;
  #attempts = 0;
  #lastError: Error | undefined;

  /** Begins at once. */
  constructor(options: LinkDialerOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  get attempts(): number {
    return this.#attempts;
  }

  /** Why the last attempt failed; undefined after one that did not. */
  get lastError(): Error | undefined {
    return this.#lastError;
  }

  /** Resolves when it dials no more: it, or the link, was closed, or the link was refused. */
  get ended(): Promise<void> {
    return this.#running;
  }

  /** Dials no more; the link stays as it is. Idempotent. */
  async close(): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get #over(): boolean {
    const { state } = this.#options.link;
    return this.#abort.signal.aborted || state === "closed" || state === "refused";
  }

  async #run(): Promise<void> {
    let failures = 0;
    while (!this.#over) {
      const useful = await this.#connection();
      failures = useful ? 0 : failures + 1;
      if (failures > 0 && !this.#over) await this.#pause(failures);
    }
  }

  /** One connection from dialling to its end; whether it was of any use. */
  async #connection(): Promise<boolean> {
    const { env, link, connect, log } = this.#options;
    const { signal } = this.#abort;
    this.#attempts += 1;
    try {
      const { stream, rest } = await connect(signal);
      if (signal.aborted) {
        stream.destroy();
        return false;
      }
      await link.attach(stream, rest);
      this.#lastError = undefined;
    } catch (error) {
      if (this.#over) return false;
      this.#lastError = error instanceof Error ? error : new Error(String(error));
      log.warn("the link cannot be connected", { why: this.#lastError.message });
      this.#giveUpIfHopeless(this.#lastError);
      return false;
    }
    const sinceMs = env.clock.nowMs();
    await this.#down();
    return env.clock.nowMs() - sinceMs >= USEFUL_LIFE_MS;
  }

  /** Only at first: a port that has been a link port will be one again. */
  #giveUpIfHopeless(error: Error): void {
    const { link } = this.#options;
    if (link.state !== "connecting" || !(error instanceof NbdConnectError) || !HOPELESS.has(error.code)) return;
    link.refuse(new LinkError("refused", error.message, { cause: error }));
  }

  /** Waits until the link is down, or nobody cares any more. */
  #down(): Promise<void> {
    const { signal } = this.#abort;
    return new Promise((resolve) => {
      const onAbort = (): void => resolve();
      signal.addEventListener("abort", onAbort, { once: true });
      if (signal.aborted) resolve();
      void this.#options.link.whenDown().then(() => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      });
    });
  }

  /** Doubling from the first to the longest, less up to a half, so that many do not come at once. */
  #pause(failures: number): Promise<void> {
    const { env, retryMs = RETRY_MS_DEFAULT, link } = this.#options;
    const { signal } = this.#abort;
    const whole = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(failures - 1, 30));
    return new Promise((resolve) => {
      const done = (): void => {
        timer.cancel();
        unsubscribe();
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = env.clock.setTimer(whole * (1 - env.random.next() / 2), done);
      const unsubscribe = link.onFinal(done);
      signal.addEventListener("abort", done, { once: true });
    });
  }
}
