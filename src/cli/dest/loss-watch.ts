/**
 * `--on-source-loss=pause --qmp`: reads of missing blocks fail while the source is away, and QEMU stops the guest at the
 * first of them; when the source is back, the guest goes on. The monitor is used at that instant alone: it has room for one.
 */
import type { Env } from "../../env/env.ts";
import { messageOf } from "../../migrate/errors.ts";
import { QmpClient } from "../../qmp/client.ts";
import { QmpError } from "../../qmp/errors.ts";
import { LossPause } from "../../qmp/loss-pause.ts";
import type { Log } from "../log.ts";
import type { QmpPlan } from "../migration/qmp.ts";

const AGAIN_MS = 3000;

export interface LossWatchOptions {
  readonly env: Pick<Env, "clock" | "links">;
  readonly log: Log;
  readonly qmp: QmpPlan;
}

export class LossWatch {
  readonly #options: LossWatchOptions;
  /** Raised at every change of the link: what was begun before is out of date. */
  #turn = 0;
  #client: QmpClient | undefined;

  constructor(options: LossWatchOptions) {
    this.#options = options;
  }

  /** The link is up, or down. */
  onLink(connected: boolean): void {
    this.#turn += 1;
    if (connected) void this.#letGoOn(this.#turn);
  }

  close(): void {
    this.#turn += 1;
    this.#client?.close();
  }

  async #letGoOn(turn: number): Promise<void> {
    const { env, log, qmp } = this.#options;
    while (turn === this.#turn) {
      try {
        using client = await QmpClient.dial(env, qmp.address);
        this.#client = client;
        if (turn !== this.#turn) return;
        using pause = new LossPause(client);
        const { status } = await pause.sourceIsBack();
        log.info("the source is back", { guest: status });
        return;
      } catch (error) {
        log.warn("the guest cannot be told that the source is back", { why: messageOf(error) });
        // No QEMU, no guest that waits for it.
        if (error instanceof QmpError && error.code === "closed") return;
      }
      await new Promise<void>((resolve) => env.clock.setTimer(AGAIN_MS, resolve));
    }
  }
}
