/** How a conversation with QEMU goes wrong. */

/**
 * - `taken`: QEMU lets us connect and says nothing: a monitor has one client at a time, and that is somebody else.
 * - `closed`: the connection is gone, or was never there. `timeout`: no reply in time; it may still come, unseen.
 * - `limit`: too many commands at once, or QEMU does not read them.
 * - `state`: QEMU, or its migration, is not in a state in which this can be done.
 */
export type QmpErrorCode = "taken" | "closed" | "timeout" | "limit" | "state";

export class QmpError extends Error {
  override readonly name = "QmpError";
  readonly code: QmpErrorCode;
  readonly hint: string | undefined;

  constructor(code: QmpErrorCode, message: string, options: ErrorOptions & { readonly hint?: string } = {}) {
    const { hint, ...rest } = options;
    super(message, rest);
    this.code = code;
    this.hint = hint;
  }
}

/** QEMU refused a command. `class` is QMP's: "GenericError", "CommandNotFound", "DeviceNotFound", … */
export class QmpCommandError extends Error {
  override readonly name = "QmpCommandError";
  readonly command: string;
  readonly class: string;
  readonly desc: string;

  constructor(command: string, errorClass: string, desc: string) {
    super(`QEMU refused ${command}: ${desc}`);
    this.command = command;
    this.class = errorClass;
    this.desc = desc;
  }
}

/** What is at the other end does not speak QMP as it should: the connection was closed. */
export class QmpProtocolError extends Error {
  override readonly name = "QmpProtocolError";
}
