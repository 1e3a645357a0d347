/** How a migration, or a step of it, is refused. */
import { BlockError } from "../block/error.ts";

/**
 * - `owned-elsewhere`: the record beside the image says that another host has the disk, or may have it.
 * - `bad-record`: a record cannot be read, or records do not go together.
 * - `phase`: not in this phase. `not-connected`: the destination cannot be reached. `peer`: the other side has refused.
 * - `written`: the destination's guest has written: its disk is the only one that counts. `cancelled`: it was called off.
 * - `io`: a record could not be written. `closed`: the process is ending.
 */
export type MigrationErrorCode =
  | "owned-elsewhere"
  | "bad-record"
  | "phase"
  | "not-connected"
  | "peer"
  | "written"
  | "cancelled"
  | "io"
  | "closed";

/** `message` says what and why, `hint` what to do; one line each. */
export class MigrationError extends Error {
  override readonly name = "MigrationError";
  readonly code: MigrationErrorCode;
  readonly hint: string;

  constructor(code: MigrationErrorCode, message: string, hint: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.hint = hint;
  }
}

/** The peer's messages make no sense. The message channel is closed; the migration goes on when there is a new one. */
export class MigrationProtocolError extends Error {
  override readonly name = "MigrationProtocolError";
}

/** The process is ending; what was asked for may yet come about. */
export function endingError(side: "source" | "destination"): MigrationError {
  return new MigrationError("closed", `the ${side} is ending`, "start it again: it goes on where it was");
}

export function unreachableError(side: "source" | "destination", hint: string): MigrationError {
  return new MigrationError("not-connected", `the ${side} cannot be reached`, hint);
}

export function cancelledError(reason: string): MigrationError {
  return new MigrationError("cancelled", `the switchover was called off: ${reason}`, "the disks are here; try again");
}

/** The destination was asked to give the disks back, and does not. */
export function keptError(reason: string, wrote: boolean): MigrationError {
  return wrote
    ? new MigrationError("written", reason, "use the disks there")
    : new MigrationError("peer", reason, "see the destination's status");
}

/** The destination has let go of the disks, and that they are this host's cannot be written down. */
export function notTakenBackError(cause: unknown): MigrationError {
  const hint = "check the file system that the images are on; it is tried again, and the disks are nobody's meanwhile";
  return new MigrationError("io", messageOf(cause), hint, { cause });
}

/** Who answers is not gone for good. */
export function stillThereError(): MigrationError {
  const hint =
    "cancel asks it to give them back; if it was powered off just now, wait until the status says disconnected";
  return new MigrationError("phase", "cannot reclaim the disks: the destination that has them is connected", hint);
}

/** For guests whose disk is elsewhere. */
export function goneError(): BlockError {
  return new BlockError("io", "the disk has moved to the destination");
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
