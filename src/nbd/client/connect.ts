/** From an address, or a stream, to a client. */
import type { Clock } from "../../env/clock.ts";
import type { Env } from "../../env/env.ts";
import { type Address, type ByteStream, formatAddress } from "../../env/links.ts";
import { NbdClient } from "./client.ts";
import { IN_FLIGHT_DEFAULT, NbdConnection } from "./connection.ts";
import { NbdConnectError, printable } from "./errors.ts";
import { HandshakeSession } from "./handshake.ts";
import { type Dialect, negotiate, type TlsChoice } from "./negotiate.ts";
import { encodeString } from "./wire.ts";

/** From dialling to the end of the handshake. */
export const HANDSHAKE_MS_DEFAULT = 10_000;

export interface HandshakeOptions {
  /** Default: off. Connecting to anything but loopback and unix sockets without TLS is the caller's decision. */
  readonly tls?: TlsChoice;
  readonly handshakeTimeoutMs?: number;
  /** Gives the attempt up; once connected it means nothing any more. */
  readonly signal?: AbortSignal;
  /** The most modern headers to ask for. Default: extended. */
  readonly dialectMax?: Dialect;
}

export interface OpenOptions extends HandshakeOptions {
  /** "" is the server's default export. */
  readonly exportName: string;
  /** Metadata contexts besides `base:allocation`. */
  readonly metaContexts?: readonly string[];
  /** Requests sent and not answered; more wait. */
  readonly inFlightMax?: number;
  /** The link counts as lost when an answer is due and nothing moves for so long. Default: never. */
  readonly stallTimeoutMs?: number;
}

export interface ConnectOptions extends OpenOptions {
  readonly address: Address;
}

/** Dials, negotiates, and resolves to a client. Rejects with `NbdConnectError` or `NbdProtocolError`. */
export function connectNbd(env: Pick<Env, "clock" | "links">, options: ConnectOptions): Promise<NbdClient> {
  return dialled(env, options.address, options, (session) => enter(session, env.clock, options));
}

/** The same over a stream that is there already, such as a channel of the link. `stream` becomes the client's own. */
export function openNbd(stream: ByteStream, clock: Clock, options: OpenOptions): Promise<NbdClient> {
  return limited(clock, options, (limit) => withSession(stream, clock, limit, (it) => enter(it, clock, options)));
}

/** Dials `address` and runs `work` in a handshake with what answers, all within the time allowed. */
export function dialled<T>(
  env: Pick<Env, "clock" | "links">,
  address: Address,
  options: HandshakeOptions,
  work: (session: HandshakeSession) => Promise<T>,
): Promise<T> {
  return limited(env.clock, options, async (limit) => {
    const stream = await dial(env, address, limit);
    return await withSession(stream, env.clock, limit, work);
  });
}

async function enter(session: HandshakeSession, clock: Clock, options: OpenOptions): Promise<NbdClient> {
  const { exportName, metaContexts = [], dialectMax = "extended", tls = { mode: "off" } } = options;
  checkName(exportName);
  const negotiated = await negotiate(session, { exportName, tls, metaContexts, dialectMax });
  const connection = new NbdConnection({
    ...session.handOver(),
    clock,
    dialect: negotiated.dialect,
    inFlightMax: options.inFlightMax ?? IN_FLIGHT_DEFAULT,
    stallTimeoutMs: options.stallTimeoutMs ?? 0,
  });
  return new NbdClient(connection, negotiated);
}

function checkName(exportName: string): void {
  try {
    encodeString(exportName);
  } catch (cause) {
    const what = `there can be no export named "${printable(exportName)}"`;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new NbdConnectError("unknown-export", { what, why, hint: "List what the server has.", cause });
  }
}

async function dial(env: Pick<Env, "links">, address: Address, limit: AbortSignal): Promise<ByteStream> {
  limit.throwIfAborted();
  let stream: ByteStream;
  try {
    stream = await env.links.dial(address, limit);
  } catch (cause) {
    limit.throwIfAborted();
    throw new NbdConnectError("unreachable", {
      what: `cannot reach the NBD server at ${formatAddress(address)}`,
      why: cause instanceof Error ? cause.message : String(cause),
      hint: "Check that it runs, that the address is right, and that no firewall is in between.",
      cause,
    });
  }
  if (limit.aborted) stream.destroy();
  limit.throwIfAborted();
  return stream;
}

/** Runs `work`; afterwards the stream has been handed over, or the session ended. */
async function withSession<T>(
  stream: ByteStream,
  clock: Clock,
  limit: AbortSignal,
  work: (session: HandshakeSession) => Promise<T>,
): Promise<T> {
  const session = new HandshakeSession(stream, clock);
  const onAbort = (): void => session.destroy(limit.reason);
  limit.addEventListener("abort", onAbort);
  try {
    limit.throwIfAborted();
    return await work(session);
  } catch (error) {
    // A server that answered properly is left properly; everybody else is dropped.
    if (!(error instanceof NbdConnectError)) session.destroy(error instanceof Error ? error : new Error(String(error)));
    throw error;
  } finally {
    limit.removeEventListener("abort", onAbort);
    session.abort();
  }
}

/** Runs `work` with a signal that fires, with an `NbdConnectError`, when time is up or the caller gives up. */
async function limited<T>(
  clock: Clock,
  options: HandshakeOptions,
  work: (limit: AbortSignal) => Promise<T>,
): Promise<T> {
  const { signal, handshakeTimeoutMs = HANDSHAKE_MS_DEFAULT } = options;
  const what = "cannot connect to the NBD server";
  const controller = new AbortController();
  const onSignal = (): void => {
    const failure = {
      what,
      why: "the attempt was given up",
      hint: "Start again when you want to.",
      cause: signal?.reason,
    };
    controller.abort(new NbdConnectError("cancelled", failure));
  };
  const timer = clock.setTimer(handshakeTimeoutMs, () => {
    const why = `the handshake was not over within ${handshakeTimeoutMs / 1000} s`;
    const hint = "The server may be overloaded, or something that is not NBD answers at this address.";
    controller.abort(new NbdConnectError("timeout", { what, why, hint }));
  });
  signal?.addEventListener("abort", onSignal);
  if (signal?.aborted === true) onSignal();
  try {
    return await work(controller.signal);
  } finally {
    timer.cancel();
    signal?.removeEventListener("abort", onSignal);
  }
}
