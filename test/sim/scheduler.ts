/**
 * Virtual time: a heap of (time, seeded tie-break), and nothing else that could decide an order.
 *
 * Between two events every promise reaction runs that can run. A drain is a microtask that asks for a `nextTick`: Node
 * runs one only when no microtask is left. It costs no turn of the event loop and no wall-clock time, so that a history
 * depends on its seed alone. The code under test must therefore use promises and `Env` only: work that waits for a real
 * thread or timer is not waited for.
 *
 * Everything that happens is mixed into `traceHash`: one seed, run twice, must give the same.
 */
import type { Clock, Timer } from "../../src/env/clock.ts";
import type { Prng } from "../support/seed.ts";

/** A history that needs more events than this is going round in circles. */
const EVENTS_MAX = 2_000_000;
const FNV_PRIME = 0x01000193;

/** Nothing is left to happen, or too much time has passed, and what was waited for has not come. */
export class SimHangError extends Error {
  override readonly name = "SimHangError";
}

interface SimEvent {
  readonly atMs: number;
  readonly tie: number;
  readonly sequence: number;
  readonly label: string;
  readonly fire: () => void;
  cancelled: boolean;
}

export class Scheduler {
  nowMs = 0;
  /** Fewer for histories that are known to need fewer: what goes round in circles is noticed earlier. */
  eventsMax = EVENTS_MAX;
  readonly #rng: Prng;
  readonly #heap: SimEvent[] = [];
  readonly #labels = new Map<string, number>();
  #sequence = 0;
  #fired = 0;
  #hashLow = 0x811c9dc5;
  #hashHigh = 0x01234567;
  #keepLog = false;
  /** What was traced, as text; only after `keepLog`. */
  readonly log: string[] = [];

  constructor(rng: Prng) {
    this.#rng = rng;
  }

  get eventsFired(): number {
    return this.#fired;
  }

  get traceHash(): string {
    return (this.#hashHigh >>> 0).toString(16).padStart(8, "0") + (this.#hashLow >>> 0).toString(16).padStart(8, "0");
  }

  /** Keeps the trace as text too: for whoever repeats one seed. */
  keepLog(): void {
    this.#keepLog = true;
  }

  trace(label: string, a = 0, b = 0): void {
    if (this.#keepLog) this.log.push(`${this.nowMs.toFixed(3)} ${label} ${a} ${b}`);
    this.#mix(this.#labelHash(label));
    this.#mix(a);
    this.#mix(b);
  }

  /** Calls `fire` in `delayMs`. Events of one instant come in an order that the seed decides. */
  after(delayMs: number, label: string, fire: () => void): Timer {
    const atMs = this.nowMs + Math.max(0, delayMs);
    const event = { atMs, tie: this.#rng.u32(), sequence: this.#sequence++, label, fire, cancelled: false };
    this.#push(event);
    return {
      cancel: () => {
        event.cancelled = true;
      },
    };
  }

  /** Runs until `work` settles, and settles likewise. `SimHangError` when it does not within `limitMs` of virtual time. */
  async complete<T>(work: Promise<T>, limitMs = 600_000): Promise<T> {
    let settled = false;
    const done = (): void => {
      settled = true;
    };
    work.then(done, done);
    const endMs = this.nowMs + limitMs;
    await drain();
    while (!settled) {
      if (!(this.#nextMs() <= endMs)) {
        const why = this.#heap.length === 0 ? "nothing is left to happen" : `${limitMs} ms have passed`;
        throw new SimHangError(`a promise has not settled, and ${why}`);
      }
      await this.#step();
    }
    return await work;
  }

  /** Runs everything that happens within `durationMs`; afterwards so much time has passed. */
  async runFor(durationMs: number): Promise<void> {
    const endMs = this.nowMs + durationMs;
    await drain();
    while (this.#nextMs() <= endMs) await this.#step();
    this.nowMs = endMs;
  }

  /** Runs until nothing is left to happen. `SimHangError` when that takes more than `limitMs` of virtual time. */
  async idle(limitMs = 600_000): Promise<void> {
    const endMs = this.nowMs + limitMs;
    await drain();
    while (this.#nextMs() < Infinity) {
      if (this.#nextMs() > endMs) throw new SimHangError(`still busy after ${limitMs} ms: ${this.#heap[0]?.label}`);
      await this.#step();
    }
  }

  async #step(): Promise<void> {
    const event = this.#pop();
    if (event === undefined) return;
    if (++this.#fired > this.eventsMax) throw new SimHangError(`more than ${this.eventsMax} events`);
    this.nowMs = event.atMs;
    this.trace(event.label, event.sequence);
    event.fire();
    await drain();
  }

  /** When the next event is due, having dropped cancelled ones; `Infinity` when there is none. */
  #nextMs(): number {
    while (this.#heap[0]?.cancelled) this.#pop();
    return this.#heap[0]?.atMs ?? Infinity;
  }

  #push(event: SimEvent): void {
    const heap = this.#heap;
    let at = heap.length;
    while (at > 0) {
      const above = (at - 1) >> 1;
      const parent = heap[above] as SimEvent;
      if (!isBefore(event, parent)) break;
      heap[at] = parent;
      at = above;
    }
    heap[at] = event;
  }

  #pop(): SimEvent | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1] as SimEvent, heap[child] as SimEvent)) child++;
      if (!isBefore(heap[child] as SimEvent, last)) break;
      heap[at] = heap[child] as SimEvent;
      at = child;
    }
    heap[at] = last;
    return first;
  }

  #labelHash(label: string): number {
    const known = this.#labels.get(label);
    if (known !== undefined) return known;
    let hash = 0x811c9dc5;
    for (let i = 0; i < label.length; i++) hash = Math.imul(hash ^ label.charCodeAt(i), FNV_PRIME);
    this.#labels.set(label, hash);
    return hash;
  }

  #mix(word: number): void {
    this.#hashLow = Math.imul(this.#hashLow ^ word, FNV_PRIME);
    this.#hashHigh = Math.imul(this.#hashHigh ^ (word + this.#hashLow), 0x5bd1e995) ^ (this.#hashHigh >>> 13);
  }
}

/** The clock of one process: what it has set goes with it. */
export class SimClock implements Clock {
  readonly #scheduler: Scheduler;
  readonly #timers = new Set<Timer>();
  /** Each process begins to count somewhere else, so that nobody compares times across a restart. */
  readonly #originMs: number;
  #stopped = false;

  constructor(scheduler: Scheduler, originMs: number) {
    this.#scheduler = scheduler;
    this.#originMs = originMs;
  }

  /** Timers that would still fire. */
  get timers(): number {
    return this.#timers.size;
  }

  nowMs(): number {
    return this.#originMs + this.#scheduler.nowMs;
  }

  wallMs(): number {
    return 1_700_000_000_000 + Math.floor(this.#scheduler.nowMs);
  }

  setTimer(delayMs: number, fire: () => void): Timer {
    // A process that dies in the midst of a turn comes to the end of that turn here.
    if (this.#stopped) return { cancel: () => undefined };
    const event = this.#scheduler.after(delayMs, "timer", () => {
      this.#timers.delete(timer);
      fire();
    });
    const timer = {
      cancel: () => {
        event.cancel();
        this.#timers.delete(timer);
      },
    };
    this.#timers.add(timer);
    return timer;
  }

  /** The process is gone. */
  stop(): void {
    this.#stopped = true;
    for (const timer of [...this.#timers]) timer.cancel();
  }
}

/** Runs every promise reaction that can run. */
function drain(): Promise<void> {
  return new Promise((resolve) => queueMicrotask(() => process.nextTick(resolve)));
}

function isBefore(a: SimEvent, b: SimEvent): boolean {
  if (a.atMs !== b.atMs) return a.atMs < b.atMs;
  if (a.tie !== b.tie) return a.tie < b.tie;
  return a.sequence < b.sequence;
}
