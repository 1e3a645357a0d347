/**
 * Sockets that a service manager (systemd, or libnbd's `[ … ]`) opened for us: file descriptors from 3 on, announced by
 * `LISTEN_FDS`, meant for us only when `LISTEN_PID` is our PID. Source: sd_listen_fds(3).
 */
import { CliError } from "../cli-error.ts";
import { EXIT_CONFIG } from "../exit-codes.ts";

export interface InheritedSocket {
  readonly fd: number;
  /** From `LISTEN_FDNAMES`; "unknown" as in sd_listen_fds_with_names(3). */
  readonly name: string;
}

const FIRST_FD = 3;
const SOCKETS_MAX = 64;
const VARIABLES = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"];

/** The sockets meant for the process `pid`; none when it was started otherwise. Throws for an announcement that makes no sense. */
export function inheritedSockets(env: Readonly<Record<string, string | undefined>>, pid: number): InheritedSocket[] {
  const { LISTEN_FDS: countText, LISTEN_PID: pidText, LISTEN_FDNAMES: namesText } = env;
  if (countText === undefined || pidText === undefined || pidText !== String(pid)) return [];
  const count = /^[0-9]{1,4}$/.test(countText) ? Number(countText) : Number.NaN;
  if (!(count >= 1 && count <= SOCKETS_MAX)) {
    throw activationError(`LISTEN_FDS is "${countText}", not a number from 1 to ${SOCKETS_MAX}`);
  }
  const names = namesText === undefined ? [] : namesText.split(":");
  if (namesText !== undefined && names.length !== count) {
    throw activationError(`LISTEN_FDNAMES has ${names.length} names for ${count} sockets`);
  }
  return Array.from({ length: count }, (_, index) => ({ fd: FIRST_FD + index, name: names[index] ?? "unknown" }));
}

/** Whoever we start must not take our sockets for theirs. */
export function clearActivation(env: Record<string, string | undefined>): void {
  for (const variable of VARIABLES) delete env[variable];
}

function activationError(why: string): CliError {
  const hint = "systemd and libnbd set these variables; nobody else should";
  return new CliError({
    exitCode: EXIT_CONFIG,
    code: "socket-activation",
    what: "cannot use the inherited sockets",
    why,
    hint,
  });
}
