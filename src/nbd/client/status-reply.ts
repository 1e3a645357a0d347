/**
 * The reply to one BLOCK_STATUS: one chunk for each context in question. proto.md, "Structured reply types",
 * NBD_REPLY_TYPE_BLOCK_STATUS and NBD_REPLY_TYPE_BLOCK_STATUS_EXT.
 *
 * Every descriptor is checked; kept are those of the one context that the caller wants, as many as the caller wants.
 * A descriptor that begins behind the range asked for breaks a rule too, but harms nobody: it is left out.
 */
import { NBD_MAX_EXTENTS } from "../constants.ts";
import { NbdProtocolError } from "../error.ts";

export interface StatusExtent {
  /** Bytes; never beyond the range that was asked for. */
  readonly length: number;
  /** What they mean is defined by the context. Above 2^53−1 (possible with extended headers only): Infinity. */
  readonly flags: number;
}

export interface StatusQuestion {
  /** Contexts that the server will answer for. */
  readonly contextIds: readonly number[];
  readonly wantedId: number;
  /** Bytes asked for. */
  readonly length: number;
  readonly reqOne: boolean;
  /** Extents to keep. */
  readonly countMax: number;
}

export class StatusReply {
  readonly #question: StatusQuestion;
  readonly #answered: number[] = [];
  readonly #extents: StatusExtent[] = [];
  #keep = false;
  /** Bytes that the current chunk's descriptors have covered. */
  #coveredBytes = 0;

  constructor(question: StatusQuestion) {
    this.#question = question;
  }

  get complete(): boolean {
    return this.#answered.length === this.#question.contextIds.length;
  }

  /** At least one once `complete`, from the request's offset on. */
  get extents(): StatusExtent[] {
    return this.#extents;
  }

  beginChunk(contextId: number, descriptors: number): void {
    const { contextIds, wantedId, reqOne } = this.#question;
    if (!contextIds.includes(contextId))
      throw new NbdProtocolError(`block status of context ${contextId}, never asked for`);
    if (this.#answered.includes(contextId))
      throw new NbdProtocolError(`block status of context ${contextId} came twice`);
    if (descriptors < 1) throw new NbdProtocolError("block status without an extent");
    if (descriptors > NBD_MAX_EXTENTS) throw new NbdProtocolError(`block status with ${descriptors} extents`);
    if (reqOne && descriptors > 1) throw new NbdProtocolError(`${descriptors} extents, where one was asked for`);
    this.#answered.push(contextId);
    this.#keep = contextId === wantedId;
    this.#coveredBytes = 0;
  }

  descriptor(length: number, flags: number): void {
    const question = this.#question;
    if (length === 0) throw new NbdProtocolError("an extent of no bytes");
    if (question.reqOne && length > question.length) {
      throw new NbdProtocolError(`an extent of ${length} bytes, where ${question.length} were asked for`);
    }
    const restBytes = question.length - this.#coveredBytes;
    if (restBytes <= 0) return;
    const within = Math.min(length, restBytes);
    this.#coveredBytes += within;
    if (this.#keep && this.#extents.length < question.countMax) this.#extents.push({ length: within, flags });
  }
}
