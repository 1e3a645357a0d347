/**
 * A source that may go away and come back, as one read-only block device. A read whose link was lost is asked again on the
 * next session, from its first byte: the caller sees one answer, late.
 *
 * Invariants
 * - Reads go to a session only after its size and identity were found to be those expected. Not one byte comes from
 *   another disk; what an impostor answers to the identity check goes no further than the check.
 * - A session is given up once, by `#give`, whoever notices first that it is lost; a late report changes nothing.
 * - What the source answers, an error too, is the answer (`SourceAnsweredError`): only a lost link is tried again.
 * - The number of reads that wait is the callers' to bound: a guest's by its server's limits, hydration's by its window.
 */
import type { BlockCapabilities, BlockDevice } from "../block/device.ts";
import { BlockError, checkRange } from "../block/error.ts";
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import type { Clock, Timer } from "../env/clock.ts";
import type { Random } from "../env/random.ts";
import { ConnectionLostError } from "../nbd/client/errors.ts";
import { InFlight } from "../util/in-flight.ts";
import { Change } from "./change.ts";
import { reasonOf, SourceAnsweredError, SourceLostError, SourceMismatchError } from "./errors.ts";
import { compareSources, identifySource } from "./source-identity.ts";
import { SOURCE_EDGES, type SourceSession, type SourceState, type SourceStatus } from "./source-session.ts";
import { StateTable } from "./state-table.ts";

export interface ReconnectingSourceOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly chaos: Chaos;
  /** Makes a new session, in bounded time. The session must notice by itself that its peer is dead. */
  readonly connect: (signal: AbortSignal) => Promise<SourceSession>;
  /** What every session must be. */
  readonly expected: { readonly sizeBytes: number; readonly identity: string };
  /** For who knows the source by other means: rejects a session instead of a look at its contents. */
  readonly verify?: (session: SourceSession) => Promise<void>;
  /** Reads of a lost source wait for ever, or fail once it has been away for `lossDeadlineMs`, until it is back. */
  readonly onLoss: "stall" | "eio";
  /** From the loss on, or from the start. Only for "eio". */
  readonly lossDeadlineMs?: number;
  readonly retryMs?: { readonly first: number; readonly max: number; readonly mismatch: number };
}

const RETRY_MS_DEFAULT = { first: 100, max: 5000, mismatch: 30_000 };
/** A session that answered nothing and did not live so long counts as a failed attempt. */
const USEFUL_LIFE_MS = 5000;
/** What is under way at `close` may take so long; the link is broken then. */
const CLOSE_MS_MAX = 2000;

const CAPABILITIES: BlockCapabilities = {
  ...{ readOnly: true, discard: false, fastZero: false, extents: true, rotational: false },
  blockSizes: { minimum: 1, preferred: 4096 },
};

export class ReconnectingSource implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities = CAPABILITIES;
  readonly #options: ReconnectingSourceOptions;
  readonly #retryMs: typeof RETRY_MS_DEFAULT;
  readonly #state: StateTable<SourceState>;
  readonly #inFlight = new InFlight();
  readonly #change = new Change();
  readonly #abort = new AbortController();
  readonly #listeners = new Set<(state: SourceState) => void>();
  readonly #running: Promise<void>;
  #session: SourceSession | undefined;
  #answered = false;
  #sessions = 0;
  #failedAttempts = 0;
  #bytesRead = 0;
  #waiting = 0;
  #lastError: string | undefined;
  #overdue = false;
  #deadline: Timer | undefined;
  #closing: Promise<void> | undefined;

  /** Begins to connect at once. */
  constructor(options: ReconnectingSourceOptions) {
    this.#options = options;
    this.sizeBytes = options.expected.sizeBytes;
    this.#retryMs = options.retryMs ?? RETRY_MS_DEFAULT;
    this.#state = new StateTable<SourceState>(SOURCE_EDGES, "connecting", options.clock.nowMs());
    this.#startDeadline();
    this.#running = this.#run();
  }

  get state(): SourceState {
    return this.#state.current;
  }

  status(): SourceStatus {
    return {
      state: this.#state.current,
      forMs: this.#options.clock.nowMs() - this.#state.sinceMs,
      reconnects: Math.max(0, this.#sessions - 1),
      failedAttempts: this.#failedAttempts,
      bytesRead: this.#bytesRead,
      waiting: this.#waiting,
      ...(this.#lastError === undefined ? {} : { lastError: this.#lastError }),
    };
  }

  /** `listener` is told of each new state, within the change: it must not throw. Returns the way to unsubscribe. */
  onState(listener: (state: SourceState) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  readNow(): number {
    return -1;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#asked(offset, into.length, (session) => session.read(offset, into));
    this.#bytesRead += into.length;
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    if (!(length >= 1 && countMax >= 1)) return Promise.reject(new BlockError("invalid", "no extents were asked for"));
    return this.#asked(offset, length, (session) => session.extents(offset, length, countMax));
  }

  async cache(offset: number, length: number): Promise<void> {
    this.#checkOpen();
    checkRange(offset, length, this.sizeBytes);
  }

  async flush(): Promise<void> {
    this.#checkOpen();
  }

  writeNow(): number {
    return -1;
  }

  write(offset: number, from: Uint8Array): Promise<void> {
    return this.#refuse(offset, from.length);
  }

  writeZeroes(offset: number, length: number): Promise<void> {
    return this.#refuse(offset, length);
  }

  discard(offset: number, length: number): Promise<void> {
    return this.#refuse(offset, length);
  }

  /** Reads that wait fail with "shutting-down"; those under way get a moment to finish. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    const session = this.#session;
    this.#advance("closed");
    this.#abort.abort(closedError());
    this.#change.notify();
    if (session !== undefined) {
      const timer = this.#options.clock.setTimer(CLOSE_MS_MAX, () => session.drop("the source is being closed"));
      await session.close().catch(() => undefined);
      timer.cancel();
    }
    await Promise.all([this.#inFlight.close(), this.#running]);
  }

  #checkOpen(): void {
    if (this.state === "closed") throw closedError();
  }

  async #refuse(offset: number, length: number): Promise<never> {
    this.#checkOpen();
    checkRange(offset, length, this.sizeBytes);
    throw new BlockError("read-only", "a source is only read");
  }

  /** Asks until there is an answer, on one session after the other. */
  async #asked<T>(offset: number, length: number, ask: (session: SourceSession) => Promise<T>): Promise<T> {
    if (!this.#inFlight.enter()) throw closedError();
    try {
      this.#checkOpen();
      checkRange(offset, length, this.sizeBytes);
      for (;;) {
        const session = this.#session ?? (await this.#nextSession());
        const given = await this.#askedOf(session, ask).catch((error: unknown) => {
          this.#judge(error, session, { offset, length });
        });
        if (given !== undefined) return given.answer;
        if (this.#options.chaos.on("stream/lost-read-is-done")) return undefined as T;
        if (this.#options.chaos.on("stream/lost-read-is-refused")) throw new SourceLostError("a mutant says so");
      }
    } finally {
      this.#inFlight.leave();
    }
  }

  async #askedOf<T>(session: SourceSession, ask: (session: SourceSession) => Promise<T>): Promise<{ answer: T }> {
    const answer = await ask(session);
    this.#answered = true;
    return { answer };
  }

  /** Returns when the question is to be asked again; throws what the asker is to be told. */
  #judge(error: unknown, session: SourceSession, { offset, length }: { offset: number; length: number }): void {
    if (!(error instanceof BlockError)) throw error;
    const lost = error instanceof ConnectionLostError || error.code === "shutting-down";
    if (lost && this.state === "closed") throw closedError();
    if (!lost) {
      this.#answered = true;
      throw new SourceAnsweredError(error, offset, length);
    }
    this.#give(session, error);
  }

  async #nextSession(): Promise<SourceSession> {
    this.#waiting += 1;
    try {
      for (;;) {
        this.#checkOpen();
        if (this.#session !== undefined) return this.#session;
        if (this.#overdue) throw new SourceLostError(this.#lastError ?? "it cannot be reached");
        await this.#change.next();
      }
    } finally {
      this.#waiting -= 1;
    }
  }

  /** Connects, again and again, until closed. */
  async #run(): Promise<void> {
    let failures = 0;
    while (!this.#abort.signal.aborted) {
      try {
        const session = await this.#attempt();
        const startMs = this.#options.clock.nowMs();
        await this.#serve(session);
        const useful = this.#answered || this.#options.clock.nowMs() - startMs >= USEFUL_LIFE_MS;
        failures = useful ? 0 : failures + 1;
      } catch (error) {
        if (this.#closing !== undefined) return;
        failures += 1;
        this.#failedAttempts += 1;
        this.#lastError = reasonOf(error);
        this.#advance(error instanceof SourceMismatchError ? "mismatch" : "disconnected");
      }
      if (failures > 0) await this.#pause(failures);
    }
  }

  /** A session that is what was expected. */
  async #attempt(): Promise<SourceSession> {
    const { connect } = this.#options;
    const { signal } = this.#abort;
    const session = await connect(signal);
    const onAbort = (): void => session.drop("the source is being closed");
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      signal.throwIfAborted();
      await this.#verify(session);
      signal.throwIfAborted();
      return session;
    } catch (error) {
      session.drop(reasonOf(error));
      throw error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  async #verify(session: SourceSession): Promise<void> {
    const { expected, chaos, verify } = this.#options;
    if (chaos.on("stream/answers-from-mismatched-source")) return;
    if (session.sizeBytes !== expected.sizeBytes) {
      throw new SourceMismatchError(`the source has ${session.sizeBytes} bytes, not ${expected.sizeBytes}`);
    }
    if (verify !== undefined) return await verify(session);
    const found = await identifySource(session);
    const comparison = compareSources(expected.identity, found);
    if (comparison === "other") {
      throw new SourceMismatchError(`another disk answers: its identity is ${found}, not ${expected.identity}`);
    }
    if (comparison === "unknown") throw new Error("the source cannot read any of the blocks that it is known by");
  }

  /** Hands `session` to whoever waits. Resolves when it has been given up. */
  async #serve(session: SourceSession): Promise<void> {
    // Closed in the turn in which the attempt succeeded: `#close` has not seen this session.
    if (this.#abort.signal.aborted) {
      session.drop("the source was closed");
      return;
    }
    const over = Promise.withResolvers<void>();
    this.#session = session;
    this.#answered = false;
    this.#sessions += 1;
    this.#failedAttempts = 0;
    this.#overdue = false;
    this.#deadline?.cancel();
    this.#advance("connected");
    const onGiven = this.onState(() => over.resolve());
    const onLost = session.onLost((error) => this.#give(session, error));
    if (!this.#options.chaos.on("stream/lost-wake-up")) this.#change.notify();
    await over.promise;
    onGiven();
    onLost();
  }

  #give(session: SourceSession, error: Error): void {
    if (this.#session !== session || this.state === "closed") return;
    this.#session = undefined;
    this.#lastError = reasonOf(error);
    session.drop("it is lost");
    this.#startDeadline();
    this.#advance("disconnected");
  }

  #startDeadline(): void {
    const { onLoss, lossDeadlineMs = 0, clock } = this.#options;
    if (onLoss === "stall") return;
    this.#deadline = clock.setTimer(lossDeadlineMs, () => {
      this.#overdue = true;
      this.#change.notify();
    });
  }

  /** Doubling from the first to the longest, less up to a half, so that many do not come at once. */
  #pause(failures: number): Promise<void> {
    const { first, max, mismatch } = this.#retryMs;
    const whole = this.state === "mismatch" ? mismatch : Math.min(max, first * 2 ** Math.min(failures - 1, 30));
    const { signal } = this.#abort;
    if (signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        timer.cancel();
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = this.#options.clock.setTimer(whole * (1 - this.#options.random.next() / 2), done);
      signal.addEventListener("abort", done, { once: true });
    });
  }

  #advance(next: SourceState): void {
    if (this.#state.current === next) return;
    this.#state.advance(next, this.#options.clock.nowMs());
    if (next === "closed") this.#deadline?.cancel();
    for (const listener of [...this.#listeners]) listener(next);
  }
}

function closedError(): BlockError {
  return new BlockError("shutting-down", "the source was closed");
}
