/** `--qmp SOCKET`: QEMU's monitor, where its memory goes, and what it refuses in the words of our errors. */
import { resolve } from "node:path";
import type { Address } from "../../env/links.ts";
import { QmpCommandError, QmpError, QmpProtocolError } from "../../qmp/errors.ts";
import { usageError } from "../cli-error.ts";

/** Tunnels that are ours: an operator's `--tunnel` cannot have these names. */
export const GUEST_TUNNEL = "qemu.guest";
export const MEMORY_TUNNEL = "qemu.memory";
export const RESERVED_TUNNELS: readonly string[] = [GUEST_TUNNEL, MEMORY_TUNNEL];

/** sockaddr_un.sun_path, with its terminating NUL. */
const UNIX_PATH_BYTES_MAX = 107;
const MEMORY_SUFFIX = ".ram";

export interface QmpPlan {
  /** The monitor. */
  readonly address: Address;
  /** A socket beside it: whoever can make the one can make the other. */
  readonly memoryPath: string;
  /** What QEMU is told of it. */
  readonly memoryUri: string;
}

export function planQmp(text: string | undefined, directory: string): QmpPlan | undefined {
  if (text === undefined) return undefined;
  const name = text.startsWith("unix:") ? text.slice("unix:".length) : text;
  const path = resolve(directory, name);
  const memoryPath = `${path}${MEMORY_SUFFIX}`;
  if (name === "" || name.includes("\0") || Buffer.byteLength(memoryPath) > UNIX_PATH_BYTES_MAX) {
    const why = `${JSON.stringify(text)} is no path for a socket, or too long (${UNIX_PATH_BYTES_MAX - MEMORY_SUFFIX.length} bytes at the most)`;
    throw usageError("cannot use --qmp", why, "name the unix socket of QEMU's -qmp unix:PATH,server=on,wait=off");
  }
  return { address: { kind: "unix", path }, memoryPath, memoryUri: `unix:${memoryPath}` };
}

export interface QmpProblem {
  readonly code: "taken" | "closed" | "timeout" | "limit" | "state";
  readonly message: string;
  readonly hint: string;
}

/** What QEMU has refused, or how it was lost; undefined: the error is something else. */
export function qmpProblem(error: unknown): QmpProblem | undefined {
  if (error instanceof QmpError) {
    const { code, message, hint = "see the states of both QEMUs, and `blockferry status`" } = error;
    return { code, message, hint };
  }
  const hint = "see QEMU's log on that host";
  if (error instanceof QmpCommandError) return { code: "state", message: error.message, hint };
  if (error instanceof QmpProtocolError) return { code: "closed", message: error.message, hint };
  return undefined;
}
