/**
 * Wakes the line up at a time, to a fraction of a millisecond. Node's timers are whole milliseconds, so the last stretch
 * is slept on a thread of libuv's pool (`usleep`, through koffi), which burns no processor and blocks nothing. Without
 * native calls Node's timers do, up to 1.2 ms late.
 */
import { performance } from "node:perf_hooks";
import { loadNative, type NativeFunction } from "../../src/os/native.ts";

/** Node's timers for anything farther away than this; they are up to 1.2 ms late. */
const NAP_MS_MAX = 3;
const TIMER_LATE_MS = 2;
const NAP_MS_MIN = 0.05;
/** How late a nap ends is learned, within these: a busy machine must not make us spin. */
const NAP_LATE_MS_MIN = 0.02;
const NAP_LATE_MS_MAX = 0.3;
const LEARN = 0.05;
/** The last moment before the time is spun away. */
const SPIN_MS_MAX = 0.06;
// <sys/prctl.h>: threads made later inherit it. The usual slack is 50 µs.
const PR_SET_TIMERSLACK = 29;
const TIMER_SLACK_NS = 1000;

export class Wake {
  readonly #fire: () => void;
  readonly #usleep: NativeFunction | undefined;
  #atMs = Number.POSITIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;
  #napLateMs = NAP_LATE_MS_MIN;
  #napUntilMs = Number.POSITIVE_INFINITY;

  constructor(fire: () => void) {
    this.#fire = fire;
    const loaded = loadNative();
    if (loaded.state === "loaded") {
      loaded.native.bind("prctl", "int", ["int", "uintptr_t"])?.(PR_SET_TIMERSLACK, TIMER_SLACK_NS);
    }
    this.#usleep = loaded.state === "loaded" ? loaded.native.bind("usleep", "int", ["uint32_t"]) : undefined;
  }

  /** Whether it can do better than milliseconds. */
  get fine(): boolean {
    return this.#usleep !== undefined;
  }

  /** What waking up costs at present: little while the machine is busy with us, a fifth of a millisecond from idleness. */
  get costMs(): number {
    return this.#napLateMs;
  }

  /** Calls `fire` at `atMs` (`performance.now()`), instead of when it was last asked to. Infinity: not at all. */
  at(atMs: number): void {
    this.#atMs = atMs;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    // A nap cannot be cut short, but it ends with a look at what is wanted then.
    if (this.#napUntilMs <= atMs + NAP_MS_MIN) return;
    if (atMs !== Number.POSITIVE_INFINITY) this.#wait();
  }

  #wait(): void {
    const restMs = this.#atMs - performance.now();
    if (this.#usleep === undefined) {
      this.#timer = setTimeout(this.#look, Math.ceil(restMs));
    } else if (restMs > NAP_MS_MAX) {
      this.#timer = setTimeout(this.#look, Math.floor(restMs - TIMER_LATE_MS));
    } else {
      this.#nap(this.#usleep, restMs);
    }
  }

  #nap(usleep: NativeFunction, restMs: number): void {
    const untilMs = this.#atMs;
    this.#napUntilMs = untilMs;
    const napMs = Math.max(NAP_MS_MIN, restMs - this.#napLateMs);
    const endMs = performance.now() + napMs;
    usleep.async(Math.round(napMs * 1000), () => {
      this.#learn(performance.now() - endMs);
      // A later nap has taken over, or a timer has.
      if (this.#napUntilMs !== untilMs) return;
      this.#napUntilMs = Number.POSITIVE_INFINITY;
      if (this.#timer === undefined) this.#look();
    });
  }

  #learn(lateMs: number): void {
    const learned = this.#napLateMs + (lateMs - this.#napLateMs) * LEARN;
    this.#napLateMs = Math.min(NAP_LATE_MS_MAX, Math.max(NAP_LATE_MS_MIN, learned));
  }

  readonly #look = (): void => {
    this.#timer = undefined;
    if (this.#atMs === Number.POSITIVE_INFINITY) return;
    if (performance.now() < this.#atMs - SPIN_MS_MAX) {
      this.#wait();
      return;
    }
    while (performance.now() < this.#atMs);
    this.#atMs = Number.POSITIVE_INFINITY;
    this.#fire();
  };
}
