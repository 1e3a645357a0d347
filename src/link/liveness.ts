/**
 * Tells a dead peer from a slow one, and measures the round trip. A PING is out nearly all the time, so that silence in
 * either direction shows: its answer, or a CREDIT (which answers data of ours), is progress; other bytes are not, because
 * they come through a line that is open in their direction only.
 *
 * Silence counts only while we run ourselves: a process that was stopped for a minute must not take its own absence for
 * the peer's.
 */
import type { Clock, Timer } from "../env/clock.ts";
import type { LinkLimits } from "./limits.ts";

const TICK_MS = 500;
/** The weight of a new round trip in the mean. */
const RTT_WEIGHT = 1 / 8;

export interface LivenessHooks {
  /** Send a PING soon. */
  pingDue(): void;
  dead(silentMs: number): void;
}

export class Liveness {
  readonly #clock: Clock;
  readonly #limits: Pick<LinkLimits, "pingEveryMs" | "silenceMsMax">;
  readonly #hooks: LivenessHooks;
  #timer: Timer | undefined;
  #tickedAtMs = 0;
  /** Own running time since the last answer, while a PING is due or out; before that, since the last PONG. */
  #waitedMs = 0;
  #pinging = false;
  #token = 0;
  #sentAtMs = 0;
  #rttMs: number | undefined;
  #rttMinMs: number | undefined;

  constructor(clock: Clock, limits: Pick<LinkLimits, "pingEveryMs" | "silenceMsMax">, hooks: LivenessHooks) {
    this.#clock = clock;
    this.#limits = limits;
    this.#hooks = hooks;
  }

  /** Mean of late; undefined until the first answer. */
  get rttMs(): number | undefined {
    return this.#rttMs;
  }

  get rttMinMs(): number | undefined {
    return this.#rttMinMs;
  }

  /** Begins with a PING at once. */
  start(): void {
    this.#tickedAtMs = this.#clock.nowMs();
    this.#ping();
    this.#schedule();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  /** The PING goes out now; returns what it carries. */
  takePing(): Uint8Array {
    this.#token += 1;
    this.#sentAtMs = this.#clock.nowMs();
    return this.#encoded();
  }

  /** The peer has taken data of ours. */
  progress(): void {
    if (this.#pinging) this.#waitedMs = 0;
  }

  onPong(token: Uint8Array): void {
    const ours = this.#encoded();
    if (!this.#pinging || token.some((byte, index) => byte !== ours[index])) return;
    const took = this.#clock.nowMs() - this.#sentAtMs;
    this.#rttMs = this.#rttMs === undefined ? took : this.#rttMs + (took - this.#rttMs) * RTT_WEIGHT;
    this.#rttMinMs = Math.min(this.#rttMinMs ?? took, took);
    this.#pinging = false;
    this.#waitedMs = 0;
  }

  #ping(): void {
    this.#pinging = true;
    this.#waitedMs = 0;
    this.#hooks.pingDue();
  }

  #schedule(): void {
    this.#timer = this.#clock.setTimer(TICK_MS, () => this.#tick());
  }

  #tick(): void {
    const nowMs = this.#clock.nowMs();
    this.#waitedMs += Math.min(nowMs - this.#tickedAtMs, 2 * TICK_MS);
    this.#tickedAtMs = nowMs;
    this.#schedule();
    if (this.#pinging && this.#waitedMs >= this.#limits.silenceMsMax) this.#hooks.dead(this.#waitedMs);
    else if (!this.#pinging && this.#waitedMs >= this.#limits.pingEveryMs) this.#ping();
  }

  #encoded(): Uint8Array {
    const token = new Uint8Array(8);
    new DataView(token.buffer).setUint32(4, this.#token);
    return token;
  }
}
