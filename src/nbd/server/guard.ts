/**
 * Stands between a server and a device that may misbehave. An expected failure (`BlockError`) becomes a wire error; any
 * other is a bug of ours: it is logged with its stack, the client gets EIO, and nothing is written to that device again,
 * by any connection, because its state is unknown.
 */
import type { BlockDevice } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import { NBD_EIO } from "../constants.ts";
import { nbdErrnoOf } from "../errno.ts";
import type { Request } from "./request.ts";
import type { ServerLog } from "./server-log.ts";

export class DeviceGuard {
  readonly device: BlockDevice;
  readonly #log: ServerLog;
  #writesStopped = false;

  constructor(device: BlockDevice, log: ServerLog) {
    this.device = device;
    this.#log = log;
  }

  /** Throws once writes to the device have been stopped. */
  checkWritable(): void {
    if (this.#writesStopped) throw new BlockError("io", "writes were stopped after an internal error");
  }

  /** The wire error for what the device threw at `request`. */
  errnoOf(cause: unknown, request: Request): number {
    if (cause instanceof BlockError) {
      if (cause.code === "io")
        this.#log.warn("a request failed on the device", {
          command: request.command,
          offset: request.offset,
          length: request.length,
          why: cause.message,
        });
      return nbdErrnoOf(cause.code, request.command, request.flags);
    }
    this.#writesStopped = true;
    const stack = cause instanceof Error ? cause.stack : String(cause);
    this.#log.error("internal error; this export accepts no more writes", { command: request.command, stack });
    return NBD_EIO;
  }
}
