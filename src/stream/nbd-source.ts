/** Sessions with a plain NBD server, for a `ReconnectingSource`. */
import type { Env } from "../env/env.ts";
import { type ConnectOptions, connectNbd } from "../nbd/client/connect.ts";
import type { SourceSession } from "./source-session.ts";

/**
 * A server that owes an answer and moves no byte for so long counts as dead, so that it is noticed within 15 seconds. A
 * source that needs longer for one answer cannot be used with it: its reads would be asked again for ever.
 */
export const STALL_MS_DEFAULT = 12_000;

export type NbdSourceOptions = Omit<ConnectOptions, "signal">;

/** The `connect` of a `ReconnectingSource`. Each call dials anew. */
export function nbdSource(
  env: Pick<Env, "clock" | "links">,
  options: NbdSourceOptions,
): (signal: AbortSignal) => Promise<SourceSession> {
  return (signal) => connectNbd(env, { stallTimeoutMs: STALL_MS_DEFAULT, ...options, signal });
}
