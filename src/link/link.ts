/**
 * The link between two processes: channels that live on from one connection to the next. Either side may open them.
 *
 * Invariants
 * - At most one connection carries channels. The one before is closed, and has given back everything it held, before the
 *   hello of the next is sent or answered: what a hello says of a channel stays true.
 * - The first destination that is let in is the only one, until the link is closed. Of its connections the latest counts.
 * - A cut changes nothing for the users of channels. When either process is another one than before (its epoch tells),
 *   every channel that the peer may know of is reset.
 */
import type { ByteStream } from "../env/links.ts";
import { StateTable } from "../stream/state-table.ts";
import { BufferPool } from "../util/buffer-pool.ts";
import type { Channel } from "./channel.ts";
import { ChannelTable } from "./channel-table.ts";
import { LINK_VERSION, RESET_BUSY, RESET_LINK_CLOSED } from "./constants.ts";
import { LinkError, LinkProtocolError } from "./errors.ts";
import type { Reset } from "./frame.ts";
import { formatId, type Hello, ID_BYTES, NO_ID } from "./hello.ts";
import { endsTheLink, refusalOf } from "./hello-check.ts";
import { type ChannelKind, DEFAULT_LINK_LIMITS, type LinkLimits } from "./limits.ts";
import type { LinkOptions, LinkStatus } from "./link-options.ts";
import { LINK_EDGES, type LinkState } from "./link-states.ts";
import { SendOrder } from "./send-order.ts";
import { Session } from "./session.ts";

export class Link implements AsyncDisposable {
  readonly #options: LinkOptions;
  readonly #limits: LinkLimits;
  readonly #state: StateTable<LinkState>;
  readonly #epoch: string;
  readonly #table: ChannelTable;
  readonly #order: SendOrder;
  /** Sessions whose stream is not closed, in the order of their arrival. */
  readonly #sessions = new Set<Session>();
  /** What `attach` waits for, on the side that dialled. */
  readonly #attempts = new WeakMap<Session, PromiseWithResolvers<void>>();
  /** The session that carries channels. */
  #current: Session | undefined;
  /** The last one that did. */
  #previous: Session | undefined;
  /** The one that is to be next; others give way to it. */
  #claimant: Session | undefined;
  #linkId: string;
  #peerId: string;
  #peerEpoch = NO_ID;
  /** Counts our connections, or, on the side that was dialled, is the peer's count. */
  #attempt = 0;
  #connections = 0;
  #lastError: Error | undefined;
  readonly #waiters = new Set<() => void>();
  readonly #finalListeners = new Set<() => void>();

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LINK_LIMITS, ...options.limits };
    const { clock, random, chaos } = options.env;
    this.#state = new StateTable<LinkState>(LINK_EDGES, "connecting", clock.nowMs());
    const epoch = new Uint8Array(ID_BYTES);
    random.fill(epoch);
    this.#epoch = formatId(epoch);
    this.#linkId = options.linkId ?? NO_ID;
    this.#peerId = options.peerId ?? NO_ID;
    if (options.role === "listening" && this.#linkId === NO_ID) throw new Error("the listening side names the link");
    this.#order = new SendOrder({
      priorityInverted: chaos.on("link/priority-inverted"),
      backgroundStarves: chaos.on("link/background-starves"),
    });
    this.#table = new ChannelTable({
      parity: options.role === "dialling" ? 1 : 0,
      limits: this.#limits,
      receivedAsConsumed: chaos.on("link/received-as-consumed"),
      wake: (channel) => this.#current?.wake(channel),
      channel: {
        pool: new BufferPool(),
        chaos: {
          creditCountedTwice: chaos.on("link/credit-counted-twice"),
          replayFromWrongOffset: chaos.on("link/replay-from-wrong-offset"),
          replayFromCredit: chaos.on("link/replay-from-credit"),
          closeBeforeData: chaos.on("link/close-before-data"),
          pausedReaderIsCredited: chaos.on("link/paused-reader-is-credited"),
        },
      },
    });
  }

  get state(): LinkState {
    return this.#state.current;
  }

  status(): LinkStatus {
    const known = (id: string): string | undefined => (id === NO_ID ? undefined : id);
    return {
      state: this.state,
      forMs: this.#options.env.clock.nowMs() - this.#state.sinceMs,
      connections: this.#connections,
      linkId: known(this.#linkId),
      peerId: known(this.#peerId),
      rttMs: this.#current?.liveness.rttMs,
      rttMinMs: this.#current?.liveness.rttMinMs,
      sentBytes: this.#current?.sentBytes ?? 0,
      receivedBytes: this.#current?.receivedBytes ?? 0,
      channels: this.#table.channels.length,
      memoryBytes: this.#table.memoryBytes,
      lastError: this.#lastError?.message,
    };
  }

  /** Why it was refused, or lost last. */
  get lastError(): Error | undefined {
    return this.#lastError;
  }

  /** Opens a channel; also while there is no connection. Throws `LinkError("closed" | "refused" | "limit")`. */
  open(kind: ChannelKind, label: string): Channel {
    this.#checkOpen();
    return this.#table.open(kind, label);
  }

  /**
   * Takes over an upgraded connection; `rest` are bytes that arrived behind the upgrade. On the side that dialled resolves
   * once the link is connected, on the other one at once. Rejects with `LinkError` or `LinkProtocolError`; whatever
   * happens, the stream is the link's.
   */
  async attach(stream: ByteStream, rest: Uint8Array = new Uint8Array(0)): Promise<void> {
    const session = this.#newSession(stream);
    if (this.#options.role === "listening") {
      this.#welcome(session, rest);
      return;
    }
    const connected = Promise.withResolvers<void>();
    this.#attempts.set(session, connected);
    if (await this.#claim(session)) {
      session.sendHello(this.#hello(++this.#attempt, false));
      session.start(rest);
    } else this.#drop(session, new LinkError("busy", "the link was closed, or another connection came in between"));
    await connected.promise;
  }

  /** Resolves when the link is not connected, or not any more. */
  async whenDown(): Promise<void> {
    while (this.state === "connected") {
      await new Promise<void>((resolve) => {
        this.#waiters.add(resolve);
      });
    }
  }

  /** `listener` is called once the link is closed or refused. Returns the way to unsubscribe. */
  onFinal(listener: () => void): () => void {
    this.#finalListeners.add(listener);
    return () => void this.#finalListeners.delete(listener);
  }

  /** The link is not wanted any more, by us: the peer turned out to be something else. */
  refuse(error: LinkError): void {
    if (!this.#state.final) this.#end("refused", error);
  }

  /** Resets every channel, says goodbye, and waits (for a moment at most) for the connection's end. Idempotent. */
  async close(): Promise<void> {
    if (!this.#state.final) this.#end("closed", new LinkError("closed", "the link was closed"));
    await Promise.all([...this.#sessions].map((session) => session.gone));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #checkOpen(): void {
    const state = this.#state.current;
    if (state !== "closed" && state !== "refused") return;
    throw new LinkError(state, `the link is ${state}: ${this.#lastError?.message ?? ""}`, { cause: this.#lastError });
  }

  #newSession(stream: ByteStream): Session {
    const { env, onChannel } = this.#options;
    const listening = this.#options.role === "listening";
    const session: Session = new Session(stream, {
      clock: env.clock,
      limits: this.#limits,
      table: this.#table,
      order: this.#order,
      losesWakeUps: env.chaos.on("link/lost-wake-up"),
      hooks: {
        onHello: (hello) => {
          if (!listening) this.#answered(session, hello);
          // Nobody waits for it: whatever it throws ends this session, and nothing else.
          else void this.#greet(session, hello).catch((error: unknown) => this.#drop(session, asError(error)));
        },
        onChannel,
        onRefused: (reset) => this.#refusedBy(session, reset),
        onGoodbye: () => this.#end("closed", new LinkError("closed", "the peer closed the link")),
        onLost: (error) => this.#drop(session, error),
      },
    });
    this.#sessions.add(session);
    void session.gone.then(() => this.#sessions.delete(session));
    return session;
  }

  /** A connection comes in. It says first who it is. */
  #welcome(session: Session, rest: Uint8Array): void {
    const greeting = [...this.#sessions].filter(({ state }) => state === "hello");
    if (greeting.length > this.#limits.hellosMax) {
      this.#drop(greeting[0] as Session, new LinkError("busy", "too many connections that do not say who they are"));
    }
    session.start(rest);
    if (this.#state.final) session.leave({ serial: 0, code: RESET_LINK_CLOSED, text: "the link was closed" });
  }

  /** On the side that was dialled: the peer has said who it is. */
  async #greet(session: Session, hello: Hello): Promise<void> {
    if (this.#turnAway(session, hello) || !(await this.#claim(session)) || this.#turnAway(session, hello)) {
      session.leave({ serial: 0, code: RESET_BUSY, text: "another connection came in between" });
      return;
    }
    const known = hello.epoch === this.#peerEpoch;
    const same = known && (hello.peerEpoch === this.#epoch || hello.peerEpoch === NO_ID);
    const resumed = (same || this.#mistakesRestarts) && this.#resumes(hello);
    if (!resumed) this.#table.resetAll(new LinkError("restarted", "the peer's process is another one now"), true);
    this.#attempt = hello.attempt;
    session.sendHello(this.#hello(hello.attempt, resumed));
    this.#run(session, hello);
  }

  /** On the side that dialled: the peer has let us in. What is thrown ends the session. */
  #answered(session: Session, hello: Hello): void {
    const refusal = this.#refusal(hello);
    if (refusal !== undefined) {
      session.leave(refusal);
      this.#end("refused", new LinkError("refused", refusal.text));
      return;
    }
    if (hello.attempt !== this.#attempt) throw new LinkProtocolError("the peer answers another hello");
    const changed = this.#peerEpoch !== NO_ID && this.#peerEpoch !== hello.epoch;
    if (hello.resumed && changed && !this.#mistakesRestarts) {
      throw new LinkProtocolError("a new process pretends to go on with the channels of the old one");
    }
    if (!hello.resumed && !this.#mistakesRestarts) {
      this.#table.resetAll(new LinkError("restarted", "the peer does not go on with our channels"), true);
    } else if (!this.#resumes(hello)) {
      this.#peerEpoch = NO_ID;
      throw new LinkProtocolError("the sides do not agree on their channels; all of them are reset");
    }
    this.#run(session, hello);
  }

  /** False, with every channel reset, when what the sides know does not go together. */
  #resumes(hello: Hello): boolean {
    try {
      this.#table.resume(hello);
      return true;
    } catch (error) {
      if (!(error instanceof LinkProtocolError)) throw error;
      this.#options.log.warn("channels cannot be resumed", { why: error.message });
      this.#table.resetAll(new LinkError("reset", error.message), true);
      return false;
    }
  }

  #run(session: Session, hello: Hello): void {
    this.#linkId = hello.linkId === NO_ID ? this.#linkId : hello.linkId;
    this.#peerId = hello.senderId;
    this.#peerEpoch = hello.epoch;
    this.#connections += 1;
    this.#current = session;
    this.#previous = session;
    session.run();
    this.#attempts.get(session)?.resolve();
    this.#options.log.info("the link is connected", { peer: session.peer });
    this.#advance("connected");
  }

  #hello(attempt: number, resumed: boolean): Hello {
    return {
      ...this.#options.identity(),
      version: LINK_VERSION,
      resumed,
      linkId: this.#linkId,
      senderId: this.#options.ownId,
      epoch: this.#epoch,
      peerEpoch: this.#peerEpoch,
      attempt,
      lastSerial: this.#table.peerSerial,
      entries: this.#table.takeEntries(),
    };
  }

  #refusal(hello: Hello): Reset | undefined {
    const listening = this.#options.role === "listening";
    const lastAttempt = listening && hello.epoch === this.#peerEpoch ? this.#attempt : undefined;
    const expected = { linkId: this.#linkId, peerId: this.#peerId, lastAttempt, mayLearn: listening };
    return refusalOf(hello, expected, this.#options.judge);
  }

  /** True when the peer was told that it has no business here. */
  #turnAway(session: Session, hello: Hello): boolean {
    const refusal = this.#refusal(hello);
    if (refusal === undefined) return false;
    this.#options.log.warn("refusing a connection", { peer: session.peer, why: refusal.text });
    session.leave(refusal);
    return true;
  }

  /** Ends whatever carried channels before. False when `session` has become superfluous meanwhile. */
  async #claim(session: Session): Promise<boolean> {
    this.#claimant = session;
    const dialling = this.#options.role === "dialling";
    for (const other of [...this.#sessions]) {
      if (other === session || other.state === "over" || (other.state === "hello" && !dialling)) continue;
      this.#drop(other, new LinkError("lost", "a newer connection has taken over"));
    }
    await this.#previous?.gone;
    return this.#claimant === session && session.state !== "over" && !this.#state.final;
  }

  #refusedBy(session: Session, reset: Reset): void {
    const why = `the peer refuses the link: ${reset.text === "" ? `code ${reset.code}` : reset.text}`;
    // The side that was dialled goes on waiting: for a peer that has nothing against it.
    if (!endsTheLink(reset.code) || this.#options.role === "listening") this.#drop(session, new LinkError("busy", why));
    else if (reset.code === RESET_LINK_CLOSED) this.#end("closed", new LinkError("closed", why));
    else this.#end("refused", new LinkError("refused", why));
  }

  /** `session` is over, whoever wanted it so. */
  #drop(session: Session, error: Error): void {
    session.drop(error);
    this.#attempts.get(session)?.reject(error);
    if (!this.#state.final) this.#lastError = error;
    if (session !== this.#current) return;
    this.#current = undefined;
    this.#order.clear();
    this.#options.log.warn("the link is disconnected", { why: error.message });
    this.#advance("disconnected");
  }

  #end(state: "closed" | "refused", error: LinkError): void {
    if (this.#state.final) return;
    this.#lastError = error;
    const current = this.#current;
    this.#current = undefined;
    this.#order.clear();
    this.#table.resetAll(error, false);
    this.#advance(state);
    current?.leave("goodbye");
    for (const session of [...this.#sessions]) this.#drop(session, error);
  }

  #advance(state: LinkState): void {
    this.#state.advance(state, this.#options.env.clock.nowMs());
    for (const waiter of this.#waiters) waiter();
    this.#waiters.clear();
    this.#options.onState?.(state);
    if (this.#state.final) for (const listener of [...this.#finalListeners]) listener();
  }

  get #mistakesRestarts(): boolean {
    return this.#options.env.chaos.on("link/restart-unnoticed");
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
