/** The phase of one side, who wants to hear of it, and what went wrong last. */
import type { Clock } from "../env/clock.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import { Change } from "../stream/change.ts";
import { StateTable } from "../stream/state-table.ts";
import type { MigrationError } from "./errors.ts";

export type MigrationEvent<Phase extends string> =
  | { readonly kind: "phase"; readonly phase: Phase }
  | { readonly kind: "link"; readonly connected: boolean }
  | { readonly kind: "warning"; readonly message: string };

export interface PhaseBookOptions<Phase extends string> {
  readonly edges: Readonly<Record<Phase, readonly Phase[]>>;
  readonly initial: Phase;
  readonly clock: Pick<Clock, "nowMs">;
  readonly log: ServerLog;
}

export class PhaseBook<Phase extends string> {
  /** Notified of every event, and of whatever else somebody may wait for. */
  readonly change = new Change();
  lastError: string | undefined;
  readonly #options: PhaseBookOptions<Phase>;
  readonly #state: StateTable<Phase>;
  readonly #listeners = new Set<(event: MigrationEvent<Phase>) => void>();

  constructor(options: PhaseBookOptions<Phase>) {
    this.#options = options;
    this.#state = new StateTable<Phase>(options.edges, options.initial, options.clock.nowMs());
  }

  get current(): Phase {
    return this.#state.current;
  }

  get forMs(): number {
    return this.#options.clock.nowMs() - this.#state.sinceMs;
  }

  is(...phases: readonly Phase[]): boolean {
    return phases.includes(this.current);
  }

  advance(phase: Phase): void {
    if (this.current === phase) return;
    this.#state.advance(phase, this.#options.clock.nowMs());
    this.tell({ kind: "phase", phase });
  }

  warn(message: string): void {
    this.lastError = message;
    this.#options.log.warn(message);
    this.tell({ kind: "warning", message });
  }

  tell(event: MigrationEvent<Phase>): void {
    for (const listener of [...this.#listeners]) listener(event);
    this.change.notify();
  }

  /** `listener` must not throw. Returns the way to unsubscribe. */
  onEvent(listener: (event: MigrationEvent<Phase>) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Resolves once it is in one of `phases`. `closed`: why it never will be. */
  async when(phases: readonly Phase[], closed: () => MigrationError | undefined): Promise<Phase> {
    while (!this.is(...phases)) {
      const error = closed();
      if (error !== undefined) throw error;
      await this.change.next();
    }
    return this.current;
  }
}
