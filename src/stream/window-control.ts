/**
 * How many bytes may be asked for and not yet here, so that the path is full and its queue short: a model of the path in
 * the spirit of BBR and FAST, for requests whose answers are long. Pure: it is told what was sent and what has come.
 *
 * Of a full path, round trip × rate = window, so the bytes that wait at its narrowest place are window − rate × round trip
 * without a queue, wherever that place is; it may be the source's own socket. Each **round** is a while in which the window
 * stays the same. The shortest of its round trips (`standing`) tells how long the queue was all the time: hiccups of the
 * path or of a busy host make round trips longer, and are not taken for a queue. The window is scaled towards
 *
 *     window × (minRtt + target) / standing
 *
 * so that the queue takes `TARGET`. Phases: `start` doubles each round, until that brings no more. `steady` scales.
 * `probe` lowers the window, for a round, below what fills the path: its queue drains, and `minRtt` is seen as it is. A
 * probe that finds much less than was known has not drained all of the queue, and one that finds much more may have met a
 * hiccup: another one follows.
 *
 * A window that nobody waits for says nothing about the path: it stays.
 */
import { fitUnit, UNIT_BYTES_START } from "./fetch-unit.ts";
import { MaxRate, MinRtt, newRound, type Round } from "./path-model.ts";

/** How long the background may keep a demand read waiting in the queue: this part of a round trip, within these. */
const TARGET = { leastMs: 4, mostMs: 7, part: 0.12 };
/** Where a unit takes longer than that, two of them must fit nevertheless. */
const TARGET_UNITS = 0.75;
export const WINDOW_BYTES_MAX = 64 * 1024 * 1024;
const START_UNITS = 4;
const PROBE_EVERY_MS = 1000;
/** Of what the path holds by itself. */
const PROBE_PART = 0.75;
/** A probe that finds less, or more, of what was known than these parts is followed by another one. */
const PROBE_SURPRISE = { lower: 0.9, higher: 1.25 };
const PROBES_MAX = 8;
/** A probe of more round trips, and this besides, has drained a long queue: the path has become slower. */
const DRAIN = { rtts: 3, ms: 32 };
/** Of what came while it drained, which may not have filled the path to the end. */
const DRAIN_PART = 1.25;
/** Shorter rounds would take hiccups for the path. */
const ROUND_MS = { start: 2, steady: 25, probe: 8 };
const ROUND_SAMPLES = { start: 4, steady: 6, probe: 5 };
/** A round without enough samples ends after so many of its shortest lengths. */
const ROUND_LENGTHS_MAX = 3;
/** `start` ends with a queue, or when so many doublings have brought less than this. */
const GROWTH_MIN = 1.25;
const FLAT_ROUNDS_MAX = 3;
const CHANGE = { least: 0.8, most: 1.25, gain: 0.5 };
/** A queue is long when the window is to become less than this part; then it does at once, but not less than that. */
const LONG_QUEUE = 0.5;
const LEAST_AT_ONCE = 0.25;
/** So many rounds without any queue, and the window grows as fast as it may; so many, and it is doubled as at the start. */
const IDLE_ROUNDS = { grow: 1, start: 4 };
const UNUSED_ROOM = 2;
/** A cut to this part or less was in vain when the round trip is still longer than this part of what it was. */
const VAIN_CUT = 0.75;
const VAIN_PART = 0.9;
/** Of what was delivered lately in such a round trip, that the window does not fall below unless the queue is long. */
const FLOOR_PART = 0.9;
/** What was sent with less under way does not tell what the window makes of the path. */
const FULL_PART = 0.8;
/** Of what was under way at most in a round, that may be in the next one without waiting for answers. */
const PEAK_PART = 1.25;
/** Of what has come, by which more may be under way: a window lowered by a probe is full again after a round trip. */
const FILL_PART = { start: 1, steady: 0.4, probe: 0.4 };

/** One request under way. */
export interface Sent {
  readonly sentMs: number;
  readonly bytes: number;
  /** The window was used. */
  readonly full: boolean;
  readonly round: number;
}

interface Probe {
  /** Probes before this one, in the same search for the end of the queue. */
  readonly count: number;
  readonly knownMs: number;
  readonly lowestMs: number;
  /** What the path delivered before; undefined: the window was not used. */
  readonly bytesPerMs: number | undefined;
  readonly windowBytes: number;
}

type Phase = "start" | "steady" | "probe";

export interface WindowStatus {
  readonly windowBytes: number;
  readonly unitBytes: number;
  /** Absent: unknown. */
  readonly rttMs?: number;
  readonly minRttMs?: number;
  readonly bytesPerSecond: number;
}

export class WindowControl {
  readonly #minRtt = new MinRtt();
  readonly #rate = new MaxRate();
  #fixedBytes: number | undefined;
  #windowBytes = START_UNITS * UNIT_BYTES_START;
  /** A window that has grown is filled as answers come, so that it does not make a queue all at once. */
  #ceilingBytes = this.#windowBytes;
  #unitBytes = UNIT_BYTES_START;
  #phase: Phase = "start";
  #rounds = 0;
  #round: Round;
  #inFlightBytes = 0;
  /** The most that was under way in this round. */
  #peakBytes = 0;
  #rttMs: number | undefined;
  /** When the last probe ended. */
  #probedMs: number;
  #probe: Probe = { count: 0, knownMs: Infinity, lowestMs: Infinity, bytesPerMs: undefined, windowBytes: 0 };
  #idleRounds = 0;
  #full = { bytesPerMs: 0, flatRounds: 0 };
  /** Since when the window has only been cut. */
  #cut: { readonly windowBytes: number; readonly standingMs: number } | undefined;

  constructor(nowMs: number) {
    this.#probedMs = nowMs;
    this.#round = newRound(nowMs);
  }

  get windowBytes(): number {
    return this.#fixedBytes ?? this.#windowBytes;
  }

  /** How long a request should be. */
  get unitBytes(): number {
    return this.#unitBytes;
  }

  get inFlightBytes(): number {
    return this.#inFlightBytes;
  }

  /** Whether so many bytes may be asked for now. `part`: of the window, for whoever has to leave room. */
  admits(bytes: number, part = 1): boolean {
    if (this.#inFlightBytes === 0) return true;
    const ceiling = this.#fixedBytes ?? Math.min(this.#windowBytes, this.#ceilingBytes);
    return this.#inFlightBytes + bytes / 2 <= ceiling * part;
  }

  /** Milliseconds; undefined: unknown. */
  get minRttMs(): number | undefined {
    return Number.isFinite(this.#minRtt.ms) ? this.#minRtt.ms : undefined;
  }

  /** Bytes per millisecond; 0: unknown. */
  get bytesPerMs(): number {
    return this.#rate.bytesPerMs;
  }

  /** What the path holds without a queue. */
  get pathBytes(): number {
    return this.bytesPerMs * (this.minRttMs ?? 0);
  }

  status(): WindowStatus {
    const { windowBytes, unitBytes, minRttMs } = this;
    return {
      ...{ windowBytes, unitBytes, bytesPerSecond: Math.round(this.bytesPerMs * 1000) },
      ...(this.#rttMs === undefined ? {} : { rttMs: this.#rttMs }),
      ...(minRttMs === undefined ? {} : { minRttMs }),
    };
  }

  /** A window that stays as it is; undefined: it follows the path. */
  fix(bytes: number | undefined): void {
    this.#fixedBytes = bytes;
  }

  /** The path may be another one, or was interrupted: begins anew. What is under way says nothing any more. */
  restart(nowMs: number): void {
    this.#minRtt.restart();
    this.#rate.restart();
    this.#windowBytes = START_UNITS * UNIT_BYTES_START;
    this.#ceilingBytes = this.#windowBytes;
    this.#unitBytes = UNIT_BYTES_START;
    this.#rttMs = undefined;
    this.#full = { bytesPerMs: 0, flatRounds: 0 };
    this.#cut = undefined;
    this.#idleRounds = 0;
    this.#begin("start", nowMs);
  }

  /** `waited`: it, or one behind it, had to wait for the window. */
  sent(nowMs: number, bytes: number, waited: boolean): Sent {
    this.#inFlightBytes += bytes;
    this.#peakBytes = Math.max(this.#peakBytes, this.#inFlightBytes);
    const full =
      waited && (this.#phase !== "steady" || this.#inFlightBytes + bytes / 2 >= FULL_PART * this.#windowBytes);
    return { sentMs: nowMs, bytes, full, round: this.#rounds };
  }

  /** It will not be answered, or its answer says nothing about the path. */
  forget(sent: Sent): void {
    this.#inFlightBytes -= sent.bytes;
  }

  received(nowMs: number, sent: Sent): void {
    this.#inFlightBytes -= sent.bytes;
    this.#round.bytes += sent.bytes;
    const filled = this.#ceilingBytes + sent.bytes * FILL_PART[this.#phase];
    this.#ceilingBytes = Math.min(this.#windowBytes, filled);
    // A short answer takes less time at the bottleneck: it says little about what a unit takes.
    if (sent.bytes >= this.#unitBytes / 2) {
      // No round trip takes less than no time, whatever a clock says.
      const rttMs = Math.max(0, nowMs - sent.sentMs);
      this.#rttMs = this.#rttMs === undefined ? rttMs : this.#rttMs + (rttMs - this.#rttMs) / 8;
      this.#minRtt.add(rttMs);
      if (sent.round === this.#rounds) this.#addSample(rttMs, sent.full || this.#phase === "probe");
    }
    if (this.#isOver(nowMs)) this.#endRound(nowMs);
  }

  #addSample(rttMs: number, full: boolean): void {
    const round = this.#round;
    round.shortestOfAllMs = Math.min(round.shortestOfAllMs, rttMs);
    if (!full) return;
    round.samples += 1;
    round.shortestMs = Math.min(round.shortestMs, rttMs);
  }

  get #targetMs(): number {
    const rate = this.#rate.bytesPerMs;
    const { leastMs, mostMs, part } = TARGET;
    const pathMs = Math.min(mostMs, Math.max(leastMs, part * this.#minRtt.ms));
    return rate === 0 ? pathMs : Math.max(pathMs, (TARGET_UNITS * this.#unitBytes) / rate);
  }

  #isOver(nowMs: number): boolean {
    const { samples, startMs } = this.#round;
    if (this.#rttMs === undefined) return false;
    const elapsedMs = nowMs - startMs;
    const leastMs = ROUND_MS[this.#phase];
    if (samples >= ROUND_SAMPLES[this.#phase]) return elapsedMs >= Math.max(leastMs, this.#minRtt.ms);
    return elapsedMs >= ROUND_LENGTHS_MAX * Math.max(leastMs, this.#rttMs);
  }

  #endRound(nowMs: number): void {
    const { bytes, startMs, samples, shortestMs } = this.#round;
    if (this.#phase !== "probe") this.#rate.add(nowMs, bytes / (nowMs - startMs));
    if (samples === 0) this.#endUnusedRound(nowMs);
    else if (this.#phase === "probe") this.#endProbe(nowMs, shortestMs);
    else if (this.#phase === "start") this.#endStartRound(nowMs, shortestMs);
    else this.#endSteadyRound(nowMs, shortestMs);
  }

  /** The window was not used, which says nothing about it; how long the round trip is has to be looked at all the same. */
  #endUnusedRound(nowMs: number): void {
    const wanted = (this.#minRtt.ms + this.#targetMs) / this.#round.shortestOfAllMs;
    // Not even what was under way fits: that much less would.
    if (wanted < LONG_QUEUE) {
      this.#resize(Math.min(this.#windowBytes, this.#peakBytes * Math.max(LEAST_AT_ONCE, wanted)));
    }
    const due = this.#phase === "steady" && nowMs - this.#probedMs >= PROBE_EVERY_MS;
    if (due) this.#beginProbe(nowMs, undefined);
    else this.#begin(this.#phase, nowMs);
  }

  #endStartRound(nowMs: number, standingMs: number): void {
    this.#fitUnit();
    const rate = this.#rate.bytesPerMs;
    const grown = rate >= this.#full.bytesPerMs * GROWTH_MIN;
    const queued = standingMs > this.#minRtt.ms + 2 * this.#targetMs;
    this.#full = grown ? { bytesPerMs: rate, flatRounds: 0 } : { ...this.#full, flatRounds: this.#full.flatRounds + 1 };
    if (queued || this.#full.flatRounds >= FLAT_ROUNDS_MAX || this.#windowBytes === WINDOW_BYTES_MAX) {
      // How long the queue is by now nobody knows; what the path delivers is known.
      this.#resize(rate * (this.#minRtt.ms + this.#targetMs));
      this.#beginProbe(nowMs, this.#minRtt.ms + this.#targetMs);
      return;
    }
    this.#resize(this.#windowBytes * 2);
    this.#begin("start", nowMs);
  }

  #endSteadyRound(nowMs: number, standingMs: number): void {
    this.#fitUnit();
    if (nowMs - this.#probedMs >= PROBE_EVERY_MS || this.#wasCutInVain(standingMs)) {
      this.#beginProbe(nowMs, standingMs);
      return;
    }
    const before = this.#windowBytes;
    const noQueue = standingMs < this.#minRtt.ms + this.#targetMs / 4;
    this.#idleRounds = noQueue ? this.#idleRounds + 1 : 0;
    if (this.#idleRounds > IDLE_ROUNDS.start) {
      this.#restartGrowth(nowMs);
      return;
    }
    const wanted = (this.#minRtt.ms + this.#targetMs) / standingMs;
    const factor = this.#idleRounds > IDLE_ROUNDS.grow ? CHANGE.most : 1 + CHANGE.gain * (wanted - 1);
    if (wanted < LONG_QUEUE) this.#resize(before * Math.max(LEAST_AT_ONCE, wanted));
    else {
      const floor = Math.min(before, FLOOR_PART * this.#rate.bytesPerMs * standingMs);
      this.#resize(Math.max(floor, before * limited(factor)));
    }
    const longer = this.#cut !== undefined && standingMs > this.#cut.standingMs / VAIN_PART;
    if (this.#windowBytes >= before) this.#cut = undefined;
    else if (this.#cut === undefined || longer) this.#cut = { windowBytes: before, standingMs };
    this.#begin("steady", nowMs);
  }

  #restartGrowth(nowMs: number): void {
    this.#idleRounds = 0;
    this.#cut = undefined;
    this.#full = { bytesPerMs: 0, flatRounds: 0 };
    this.#resize(this.#windowBytes * 2);
    this.#begin("start", nowMs);
  }

  /** Much less is under way than when the cuts began, and it takes as long: that would be no queue of ours. */
  #wasCutInVain(standingMs: number): boolean {
    if (this.#cut === undefined || this.#windowBytes > VAIN_CUT * this.#cut.windowBytes) return false;
    const ratio = standingMs / this.#cut.standingMs;
    return ratio > VAIN_PART && ratio < 1 / VAIN_PART;
  }

  /** `standingMs` undefined: the window is not used, and stays. */
  #beginProbe(nowMs: number, standingMs: number | undefined): void {
    const windowBytes = this.#windowBytes;
    const knownMs = this.#minRtt.ms;
    const bytesPerMs = standingMs === undefined ? undefined : this.#windowBytes / standingMs;
    this.#probe = { count: 0, knownMs, lowestMs: Infinity, bytesPerMs, windowBytes };
    if (standingMs === undefined) this.#resize(Math.min(windowBytes, this.#peakBytes * PROBE_PART));
    else this.#resize(windowBytes * PROBE_PART * Math.min(1, knownMs / standingMs));
    this.#begin("probe", nowMs);
  }

  #endProbe(nowMs: number, drainedMs: number): void {
    const { count, knownMs, lowestMs } = this.#probe;
    const lower = drainedMs < PROBE_SURPRISE.lower * Math.min(knownMs, lowestMs);
    const higher = count === 0 && drainedMs > PROBE_SURPRISE.higher * knownMs;
    this.#probe = { ...this.#probe, count: count + 1, lowestMs: Math.min(lowestMs, drainedMs) };
    if ((lower || higher) && count < PROBES_MAX) {
      if (lower) this.#resize(this.#windowBytes / 2);
      this.#begin("probe", nowMs);
      return;
    }
    const vain = this.#cut !== undefined && this.#wasCutInVain(this.#probe.lowestMs);
    if (vain || (lowestMs < Infinity && this.#probe.lowestMs > PROBE_SURPRISE.higher * knownMs)) {
      this.#minRtt.restart(this.#probe.lowestMs);
    } else this.#minRtt.turn();
    this.#probedMs = nowMs;
    this.#cut = undefined;
    const { windowBytes } = this.#probe;
    const bytesPerMs = this.#rateAfterProbe(nowMs);
    if (bytesPerMs === undefined) {
      // Twice what is used is enough to notice when more is wanted.
      const used = UNUSED_ROOM * this.#rate.bytesPerMs * (this.#minRtt.ms + this.#targetMs);
      this.#resize(Math.min(windowBytes, used));
      this.#begin("steady", nowMs);
      return;
    }
    const wanted = Math.max(bytesPerMs * (this.#minRtt.ms + this.#targetMs), FLOOR_PART * this.pathBytes);
    this.#resize(Math.min(windowBytes * CHANGE.most, wanted));
    this.#begin("steady", nowMs);
  }

  /** What the path delivered before the probe, unless that took so long to drain that it cannot deliver as much any more. */
  #rateAfterProbe(nowMs: number): number | undefined {
    const { bytes, startMs } = this.#round;
    const known = this.#probe.bytesPerMs;
    if (nowMs - startMs <= DRAIN.rtts * this.#minRtt.ms + DRAIN.ms) return known;
    const drained = bytes / (nowMs - startMs);
    this.#rate.restart();
    this.#rate.add(nowMs, drained);
    return known && Math.min(known, DRAIN_PART * drained);
  }

  #resize(bytes: number): void {
    this.#windowBytes = Math.min(WINDOW_BYTES_MAX, Math.max(this.#unitBytes, bytes));
    this.#ceilingBytes = Math.min(this.#ceilingBytes, this.#windowBytes);
  }

  #fitUnit(): void {
    const { bytesPerMs } = this.#rate;
    const mayShrink = this.#phase === "steady";
    this.#unitBytes = fitUnit(this.#unitBytes, { bytesPerMs, windowBytes: this.windowBytes, mayShrink });
  }

  #begin(phase: Phase, nowMs: number): void {
    // What was not used for a round is not used all at once.
    const usual = Math.max(this.#peakBytes * PEAK_PART, START_UNITS * this.#unitBytes);
    this.#ceilingBytes = Math.min(this.#ceilingBytes, usual);
    this.#peakBytes = this.#inFlightBytes;
    this.#phase = phase;
    this.#rounds += 1;
    this.#round = newRound(nowMs);
  }
}

function limited(factor: number): number {
  return Math.min(CHANGE.most, Math.max(CHANGE.least, factor));
}
