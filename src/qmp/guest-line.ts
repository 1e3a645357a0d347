/**
 * What the two sides of a migration tell each other about the guest, while their QEMUs move its memory: JSON objects over
 * any byte stream. The source orders, one thing after the other, and the destination answers each order once. The stream
 * may go at any time: an order that was not answered may have been carried out.
 *
 *   check    → checked      whether the destination's QEMU waits for a guest
 *   receive  → listening    it listens for memory from now on
 *   look     → seen         whether all of a guest is there, and waits; false: there is no QEMU that has any of one
 *   start    → started      the disks are the destination's, the source's QEMU has completed: the guest runs there
 *   abandon  → abandoned    the guest stays with the source: the QEMU that has a copy of it is gone
 *            → cannot       in place of any of these
 */
import * as z from "zod";
import type { ByteSink, ByteStream } from "../env/links.ts";
import { QmpError, QmpProtocolError } from "./errors.ts";
import { parseMessage } from "./messages.ts";
import { MessageSplitter } from "./splitter.ts";

const MESSAGE_BYTES_MAX = 16 * 1024;
const TEXT_CHARACTERS_MAX = 1000;
const text = z.string().max(TEXT_CHARACTERS_MAX);

export const Order = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("check") }),
  z.strictObject({ type: z.literal("receive"), guestWasRunning: z.boolean() }),
  z.strictObject({ type: z.literal("look") }),
  /** `guestWasRunning` is absent when the source has forgotten. */
  z.strictObject({ type: z.literal("start"), guestWasRunning: z.boolean().optional() }),
  z.strictObject({ type: z.literal("abandon"), reason: text }),
]);
export type Order = z.output<typeof Order>;

export const Answer = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("checked"), problems: z.array(text).max(16) }),
  z.strictObject({ type: z.literal("listening") }),
  z.strictObject({ type: z.literal("seen"), arrived: z.boolean() }),
  z.strictObject({ type: z.literal("started"), running: z.boolean(), status: text }),
  z.strictObject({ type: z.literal("abandoned") }),
  z.strictObject({
    type: z.literal("cannot"),
    code: z.enum(["taken", "closed", "timeout", "limit", "state"]),
    reason: text,
    hint: text.optional(),
  }),
]);
export type Answer = z.output<typeof Answer>;

export interface LineHooks<In> {
  readonly onMessage: (message: In) => void;
  /** Called once, last. */
  readonly onClose: (why: Error | undefined) => void;
}

/** One end of it. The stream is its own. */
export class GuestLine<Schema extends z.ZodType, Out extends object> implements ByteSink {
  readonly #stream: ByteStream;
  readonly #schema: Schema;
  readonly #hooks: LineHooks<z.output<Schema>>;
  readonly #splitter = new MessageSplitter(MESSAGE_BYTES_MAX);

  constructor(stream: ByteStream, schema: Schema, hooks: LineHooks<z.output<Schema>>) {
    this.#stream = stream;
    this.#schema = schema;
    this.#hooks = hooks;
    stream.attach(this);
  }

  send(message: Out): void {
    this.#stream.write(Buffer.from(`${JSON.stringify(message)}\n`));
  }

  /** Nothing more will be said; `onClose` follows when the other side has nothing to say either. */
  end(): void {
    this.#stream.end();
  }

  destroy(error?: Error): void {
    this.#stream.destroy(error);
  }

  onBytes(bytes: Uint8Array): void {
    try {
      for (const json of this.#splitter.push(bytes)) {
        this.#hooks.onMessage(parseMessage(this.#schema, JSON.parse(json), "what the other side says of the guest"));
      }
    } catch (cause) {
      const why = "what the other side says of the guest makes no sense";
      this.#stream.destroy(cause instanceof QmpProtocolError ? cause : new QmpProtocolError(why, { cause }));
    }
  }

  onEnd(): void {
    this.#stream.end();
  }

  onClose(error?: Error): void {
    this.#hooks.onClose(error);
  }

  onDrain(): void {}
}

/** The source's end: orders, and waits for what comes of it. */
export class GuestCaller {
  readonly #line: GuestLine<typeof Answer, Order>;
  #waiting: PromiseWithResolvers<Answer> | undefined;
  #over: QmpError | undefined;
  #answered = false;

  constructor(stream: ByteStream) {
    this.#line = new GuestLine(stream, Answer, {
      onMessage: (answer) => {
        this.#answered = true;
        this.#waiting?.resolve(answer);
        this.#waiting = undefined;
      },
      onClose: (why) => {
        this.#over = this.#answered ? lostError(why) : deafError(why);
        this.#waiting?.reject(this.#over);
      },
    });
  }

  /**
   * One at a time. Rejects with `QmpError`: with what the destination's QEMU has refused, or `closed` when nothing is known
   * of it.
   */
  async ask<T extends Answer["type"]>(order: Order, wanted: T): Promise<Extract<Answer, { type: T }>> {
    if (this.#over !== undefined) throw this.#over;
    if (this.#waiting !== undefined) throw new Error("an order is under way");
    this.#waiting = Promise.withResolvers<Answer>();
    this.#line.send(order);
    const answer = await this.#waiting.promise;
    if (answer.type === "cannot") {
      const { code, reason, hint } = answer;
      throw new QmpError(code, `on the destination: ${reason}`, hint === undefined ? {} : { hint });
    }
    if (answer.type === wanted) return answer as Extract<Answer, { type: T }>;
    this.#line.destroy();
    throw new QmpProtocolError(`the destination answers "${answer.type}" in place of "${wanted}"`);
  }

  end(): void {
    this.#line.end();
  }
}

/** As long as it may be in a message. */
export function clip(message: string): string {
  return message.slice(0, TEXT_CHARACTERS_MAX);
}

function lostError(cause: Error | undefined): QmpError {
  return new QmpError("closed", "the destination was lost while it was asked about the guest", { cause });
}

function deafError(cause: Error | undefined): QmpError {
  const hint = "start `blockferry dest` with --qmp SOCKET as well, or leave it out here";
  return new QmpError("closed", "the destination does not take a guest", { cause, hint });
}
