/**
 * A line with one bottleneck that all sessions with a source share, in virtual time: a request travels for half the round
 * trip, its answer waits behind those of every session, passes at the rate, and travels for the other half. Somebody
 * else's data may be in its queue too.
 */
import { BlockError } from "../../src/block/error.ts";
import { MemoryDevice } from "../../src/block/memory.ts";
import { ConnectionLostError } from "../../src/nbd/client/errors.ts";
import type { SourceSession } from "../../src/stream/source-session.ts";
import type { Scheduler } from "./scheduler.ts";

export interface LineShape {
  readonly rttMs: number;
  readonly bytesPerMs: number;
}

export class SharedLine {
  shape: LineShape;
  readonly sizeBytes: number;
  readonly #scheduler: Scheduler;
  readonly #sessions = new Set<LineSession>();
  #freeMs = 0;
  deliveredBytes = 0;

  constructor(scheduler: Scheduler, shape: LineShape, sizeBytes: number) {
    this.#scheduler = scheduler;
    this.shape = shape;
    this.sizeBytes = sizeBytes;
  }

  get scheduler(): Scheduler {
    return this.#scheduler;
  }

  /** How long a byte that reaches the bottleneck now would wait. */
  get queueMs(): number {
    return Math.max(0, this.#freeMs - this.#scheduler.nowMs);
  }

  /** What others send takes the bottleneck for so long. */
  occupy(ms: number): void {
    this.#freeMs = Math.max(this.#freeMs, this.#scheduler.nowMs) + ms;
  }

  dial(): LineSession {
    const session = new LineSession(this);
    this.#sessions.add(session);
    return session;
  }

  /** Every session is lost. */
  cut(): void {
    for (const session of [...this.#sessions]) session.drop("the line was cut");
    this.#sessions.clear();
  }

  /** When an answer of so many bytes to what is asked now would be there, in milliseconds from now; calls back then. */
  answer(bytes: number, notBeforeMs: number, done: (atMs: number) => void): void {
    const { rttMs } = this.shape;
    this.#scheduler.after(rttMs / 2, "asked", () => {
      this.#freeMs = Math.max(this.#freeMs, this.#scheduler.nowMs) + bytes / this.shape.bytesPerMs;
      const atMs = Math.max(notBeforeMs, this.#freeMs + this.shape.rttMs / 2);
      this.#scheduler.after(atMs - this.#scheduler.nowMs, "answered", () => {
        this.deliveredBytes += bytes;
        done(atMs);
      });
    });
  }
}

/** Zeroes of any length, over the line. */
export class LineSession extends MemoryDevice implements SourceSession {
  readonly #line: SharedLine;
  readonly #listeners = new Set<(error: Error) => void>();
  readonly #cut = Promise.withResolvers<never>();
  #lastMs = 0;
  #lost: ConnectionLostError | undefined;

  constructor(line: SharedLine) {
    super({ sizeBytes: line.sizeBytes });
    this.#line = line;
    this.#cut.promise.catch(() => undefined);
  }

  override async read(_offset: number, into: Uint8Array): Promise<void> {
    if (this.#lost !== undefined) throw this.#lost;
    const answered = new Promise<void>((resolve) => {
      this.#line.answer(into.length, this.#lastMs, (atMs) => {
        // Answers of one session do not overtake each other.
        this.#lastMs = Math.max(this.#lastMs, atMs);
        resolve();
      });
    });
    await Promise.race([answered, this.#cut.promise]);
  }

  override async close(): Promise<void> {
    this.#cut.reject(new BlockError("shutting-down", "the session was closed"));
  }

  onLost(listener: (error: Error) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  drop(why: string): void {
    if (this.#lost !== undefined) return;
    this.#lost = new ConnectionLostError(why, undefined);
    this.#cut.reject(this.#lost);
    for (const listener of [...this.#listeners]) listener(this.#lost);
  }
}
