/** What goes wrong on a control socket. */
import type { ZodError } from "zod";
import { prettifyError } from "zod";
import { ERROR_TEXT_MAX } from "./limits.ts";

/**
 * Codes that this room gives; handlers may give others of their own. "closing": the instance is ending; "closed": the
 * connection is gone; "timeout": no reply in time; "unavailable": the thing cannot be done in this state.
 */
export type ControlErrorCode =
  | "bad-params"
  | "unknown-verb"
  | "unknown-disk"
  | "several-disks"
  | "never"
  | "busy"
  | "too-large"
  | "unavailable"
  | "closing"
  | "closed"
  | "timeout"
  | "bug";

/** A request was refused or failed. A handler throws it to give its own `code`, `message` and `hint` to the client. */
export class ControlError extends Error {
  override readonly name = "ControlError";
  readonly code: string;
  readonly hint: string | undefined;

  constructor(code: ControlErrorCode | (string & {}), message: string, hint?: string) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}

/** The peer broke the protocol: its connection is closed. */
export class ControlProtocolError extends Error {
  override readonly name = "ControlProtocolError";
}

/** Zod's account of what is wrong, in one line of bounded length. */
export function describeZodError(error: ZodError): string {
  const text = prettifyError(error)
    .replaceAll("✖ ", "")
    .replaceAll(/\s*\n\s*/g, " ");
  return cutText(text);
}

export function cutText(text: string): string {
  return text.length <= ERROR_TEXT_MAX ? text : `${text.slice(0, ERROR_TEXT_MAX)}…`;
}
