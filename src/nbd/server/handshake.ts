/**
 * The handshake of one connection: greeting, client flags, options, until GO (or EXPORT_NAME), an end, or STARTTLS.
 * The answers are made in `options.ts`; here bytes are cut into options, limits are kept, and options that are too long
 * are swallowed without being stored.
 *
 * Server greeting: u64 "NBDMAGIC", u64 "IHAVEOPT", u16 handshake flags. Client: u32 flags, then options.
 */
import type { ByteSink, ByteStream } from "../../env/links.ts";
import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  NBD_OPTS_MAGIC_HIGH,
  NBD_OPTS_MAGIC_LOW,
  OPTION_BYTES,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import type { Negotiated } from "./connection-context.ts";
import type { NbdExport } from "./export.ts";
import { OPTIONS_PER_EXPORT, type ServerLimits } from "./limits.ts";
import {
  answerOption,
  answerTooLong,
  type NextStep,
  newOptionState,
  type OptionOutcome,
  type OptionState,
  type OptionUpgrade,
} from "./options.ts";

export interface HandshakeRules {
  readonly exports: readonly NbdExport[];
  readonly tls: "off" | "on" | "require";
  readonly limits: ServerLimits;
  readonly upgrade?: OptionUpgrade | undefined;
}

/** How a handshake ends. Exactly one of these is called, once. */
export interface HandshakeEnd {
  /** `rest` are bytes that the client has sent past its last option. */
  go(negotiated: Negotiated, rest: Buffer): void;
  startTls(): void;
  /** The stream is somebody else's from now on; `rest` as in `go`. */
  upgraded(rest: Buffer): void;
  /** The client asked to end, or sends no more. */
  left(): void;
  /** The stream is gone. */
  lost(): void;
  failed(error: NbdProtocolError): void;
}

const CLIENT_FLAGS_BYTES = 4;
/** With more left to take, a client gets no further options answered: LIST makes long replies of short requests. */
const UNSENT_BYTES_MAX = 256 * 1024;
const NO_BYTES = Buffer.alloc(0);

export class ServerHandshake implements ByteSink {
  readonly #stream: ByteStream;
  readonly #rules: HandshakeRules;
  readonly #end: HandshakeEnd;
  #state: OptionState;
  #pending: Buffer = NO_BYTES;
  #phase: "flags" | "options" | "over";
  #noZeroes = false;
  #optionsSeen = 0;
  /** An option that is too long: how much of it is still to be swallowed, and what is answered then. */
  #swallow: { bytes: number; readonly replies: readonly Buffer[] } | undefined;
  /** The client has to take replies before more of its options are looked at. */
  #waiting = false;

  /** `secure`: the stream is the TLS one, and flags were exchanged before; `noZeroes` is what they said. */
  constructor(
    stream: ByteStream,
    rules: HandshakeRules,
    end: HandshakeEnd,
    resumed?: { noZeroes: boolean; optionsSeen: number },
  ) {
    this.#stream = stream;
    this.#rules = rules;
    this.#end = end;
    this.#state = newOptionState(resumed !== undefined);
    this.#phase = resumed === undefined ? "flags" : "options";
    this.#noZeroes = resumed?.noZeroes ?? false;
    this.#optionsSeen = resumed?.optionsSeen ?? 0;
    if (resumed === undefined) stream.write(greeting());
  }

  /** What the handshake after STARTTLS has to know of this one. */
  get carriedOver(): { noZeroes: boolean; optionsSeen: number } {
    return { noZeroes: this.#noZeroes, optionsSeen: this.#optionsSeen };
  }

  onBytes(bytes: Uint8Array): void {
    if (this.#phase === "over") return;
    // What is only swallowed is not copied, since an option may be 4 GiB long. (`#pending` is empty meanwhile.)
    const skipped = Math.min(this.#swallow?.bytes ?? 0, bytes.length);
    if (this.#swallow !== undefined) this.#swallow.bytes -= skipped;
    this.#pending = Buffer.concat([this.#pending, bytes.subarray(skipped)]);
    this.#takeAll();
  }

  onEnd(): void {
    if (this.#phase === "over") return;
    this.#phase = "over";
    this.#end.left();
  }

  onClose(): void {
    if (this.#phase === "over") return;
    this.#phase = "over";
    this.#end.lost();
  }

  onDrain(): void {
    if (!this.#waiting) return;
    this.#waiting = false;
    this.#stream.resume();
    this.#takeAll();
  }

  #takeAll(): void {
    while (!this.#waiting && this.#step()) {
      // One option after the other, as long as they are whole.
    }
  }

  #send(replies: readonly Buffer[]): void {
    if (replies.length > 0) this.#stream.write(Buffer.concat(replies));
    if (this.#stream.pendingBytes <= UNSENT_BYTES_MAX) return;
    this.#waiting = true;
    this.#stream.pause();
  }

  /** Takes what is whole at the front of `#pending`; false when more bytes are needed or the handshake is over. */
  #step(): boolean {
    if (this.#phase === "flags") return this.#takeFlags();
    if (this.#phase === "over") return false;
    return this.#swallow === undefined ? this.#takeOption() : this.#swallowData(this.#swallow);
  }

  #takeFlags(): boolean {
    if (this.#pending.length < CLIENT_FLAGS_BYTES) return false;
    const flags = this.#pending.readUInt32BE(0);
    this.#pending = this.#pending.subarray(CLIENT_FLAGS_BYTES);
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) {
      return this.#fail("the client set a handshake flag that does not exist");
    }
    this.#noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
    this.#phase = "options";
    return true;
  }

  #takeOption(): boolean {
    if (this.#pending.length < OPTION_BYTES) return false;
    if (this.#pending.readUInt32BE(0) !== NBD_OPTS_MAGIC_HIGH || this.#pending.readUInt32BE(4) !== NBD_OPTS_MAGIC_LOW) {
      return this.#fail("an option did not begin with the magic number");
    }
    const option = this.#pending.readUInt32BE(8);
    const length = this.#pending.readUInt32BE(12);
    const { limits, exports, tls, upgrade } = this.#rules;
    if (this.#optionsSeen >= limits.optionsMax + OPTIONS_PER_EXPORT * exports.length) {
      return this.#fail("the client sent too many options");
    }
    const rules = { exports, tls, upgrade, requestBytesMax: limits.requestBytesMax, noZeroes: this.#noZeroes };
    if (length > limits.optionBytesMax) return this.#beginSwallow(length, answerTooLong(option, this.#state, rules));
    if (this.#pending.length < OPTION_BYTES + length) return false;
    const data = this.#pending.subarray(OPTION_BYTES, OPTION_BYTES + length);
    this.#pending = this.#pending.subarray(OPTION_BYTES + length);
    this.#optionsSeen++;
    const outcome = answerOption(option, data, this.#state, rules);
    if (outcome.next.kind === "continue") this.#send(outcome.replies);
    else if (outcome.replies.length > 0) this.#stream.write(Buffer.concat(outcome.replies));
    return this.#follow(outcome.next);
  }

  #beginSwallow(bytes: number, { replies, next }: OptionOutcome): boolean {
    if (next.kind !== "continue") return this.#follow(next);
    this.#optionsSeen++;
    this.#pending = this.#pending.subarray(OPTION_BYTES);
    this.#swallow = { bytes, replies };
    return true;
  }

  #swallowData(swallow: { bytes: number; readonly replies: readonly Buffer[] }): boolean {
    const taken = Math.min(swallow.bytes, this.#pending.length);
    this.#pending = this.#pending.subarray(taken);
    swallow.bytes -= taken;
    if (swallow.bytes > 0) return false;
    this.#swallow = undefined;
    this.#send(swallow.replies);
    return true;
  }

  #follow(next: NextStep): boolean {
    if (next.kind === "continue") return true;
    this.#phase = "over";
    const rest = this.#pending;
    this.#pending = NO_BYTES;
    switch (next.kind) {
      case "start-tls":
        // Bytes past STARTTLS came before the keys: they may be anybody's.
        if (rest.length > 0) this.#end.failed(new NbdProtocolError("the client sent bytes between STARTTLS and TLS"));
        else this.#end.startTls();
        return false;
      case "go": {
        const { structured, extended } = this.#state;
        this.#end.go({ exported: next.exported, contexts: next.contexts, structured, extended }, rest);
        return false;
      }
      case "upgrade":
        this.#end.upgraded(rest);
        return false;
      case "abort":
        this.#end.left();
        return false;
      case "drop":
        this.#end.failed(new NbdProtocolError(next.why));
        return false;
    }
  }

  #fail(why: string): boolean {
    this.#phase = "over";
    this.#pending = NO_BYTES;
    this.#end.failed(new NbdProtocolError(why));
    return false;
  }
}

function greeting(): Buffer {
  const bytes = Buffer.alloc(18);
  bytes.writeUInt32BE(NBD_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(NBD_MAGIC_LOW, 4);
  bytes.writeUInt32BE(NBD_OPTS_MAGIC_HIGH, 8);
  bytes.writeUInt32BE(NBD_OPTS_MAGIC_LOW, 12);
  bytes.writeUInt16BE(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, 16);
  return bytes;
}
