/** How a session with a server can fail, besides `NbdProtocolError`: it never came about, or it was lost. */
import { BlockError } from "../../block/error.ts";

/**
 * - `unreachable`: no connection. `timeout`: the handshake took too long. `cancelled`: the caller's signal.
 * - `not-nbd`, `oldstyle`: the other side speaks something else, or a dialect from before 2011.
 * - `tls-required`: the server insists. `tls-unavailable`: we insist, the server cannot. `tls-failed`: TLS itself failed.
 * - `unknown-export`, `policy`, `shutting-down`, `unsupported`: the server's answer.
 * - `refused`: any other error reply. `closed`: the server hung up.
 * - `bad-export`: the export cannot be used with its size or block sizes.
 */
export type NbdConnectCode =
  | "unreachable"
  | "timeout"
  | "cancelled"
  | "not-nbd"
  | "oldstyle"
  | "tls-required"
  | "tls-unavailable"
  | "tls-failed"
  | "unknown-export"
  | "policy"
  | "shutting-down"
  | "unsupported"
  | "refused"
  | "closed"
  | "bad-export";

export interface ConnectFailure {
  /** One line each: what did not work, why, and what the user can do. */
  readonly what: string;
  readonly why: string;
  readonly hint: string;
  readonly cause?: unknown;
}

/** A session that never came about. `message` is "what: why". */
export class NbdConnectError extends Error {
  override readonly name = "NbdConnectError";
  readonly code: NbdConnectCode;
  readonly what: string;
  readonly why: string;
  readonly hint: string;

  constructor(code: NbdConnectCode, failure: ConnectFailure) {
    super(`${failure.what}: ${failure.why}`, failure.cause === undefined ? undefined : { cause: failure.cause });
    this.code = code;
    this.what = failure.what;
    this.why = failure.why;
    this.hint = failure.hint;
  }
}

/**
 * The link is gone, so the outcome of a request is not known. Its code is "io", as for whoever knows block devices only;
 * whoever can reconnect tells it by its class. `cause` is what ended the link.
 */
export class ConnectionLostError extends BlockError {
  constructor(message: string, cause: unknown) {
    super("io", message, { cause });
  }
}

const QUOTED_CHARACTERS_MAX = 300;

/** A peer's text, fit for a message: control characters escaped, cut to a sensible length. */
export function printable(text: string): string {
  const cut = text.length > QUOTED_CHARACTERS_MAX ? `${text.slice(0, QUOTED_CHARACTERS_MAX)}…` : text;
  // \p{C}: control, format (also what reverses the writing direction), surrogate and unassigned characters.
  return cut.replace(/[\p{C}\u2028\u2029]/gu, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`);
}
