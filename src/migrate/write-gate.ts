/**
 * Lets guests' changes through, holds them, or refuses them. Whoever freezes a disk holds the gate, then waits until what
 * is under way has drained; whoever was held goes on when the gate is opened again, as if nothing had been.
 */
import { BlockError } from "../block/error.ts";
import type { Chaos } from "../env/chaos.ts";
import { Change } from "../stream/change.ts";

export type GateState = "open" | "held" | "refusing";

export class WriteGate {
  readonly #chaos: Chaos;
  readonly #change = new Change();
  #state: GateState = "open";
  #refusal: BlockError | undefined;
  #underWay = 0;
  #held = 0;

  constructor(chaos: Chaos) {
    this.#chaos = chaos;
  }

  get state(): GateState {
    return this.#state;
  }

  /** Let through, and not done. */
  get underWay(): number {
    return this.#underWay;
  }

  /** Waiting. Whoever serves guests bounds it. */
  get held(): number {
    return this.#held;
  }

  /** False: it has to wait, with `enter`. After true, `leave` exactly once. */
  enterNow(): boolean {
    if (this.#state !== "open") return false;
    this.#underWay += 1;
    return true;
  }

  /** Waits while the gate is held; then `leave` exactly once. Rejects with `BlockError` when it refuses. */
  async enter(): Promise<void> {
    if (this.enterNow()) return;
    this.#held += 1;
    try {
      while (this.#state === "held") {
        await this.#change.next();
        if (this.#chaos.on("migrate/held-writes-fail-on-thaw")) throw new BlockError("io", "a mutant says so");
      }
      if (this.#refusal !== undefined) throw this.#refusal;
      this.#underWay += 1;
    } finally {
      this.#held -= 1;
    }
  }

  leave(): void {
    this.#underWay -= 1;
    if (this.#underWay === 0) this.#change.notify();
  }

  hold(): void {
    if (this.#state === "open") this.#state = "held";
  }

  open(): void {
    this.#state = "open";
    this.#refusal = undefined;
    this.#change.notify();
  }

  /** Those who wait, and all who come, fail. */
  refuse(error: BlockError): void {
    this.#state = "refusing";
    this.#refusal = error;
    this.#change.notify();
  }

  /** Resolves when nothing is under way. */
  async drained(): Promise<void> {
    while (this.#underWay > 0) await this.#change.next();
  }
}
