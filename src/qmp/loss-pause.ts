/**
 * The `pause` policy for a source that is lost: reads of missing blocks fail, QEMU (`rerror=stop,werror=stop`) stops the
 * guest instead of telling it, and when the source is back we let it run on; QEMU then repeats what had failed.
 *
 * Only a guest that stopped because of an I/O error is continued, never one that somebody has paused.
 */
import type { QmpClient } from "./client.ts";
import { QmpCommandError } from "./errors.ts";
import type { QmpEvent, StatusInfo } from "./messages.ts";
import { watchStatus } from "./watch.ts";

/** Failures that were under way when the source came back: QEMU tells of them, and stops, a little later. */
const GRACE_MS = 1000;

const STOPPED = "io-error";

export interface LossPauseHooks {
  /** The guest was told of an I/O error: this disk of it is not `rerror=stop,werror=stop`. Must not throw. */
  onReported?: (disk: string) => void;
}

export class LossPause implements Disposable {
  readonly #client: QmpClient;
  readonly #hooks: LossPauseHooks;
  readonly #listening: Disposable;
  #stops = 0;

  constructor(client: QmpClient, hooks: LossPauseHooks = {}) {
    this.#client = client;
    this.#hooks = hooks;
    this.#listening = client.listen((event) => this.#onEvent(event));
  }

  /** I/O errors that stopped the guest, so far. */
  get stops(): number {
    return this.#stops;
  }

  /**
   * The source is there again: lets the guest run on if an I/O error has stopped it, or does so within the next second.
   * Resolves then, to the guest's state. Rejects with `QmpError`.
   */
  async sourceIsBack(): Promise<StatusInfo> {
    const { clock } = this.#client;
    const untilMs = clock.nowMs() + GRACE_MS;
    for (;;) {
      const timeoutMs = Math.max(0, untilMs - clock.nowMs());
      const guest = await watchStatus(this.#client, ({ status }) => status === STOPPED, {
        pollMs: GRACE_MS,
        timeoutMs,
      });
      if (guest.status !== STOPPED) return guest;
      await this.#continue();
      if (timeoutMs === 0) return await this.#client.execute("query-status");
    }
  }

  [Symbol.dispose](): void {
    this.#listening[Symbol.dispose]();
  }

  async #continue(): Promise<void> {
    try {
      await this.#client.execute("cont");
    } catch (error) {
      // Somebody else was quicker with something.
      if (!(error instanceof QmpCommandError)) throw error;
    }
  }

  #onEvent({ event, data }: QmpEvent): void {
    if (event !== "BLOCK_IO_ERROR") return;
    if (data["action"] === "stop") this.#stops += 1;
    else if (data["action"] === "report") this.#hooks.onReported?.(String(data["device"] || data["node-name"] || "?"));
  }
}
