/**
 * Who may send a background request next. Requests of two lanes wait here for room in the window: read-ahead goes before
 * hydration, which keeps a part nevertheless; hydration gives way when demand reads are late.
 *
 * Invariants
 * - Whoever waits, waits only while something is under way: its end lets the next one go. So nothing here needs a timer,
 *   and no demand read, window or rate can stop the background for good.
 * - What waits has not been sent, so a smaller window holds at once for all of it.
 */
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import { UNIT_BYTES_MAX } from "./fetch-unit.ts";
import type { Pace } from "./hydration-parts.ts";
import { NO_PRESSURE, type Pressure } from "./pressure.ts";
import { type Sent, WindowControl, type WindowStatus } from "./window-control.ts";

export type Lane = "read-ahead" | "hydration";

/** Of the bytes of read-ahead, that hydration may send as well although read-ahead waits. */
const HYDRATION_PART = 1 / 8;
/** As much as its longest request. */
const OWED_BYTES_MAX = UNIT_BYTES_MAX;
/** Of the window, that hydration keeps while demand reads are late. */
const SHARE_MIN = 0.1;
const SHARE_CUT = 0.7;
/**
 * The first cut takes so much off what is under way at the most, which the usual queue makes up for: more would leave a
 * hole in a long path, which goes round with the answers and is taken for a path that is not full.
 */
const FIRST_CUT_MS = 7;
const SHARE_GROWTH = 1.5;
/** The share changes once in a round trip, but not more often than this. */
const SHARE_MS_MIN = 1;

interface Waiting {
  readonly offset: number;
  readonly bytes: number;
  readonly admit: (sent: Sent) => void;
}

/** What hydration may have fetched and not stored, besides the window: so much of it, but within these. */
const STORING_BYTES = { min: 512 * 1024, max: 8 * 1024 * 1024 };

export class SendWindow implements Pace {
  readonly control: WindowControl;
  readonly #clock: Clock;
  readonly #chaos: Chaos;
  readonly #pressure: Pressure;
  /** As many as whoever fetches has fetches under way: they bound it. */
  readonly #ahead: Waiting[] = [];
  readonly #hydration: Waiting[] = [];
  /** Bytes that hydration may send before further read-ahead. */
  #owedBytes = 0;
  #share = 1;
  #sharedMs = -Infinity;
  #closed = false;

  constructor(clock: Clock, chaos: Chaos, pressure: Pressure = NO_PRESSURE) {
    this.control = new WindowControl(clock.nowMs());
    this.#clock = clock;
    this.#chaos = chaos;
    this.#pressure = pressure;
  }

  get unitBytes(): number {
    return this.control.unitBytes;
  }

  /** A disk that is slower than the path makes no larger window: it only fills what may wait to be stored. */
  get bytesMax(): number {
    const { windowBytes } = this.control;
    const storing = Math.min(STORING_BYTES.max, Math.max(STORING_BYTES.min, windowBytes));
    return windowBytes + Math.max(storing, 2 * this.unitBytes);
  }

  get bytesAsked(): number {
    return this.control.inFlightBytes;
  }

  status(): WindowStatus {
    return this.control.status();
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#ahead.length + this.#hydration.length;
  }

  /** What hydration may use of the window; below 1 while demand reads are late. */
  get share(): number {
    return this.#share;
  }

  /** Resolves when the request may be sent, which then has to be done at once. `received` or `forget` ends it. */
  enter(lane: Lane, offset: number, bytes: number): Promise<Sent> {
    return new Promise((admit) => {
      const queue = lane === "read-ahead" ? this.#ahead : this.#hydration;
      queue.push({ offset, bytes, admit });
      this.#admit();
    });
  }

  received(sent: Sent): void {
    this.control.received(this.#clock.nowMs(), sent);
    if (!this.#chaos.on("stream/window-wake-up-lost")) this.#admit();
  }

  /** It ended in a way that says nothing about the path. */
  forget(sent: Sent): void {
    this.control.forget(sent);
    this.#admit();
  }

  /** Somebody waits for these bytes: read-ahead of them is sent now, window or not. */
  hurry(offset: number, length: number): void {
    for (let at = 0; at < this.#ahead.length; ) {
      const waiting = this.#ahead[at];
      if (waiting === undefined) return;
      if (waiting.offset < offset + length && offset < waiting.offset + waiting.bytes) {
        this.#ahead.splice(at, 1);
        this.#send(waiting, false);
      } else at += 1;
    }
  }

  /** The path may be another one. */
  restart(): void {
    this.control.restart(this.#clock.nowMs());
    this.#share = 1;
    this.#admit();
  }

  /** A fixed window in bytes; undefined: it follows the path. */
  fix(bytes: number | undefined): void {
    this.control.fix(bytes);
    this.#admit();
  }

  /** Nobody waits any more: what is sent from now on is refused elsewhere. */
  close(): void {
    this.#closed = true;
    this.#admit();
  }

  #admit(): void {
    for (let waited = false; ; waited = true) {
      const queue = this.#nextQueue();
      const first = queue[0];
      if (first === undefined || !this.#mayGo(queue, first)) return;
      queue.shift();
      if (queue === this.#ahead)
        this.#owedBytes = Math.min(OWED_BYTES_MAX, this.#owedBytes + first.bytes * HYDRATION_PART);
      else this.#owedBytes = Math.max(0, this.#owedBytes - first.bytes);
      this.#send(first, waited || queue.length > 0);
    }
  }

  #nextQueue(): Waiting[] {
    if (this.#chaos.on("stream/hydration-before-read-ahead")) {
      return this.#hydration.length > 0 ? this.#hydration : this.#ahead;
    }
    const first = this.#hydration[0];
    const owed = first !== undefined && this.#owedBytes >= first.bytes;
    return this.#ahead.length > 0 && !owed ? this.#ahead : this.#hydration;
  }

  #mayGo(queue: readonly Waiting[], { bytes }: Waiting): boolean {
    if (this.#closed || this.#chaos.on("stream/window-unbounded")) return true;
    if (queue === this.#ahead || this.#ahead.length > 0) return this.control.admits(bytes);
    return this.control.admits(bytes, this.#shareNow());
  }

  #send({ bytes, admit }: Waiting, waited: boolean): void {
    admit(this.control.sent(this.#clock.nowMs(), bytes, waited));
  }

  #cutPart(): number {
    if (this.#share < 1) return SHARE_CUT;
    const { bytesPerMs, windowBytes } = this.control;
    return Math.max(SHARE_CUT, 1 - (FIRST_CUT_MS * bytesPerMs) / windowBytes);
  }

  /** Cut at once when a demand read is late, and again after each round trip; it grows when none is any more. */
  #shareNow(): number {
    if (this.#chaos.on("stream/pressure-ignored")) return 1;
    const nowMs = this.#clock.nowMs();
    const late = this.#pressure.isLate(nowMs);
    if (!late && this.#share === 1) return 1;
    const everyMs = Math.max(SHARE_MS_MIN, this.control.minRttMs ?? 0);
    if (nowMs - this.#sharedMs < everyMs) return this.#share;
    this.#share = late ? Math.max(SHARE_MIN, this.#share * this.#cutPart()) : Math.min(1, this.#share * SHARE_GROWTH);
    this.#sharedMs = nowMs;
    return this.#share;
  }
}
