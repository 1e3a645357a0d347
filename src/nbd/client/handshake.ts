/**
 * One option haggling, seen from the client: greeting, options and their replies, the change to TLS, and the hand-over
 * of the stream to transmission. What to ask for is decided elsewhere (`negotiate.ts`, `list-exports.ts`).
 * proto.md, "Newstyle negotiation", "Fixed newstyle negotiation", "TLS support".
 *
 * Invariants
 * - One option is out at a time, and its final reply is awaited (the table in `states.ts`).
 * - Nothing is allocated for a reply before its length was checked; the number of replies is bounded.
 * - Plaintext that arrived behind the reply to STARTTLS is never used: it ends the session (CVE-2021-3716).
 */
import type { Clock } from "../../env/clock.ts";
import type { ByteSink, ByteStream } from "../../env/links.ts";
import type { TlsClient } from "../../env/tls.ts";
import {
  EXPORT_NAME_ZEROES,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  NBD_OLDSTYLE_MAGIC_HIGH,
  NBD_OLDSTYLE_MAGIC_LOW,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_STARTTLS,
  NBD_OPTS_MAGIC_HIGH,
  NBD_OPTS_MAGIC_LOW,
  NBD_REP_ACK,
  NBD_REP_FLAG_ERROR,
  OPTION_REPLY_BYTES,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { NbdConnectError } from "./errors.ts";
import { HandshakeReader } from "./handshake-reader.ts";
import { HANDSHAKE_EDGES, type HandshakeState, StateMachine } from "./states.ts";
import { decodeExplanation, decodeOptionReply, encodeOption, encodeString, readU64, viewOf } from "./wire.ts";

const NO_DATA = new Uint8Array(0);
const GREETING_BYTES = 16;
const FAREWELL_MS_MAX = 1000;

/** Replies other than the final one: how many may come, of which type, and who takes them. */
export interface IntermediateReplies {
  readonly type: number;
  readonly countMax: number;
  /** `data` is owned by the callee. May throw `NbdProtocolError`. */
  readonly take: (data: Uint8Array) => void;
}

export interface OptionRequest {
  readonly option: number;
  readonly data?: Uint8Array;
  readonly replies?: IntermediateReplies;
  /** Where an acknowledgement leads: further haggling, or for the options that end it, wherever they say. */
  readonly ackState?: "securing" | "awaiting-reply";
}

export type OptionOutcome =
  | { readonly kind: "ack" }
  /** `type` is one of `NBD_REP_ERR_…`, or unknown; `explanation` is the server's text, raw. */
  | { readonly kind: "error"; readonly type: number; readonly explanation: string };

export class HandshakeSession {
  readonly #state = new StateMachine<HandshakeState>(HANDSHAKE_EDGES, "greeting");
  readonly #clock: Clock;
  #stream: ByteStream;
  #reader: HandshakeReader;
  #fixed = false;
  #noZeroes = false;
  #secure = false;
  /** Why the session was destroyed. */
  #destroyedBy: Error | undefined;
  /** Rejects when the session is destroyed; TLS is raced against it. */
  readonly #destroyed = Promise.withResolvers<never>();

  constructor(stream: ByteStream, clock: Clock) {
    this.#stream = stream;
    this.#clock = clock;
    this.#reader = new HandshakeReader(stream);
    this.#destroyed.promise.catch(() => {});
  }

  /** The server understands more than EXPORT_NAME. */
  get fixed(): boolean {
    return this.#fixed;
  }

  /** TLS protects the session. */
  get secure(): boolean {
    return this.#secure;
  }

  get peer(): string {
    return this.#stream.peer;
  }

  /** Reads the server's greeting and answers it with our flags. */
  async greet(): Promise<void> {
    this.#stream.attach(this.#reader);
    const greeting = viewOf(await this.#read(GREETING_BYTES));
    checkMagic(greeting);
    const flags = viewOf(await this.#read(2)).getUint16(0);
    this.#fixed = (flags & NBD_FLAG_FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
    const ours = (this.#fixed ? NBD_FLAG_C_FIXED_NEWSTYLE : 0) | (this.#noZeroes ? NBD_FLAG_C_NO_ZEROES : 0);
    const answer = new Uint8Array(4);
    viewOf(answer).setUint32(0, ours);
    this.#state.advance("haggling");
    this.#stream.write(answer);
  }

  /** Sends one option and reads all of its replies. */
  async option(request: OptionRequest): Promise<OptionOutcome> {
    const { option, data = NO_DATA, replies } = request;
    this.#checkAlive();
    this.#state.advance("awaiting-reply");
    this.#stream.write(encodeOption(option, data));
    const countMax = replies?.countMax ?? 0;
    for (let count = 0; ; count++) {
      const { type, length } = decodeOptionReply(await this.#read(OPTION_REPLY_BYTES), option);
      const payload = length === 0 ? NO_DATA : await this.#read(length);
      if (type >= NBD_REP_FLAG_ERROR) {
        this.#state.advance("haggling");
        return { kind: "error", type, explanation: decodeExplanation(payload) };
      }
      if (type === NBD_REP_ACK) {
        if (length > 0) throw new NbdProtocolError(`an acknowledgement of option ${option} carries data`);
        if (request.ackState !== "awaiting-reply") this.#state.advance(request.ackState ?? "haggling");
        return { kind: "ack" };
      }
      if (type !== replies?.type) throw new NbdProtocolError(`reply type ${type} does not belong to option ${option}`);
      if (count >= countMax) throw new NbdProtocolError(`more than ${countMax} replies to option ${option}`);
      replies.take(payload);
    }
  }

  /** Asks for TLS and, when the server agrees, changes over. Resolves to the error reply when it does not. */
  async startTls(client: TlsClient): Promise<OptionOutcome> {
    const outcome = await this.option({ option: NBD_OPT_STARTTLS, ackState: "securing" });
    if (outcome.kind === "error") return outcome;
    // From here to the hand-over nothing is awaited, so nothing can slip in between.
    if (this.#reader.heldBytes > 0) {
      throw new NbdProtocolError("the server sent plaintext after it had agreed to TLS");
    }
    const securing = client.connect(this.#stream);
    const protectedStream = await this.#tlsOutcome(securing);
    this.#state.advance("haggling");
    this.#stream = protectedStream;
    this.#reader = new HandshakeReader(protectedStream);
    this.#secure = true;
    protectedStream.attach(this.#reader);
    return outcome;
  }

  /** The old way in: no error can be told, the server just hangs up. */
  async exportName(name: string): Promise<{ sizeBytes: number; flags: number }> {
    this.#checkAlive();
    this.#state.advance("awaiting-export");
    this.#stream.write(encodeOption(NBD_OPT_EXPORT_NAME, encodeString(name)));
    const zeroes = this.#noZeroes ? 0 : EXPORT_NAME_ZEROES;
    const view = viewOf(await this.#read(10 + zeroes));
    return { sizeBytes: readU64(view, 0), flags: view.getUint16(8) };
  }

  /**
   * Ends the handshake well, after GO was acknowledged or EXPORT_NAME answered. The caller attaches a sink and feeds it
   * `rest` first, without awaiting anything before.
   */
  handOver(): { stream: ByteStream; rest: Uint8Array } {
    this.#checkAlive();
    this.#state.advance("transmission");
    return { stream: this.#stream, rest: this.#reader.takeRest() };
  }

  /** Leaves politely: ABORT, then the end of our side. The server's answer is not waited for. Idempotent. */
  abort(): void {
    const state = this.#state.current;
    if (state === "ended" || state === "transmission") return;
    this.#state.advance("ended");
    if (state !== "haggling" || !this.#fixed) {
      this.#stream.destroy();
      return;
    }
    this.#stream.write(encodeOption(NBD_OPT_ABORT, NO_DATA));
    this.#stream.attach(farewell(this.#stream, this.#clock));
    this.#stream.end();
  }

  /** Drops everything; whatever waits fails with `error`. Idempotent. */
  destroy(error: Error): void {
    const state = this.#state.current;
    if (state === "ended" || state === "transmission") return;
    this.#state.advance("ended");
    this.#destroyedBy = error;
    this.#destroyed.reject(error);
    this.#reader.fail(error);
    this.#stream.destroy(error);
  }

  async #read(bytes: number): Promise<Uint8Array> {
    const read = await this.#reader.read(bytes);
    this.#checkAlive();
    return read;
  }

  /** The session may have been destroyed during any await. */
  #checkAlive(): void {
    if (this.#destroyedBy !== undefined) throw this.#destroyedBy;
  }

  async #tlsOutcome(securing: Promise<ByteStream>): Promise<ByteStream> {
    // When the session is destroyed meanwhile, a stream that comes too late is of no use to anybody.
    securing.then(
      (late) => this.#state.current === "ended" && late.destroy(),
      () => {},
    );
    try {
      const stream = await Promise.race([securing, this.#destroyed.promise]);
      this.#checkAlive();
      return stream;
    } catch (cause) {
      this.#checkAlive();
      throw new NbdConnectError("tls-failed", {
        what: `TLS with ${this.peer} failed`,
        why: cause instanceof Error ? cause.message : String(cause),
        hint: "Compare the certificates, the pre-shared key and its user name on both sides.",
        cause,
      });
    }
  }
}

/** After ABORT the server acknowledges, or just closes; both end the connection, and so does a server that does neither. */
function farewell(stream: ByteStream, clock: Clock): ByteSink {
  const timer = clock.setTimer(FAREWELL_MS_MAX, () => stream.destroy());
  return {
    onBytes: () => stream.destroy(),
    onEnd: () => stream.destroy(),
    onClose: () => timer.cancel(),
    onDrain: () => {},
  };
}

function checkMagic(greeting: DataView): void {
  const what = "cannot talk to this server";
  if (greeting.getUint32(0) !== NBD_MAGIC_HIGH || greeting.getUint32(4) !== NBD_MAGIC_LOW) {
    throw new NbdConnectError("not-nbd", {
      what,
      why: "what it sent first is not NBD",
      hint: "Check the address: another service answers there, or one that expects TLS from the first byte.",
    });
  }
  const [high, low] = [greeting.getUint32(8), greeting.getUint32(12)];
  if (high === NBD_OPTS_MAGIC_HIGH && low === NBD_OPTS_MAGIC_LOW) return;
  if (high === NBD_OLDSTYLE_MAGIC_HIGH && low === NBD_OLDSTYLE_MAGIC_LOW) {
    throw new NbdConnectError("oldstyle", {
      what,
      why: "it speaks the oldstyle NBD handshake, which has neither export names nor TLS",
      hint: "Make it listen with the newstyle handshake (nbdkit: leave out --oldstyle; nbd-server: 2.9.17 or later).",
    });
  }
  throw new NbdProtocolError("the greeting is neither newstyle nor oldstyle");
}
