/**
 * One request, from the moment it is asked for until its promise settles.
 *
 * The caller's buffer is ours until then. A READ's is written to while chunks arrive. A WRITE's is read by the stream,
 * maybe still after the reply has come (a server may refuse a write before it has taken all of it): the promise
 * settles when the reply is complete *and* the stream has given every piece back.
 */
import type { BlockError } from "../../block/error.ts";
import { ReadCoverage } from "./read-coverage.ts";
import type { StatusReply } from "./status-reply.ts";

const NO_BYTES = new Uint8Array(0);

export interface RequestParts {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  /** The effect's length. */
  readonly length: number;
  /** READ: where the data goes; exactly `length` bytes. */
  readonly into?: Uint8Array;
  /** What follows the header. */
  readonly payload?: Uint8Array;
  /** BLOCK_STATUS: takes the answer. */
  readonly status?: StatusReply;
}

export class PendingRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly into: Uint8Array;
  readonly payload: Uint8Array;
  readonly status: StatusReply | undefined;
  readonly coverage: ReadCoverage;

  /** The cookie: a number for this use of the slot, and the slot. */
  cookieHigh = 0;
  slot = -1;
  /** What the reply's error chunks said; the first one counts. */
  failure: BlockError | undefined;
  errorChunks = 0;
  /** The reply is complete: a further one with this cookie is a violation. */
  replied = false;
  /** Payload that the stream was not given yet. */
  unsentBytes = 0;
  /** Writes that the stream has not given back yet. */
  heldWrites = 0;

  readonly #resolve: () => void;
  readonly #reject: (error: BlockError) => void;

  constructor(parts: RequestParts, resolve: () => void, reject: (error: BlockError) => void) {
    this.command = parts.command;
    this.flags = parts.flags;
    this.offset = parts.offset;
    this.length = parts.length;
    this.into = parts.into ?? NO_BYTES;
    this.payload = parts.payload ?? NO_BYTES;
    this.status = parts.status;
    this.coverage = new ReadCoverage(parts.length);
    this.#resolve = resolve;
    this.#reject = reject;
  }

  /** Nothing touches the caller's buffer any more. */
  get finished(): boolean {
    return this.replied && this.unsentBytes === 0 && this.heldWrites === 0;
  }

  settle(): void {
    if (this.failure === undefined) this.#resolve();
    else this.#reject(this.failure);
  }
}
