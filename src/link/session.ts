/**
 * One connection of a link, from its first frame to its end: who speaks (`hello.ts`), then frames both ways.
 *
 *   hello → greeted → running → over                           (any state → over)
 *
 * Invariants
 * - The stream is always read: what a channel's reader does not take is kept by that channel, within its window.
 * - No more than `sendAheadBytes`, one run of frames and the control frames that are due wait in the stream, so that what
 *   is urgent does not wait behind what is not. What is due is kept as flags, not as frames: a peer that asks much and
 *   reads nothing costs nothing.
 * - Once it is over, not one further byte is taken.
 */
import type { Clock, Timer } from "../env/clock.ts";
import type { ByteSink, ByteStream } from "../env/links.ts";
import { StateTable } from "../stream/state-table.ts";
import type { Channel } from "./channel.ts";
import type { ChannelTable } from "./channel-table.ts";
import {
  FRAME_CLOSE,
  FRAME_CREDIT,
  FRAME_HELLO,
  FRAME_OPEN,
  FRAME_PING,
  FRAME_PONG,
  FRAME_RESET,
  LINK_CHANNEL,
  RESET_ANSWER,
} from "./constants.ts";
import { LinkError, LinkProtocolError } from "./errors.ts";
import {
  decodeClose,
  decodeCredit,
  decodeOpen,
  decodeReset,
  encodeClose,
  encodePing,
  encodeReset,
  type FrameHeader,
  PING_BYTES,
  type Reset,
} from "./frame.ts";
import { type FrameHandler, FrameReader } from "./frame-reader.ts";
import { decodeHello, encodeHello, type Hello } from "./hello.ts";
import { DATA_BYTES_MAX, type LinkLimits } from "./limits.ts";
import { Liveness } from "./liveness.ts";
import type { SendOrder } from "./send-order.ts";

export type SessionState = "hello" | "greeted" | "running" | "over";

const EDGES: Readonly<Record<SessionState, readonly SessionState[]>> = {
  hello: ["greeted", "over"],
  greeted: ["running", "over"],
  running: ["over"],
  over: [],
};

export interface SessionHooks {
  onHello(hello: Hello): void;
  /** The peer has opened a channel. */
  onChannel(channel: Channel): void;
  /** The peer says that there will be no link, or not now. */
  onRefused(reset: Reset): void;
  /** The peer has closed the link. */
  onGoodbye(): void;
  /** Called once, unless the session was ended from here. */
  onLost(error: Error): void;
}

export interface SessionParts {
  readonly clock: Clock;
  readonly limits: LinkLimits;
  readonly table: ChannelTable;
  readonly order: SendOrder;
  readonly hooks: SessionHooks;
  /** A mutant. */
  readonly losesWakeUps: boolean;
}

export class Session implements ByteSink, FrameHandler {
  readonly #parts: SessionParts;
  readonly #stream: ByteStream;
  readonly #reader = new FrameReader(this);
  readonly #state: StateTable<SessionState>;
  readonly liveness: Liveness;
  /** Channels that may have other frames than DATA to send. */
  readonly #due = new Set<Channel>();
  #pingDue = false;
  #pong: Uint8Array | undefined;
  #started = false;
  #reading = false;
  #pumping = false;
  #deadline: Timer | undefined;
  readonly #gone = Promise.withResolvers<void>();
  sentBytes = 0;
  receivedBytes = 0;

  constructor(stream: ByteStream, parts: SessionParts) {
    this.#stream = stream;
    this.#parts = parts;
    this.#state = new StateTable<SessionState>(EDGES, "hello", parts.clock.nowMs());
    this.liveness = new Liveness(parts.clock, parts.limits, {
      pingDue: () => {
        this.#pingDue = true;
        this.pump();
      },
      dead: (ms) => this.#lose(new LinkError("silent", `the peer has not answered for ${Math.round(ms)} ms`)),
    });
  }

  get state(): SessionState {
    return this.#state.current;
  }

  get peer(): string {
    return this.#stream.peer;
  }

  /** Resolves when the stream is closed and holds nothing of ours any more. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  /** Begins to read. `rest` are bytes that arrived behind the upgrade. */
  start(rest: Uint8Array): void {
    const { clock, limits } = this.#parts;
    this.#deadline = clock.setTimer(limits.helloTimeoutMs, () => {
      this.#lose(new LinkError("silent", `no hello within ${limits.helloTimeoutMs} ms`));
    });
    this.#started = true;
    this.#stream.keepShort?.(limits.sendAheadBytes);
    this.#stream.attach(this);
    if (rest.length > 0) this.onBytes(rest);
  }

  sendHello(hello: Hello): void {
    this.#write(encodeHello(hello));
  }

  /** Hellos are exchanged and agreed on: channels may go on. */
  run(): void {
    this.#deadline?.cancel();
    this.#advance("running");
    for (const channel of this.#parts.table.channels) {
      // Hellos may have told what was missing to its end.
      this.#parts.table.forgetIfFinished(channel);
      if (channel.controlDue) this.#due.add(channel);
      this.#parts.order.wake(channel);
    }
    this.liveness.start();
    this.pump();
  }

  /** `channel`, or without one the table, may have something to send. */
  wake(channel: Channel | undefined): void {
    if (this.state !== "running") return;
    if (channel !== undefined) {
      if (channel.controlDue) this.#due.add(channel);
      this.#parts.order.wake(channel);
    }
    this.pump();
  }

  /** Sends what there is to send, as far as the stream takes it. */
  pump(): void {
    if (this.#pumping || this.#reading || this.state !== "running") return;
    this.#pumping = true;
    const { limits, order } = this.#parts;
    while (this.state === "running" && this.#stream.pendingBytes < limits.sendAheadBytes) {
      if (this.#sendControl()) continue;
      const channel = order.next();
      if (channel === undefined) break;
      this.#sendData(channel);
    }
    this.#pumping = false;
  }

  /** Tells the peer why there is no link (`goodbye`: that it is closed), then ends. */
  leave(last: Reset | "goodbye"): void {
    if (this.state === "over") return;
    this.#write(last === "goodbye" ? encodeClose(LINK_CHANNEL, 0) : encodeReset(LINK_CHANNEL, last));
    this.#finish();
    this.#stream.end();
    this.#deadline = this.#parts.clock.setTimer(this.#parts.limits.closeMsMax, () => this.#stream.destroy());
  }

  /** Ends at once, without a word. Idempotent. */
  drop(error?: Error): void {
    if (this.state === "over") return;
    this.#finish();
    // One that was never started has to be told of its end, too.
    if (!this.#started) this.#stream.attach(this);
    this.#stream.destroy(error);
  }

  onBytes(bytes: Uint8Array): void {
    if (this.state === "over") return;
    this.receivedBytes += bytes.length;
    this.#reading = true;
    try {
      this.#reader.push(bytes);
    } catch (error) {
      this.#lose(error instanceof Error ? error : new Error(String(error)));
    }
    this.#reading = false;
    this.pump();
  }

  onEnd(): void {
    this.#lose(new LinkError("lost", "the peer closed the connection"));
  }

  onClose(error?: Error): void {
    this.#deadline?.cancel();
    const why = error === undefined ? "the connection was closed" : `the connection broke: ${error.message}`;
    this.#lose(new LinkError("lost", why, { cause: error }));
    // Streams give back what they hold right after this call.
    queueMicrotask(() => this.#gone.resolve());
  }

  onDrain(): void {
    this.pump();
  }

  onData(id: number, bytes: Uint8Array): void {
    const channel = this.#openChannel(id);
    if (channel !== undefined) channel.onData(bytes);
  }

  onFrame(header: Readonly<FrameHeader>, payload: Uint8Array): void {
    const { type, channel: id } = header;
    if (id === LINK_CHANNEL && (type === FRAME_HELLO || type === FRAME_RESET)) this.#onGreeting(type, payload);
    else if (this.state !== "running") throw new LinkProtocolError(`a frame of type ${type} came before the hello`);
    else if (id === LINK_CHANNEL) this.#onLinkFrame(type, payload);
    else this.#onChannelFrame(header, payload);
  }

  #onGreeting(type: number, payload: Uint8Array): void {
    if (type === FRAME_RESET) {
      this.#parts.hooks.onRefused(decodeReset(payload));
      return;
    }
    const hello = decodeHello(payload);
    if (this.state !== "hello") throw new LinkProtocolError("a second HELLO came");
    this.#advance("greeted");
    this.#parts.hooks.onHello(hello);
  }

  #onLinkFrame(type: number, payload: Uint8Array): void {
    if (type === FRAME_PING) this.#pong = payload.slice(0, PING_BYTES);
    else if (type === FRAME_PONG) this.liveness.onPong(payload);
    else this.#parts.hooks.onGoodbye();
  }

  #onChannelFrame({ type, channel: id, flags }: Readonly<FrameHeader>, payload: Uint8Array): void {
    const { table } = this.#parts;
    if (type === FRAME_OPEN) {
      const opened = table.accept(id, decodeOpen(payload));
      if (opened !== undefined) this.#parts.hooks.onChannel(opened);
      return;
    }
    if (type === FRAME_RESET) {
      table.onReset(id, decodeReset(payload), (flags & RESET_ANSWER) !== 0);
      return;
    }
    const channel = this.#openChannel(id);
    if (channel === undefined) return;
    if (type === FRAME_CLOSE) channel.onEnd(decodeClose(payload));
    else if (type === FRAME_CREDIT) {
      channel.onCredit(decodeCredit(payload));
      this.liveness.progress();
      if (!this.#parts.losesWakeUps) this.wake(channel);
    }
    table.forgetIfFinished(channel);
  }

  /** Undefined: it was reset from here, and what still comes is of no interest. */
  #openChannel(id: number): Channel | undefined {
    if (this.state !== "running") throw new LinkProtocolError("data came before the hello");
    const channel = this.#parts.table.get(id);
    if (channel === undefined && !this.#parts.table.isLeaving(id)) {
      throw new LinkProtocolError(`a frame came on channel ${id}, which is not open`);
    }
    return channel;
  }

  /** Sends all frames but DATA that are due, in one write. False: there are none. */
  #sendControl(): boolean {
    const frames: Uint8Array[] = [];
    if (this.#pong !== undefined) frames.push(encodePing(FRAME_PONG, this.#pong));
    if (this.#pingDue) frames.push(encodePing(FRAME_PING, this.liveness.takePing()));
    this.#pong = undefined;
    this.#pingDue = false;
    frames.push(...this.#parts.table.takeControl());
    const due = [...this.#due];
    this.#due.clear();
    for (const channel of due) {
      if (channel.controlDue) frames.push(...channel.takeControl());
      this.#parts.order.wake(channel);
    }
    if (frames.length === 0) return false;
    this.#write(frames.length === 1 ? (frames[0] as Uint8Array) : Buffer.concat(frames));
    for (const channel of due) this.#parts.table.forgetIfFinished(channel);
    return true;
  }

  #sendData(channel: Channel): void {
    const run = channel.takeData(DATA_BYTES_MAX);
    if (run === undefined) throw new Error("a channel that was next has nothing to send");
    this.#parts.order.charge(channel, run.dataBytes);
    if (channel.controlDue) this.#due.add(channel);
    if (run.header !== undefined) this.#write(run.header);
    this.#write(run.bytes, run.release);
  }

  #write(bytes: Uint8Array, release?: () => void): void {
    this.sentBytes += bytes.length;
    this.#stream.write(bytes, release);
  }

  #lose(error: Error): void {
    if (this.state === "over") return;
    this.drop(error);
    this.#parts.hooks.onLost(error);
  }

  #advance(next: SessionState): void {
    this.#state.advance(next, this.#parts.clock.nowMs());
  }

  #finish(): void {
    this.#advance("over");
    this.#deadline?.cancel();
    this.liveness.stop();
    this.#due.clear();
    this.#reader.stop();
  }
}
