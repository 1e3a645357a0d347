/**
 * The local disk is full. One fetch, the first that failed, is tried again from time to time; all others wait for it.
 */
import type { Clock, Timer } from "../env/clock.ts";

export class SpaceWait<Probe extends object> {
  readonly #clock: Clock;
  readonly #retryMs: number;
  readonly #onChange: () => void;
  #full: { readonly probe: Probe | undefined; due: boolean; timer: Timer | undefined } | undefined;

  constructor(clock: Clock, retryMs: number, onChange: () => void) {
    this.#clock = clock;
    this.#retryMs = retryMs;
    this.#onChange = onChange;
  }

  get isFull(): boolean {
    return this.#full !== undefined;
  }

  /** Full, and not yet to be tried again. */
  get waits(): boolean {
    return this.#full?.due === false;
  }

  mayTry(probe: Probe | undefined): boolean {
    return this.#full === undefined || (this.#full.due && this.#full.probe === probe);
  }

  /** `probe` has met it; undefined: what is not a fetch. */
  noteFull(probe: Probe | undefined): void {
    if (this.#full !== undefined && this.#full.probe !== probe) return;
    this.#full?.timer?.cancel();
    const full = { probe, due: false, timer: undefined as Timer | undefined };
    full.timer = this.#clock.setTimer(this.#retryMs, () => {
      full.due = true;
      this.#onChange();
    });
    this.#full = full;
    this.#onChange();
  }

  /** It went well this time. */
  noteRoom(probe: Probe | undefined): void {
    if (this.#full === undefined || this.#full.probe !== probe) return;
    this.cancel();
    this.#onChange();
  }

  /** Tries at once. */
  hurry(): void {
    if (this.#full !== undefined) this.#full.due = true;
  }

  cancel(): void {
    this.#full?.timer?.cancel();
    this.#full = undefined;
  }
}
