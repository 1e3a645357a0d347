/** Sessions with a plain NBD server, for a `ReconnectingSource`. */
import type { Env } from "../env/env.ts";
import type { NbdClient } from "../nbd/client/client.ts";
import { type ConnectOptions, connectNbd } from "../nbd/client/connect.ts";

/**
 * A server that owes an answer and moves no byte for so long counts as dead, so that it is noticed within 15 seconds. A
 * source that needs longer for one answer cannot be used with it: its reads would be asked again for ever.
 */
const STALL_MS_DEFAULT = 12_000;

export type NbdSourceOptions = Omit<ConnectOptions, "signal">;

/** The `connect` of a `ReconnectingSource`. Each call dials anew; rejects as `connectNbd` does. */
export function nbdSource(
  env: Pick<Env, "clock" | "links">,
  options: NbdSourceOptions,
): (signal?: AbortSignal) => Promise<NbdClient> {
  const all = { stallTimeoutMs: STALL_MS_DEFAULT, ...options };
  return (signal) => connectNbd(env, signal === undefined ? all : { ...all, signal });
}
