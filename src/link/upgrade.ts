/**
 * From an NBD session to a link: one private option, before GO, and after TLS where TLS is required.
 *
 * ```
 * option 0x626c6b66   0 u16 version   2 u16 zero                                                  (4)
 * ```
 *
 * ACK: what follows, both ways, are frames. ERR_UNSUP: the server does not know the option (as every other NBD server
 * says), or not this version. ERR_INVALID: the data are not of this form.
 */
import type { Env } from "../env/env.ts";
import type { Address, ByteStream } from "../env/links.ts";
import { dialled } from "../nbd/client/connect.ts";
import { open, type TlsChoice, told } from "../nbd/client/negotiate.ts";
import { refusal } from "../nbd/client/refusal.ts";
import { NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_UNSUP } from "../nbd/constants.ts";
import type { SessionUpgrade } from "../nbd/server/connection.ts";
import { LINK_VERSION, NBD_OPT_BLOCKFERRY_LINK } from "./constants.ts";
import type { Link } from "./link.ts";

const UPGRADE_BYTES = 4;

export interface UpgradeOptions {
  readonly address: Address;
  readonly tls: TlsChoice;
  readonly signal?: AbortSignal;
  readonly handshakeTimeoutMs?: number;
}

/** A connection that carries frames from now on. */
export interface Upgraded {
  readonly stream: ByteStream;
  /** Bytes that have arrived behind the upgrade. */
  readonly rest: Uint8Array;
}

/** Dials a link port and upgrades the session. Rejects with `NbdConnectError` or `NbdProtocolError`. */
export function dialLink(env: Pick<Env, "clock" | "links">, options: UpgradeOptions): Promise<Upgraded> {
  const { address, tls, signal, handshakeTimeoutMs } = options;
  const limits = {
    tls,
    ...(signal === undefined ? {} : { signal }),
    ...(handshakeTimeoutMs === undefined ? {} : { handshakeTimeoutMs }),
  };
  return dialled(env, address, limits, async (session) => {
    await open(session, tls);
    const request = { option: NBD_OPT_BLOCKFERRY_LINK, data: encodeUpgrade(LINK_VERSION) };
    const asked = session.option({ ...request, ackState: "awaiting-reply" });
    const outcome = await told(asked, `cannot set up the link with ${session.peer}`);
    if (outcome.kind === "error") throw refusal(outcome, session);
    return session.handOver();
  });
}

export function encodeUpgrade(version: number): Uint8Array {
  return Uint8Array.of(version >> 8, version & 0xff, 0, 0);
}

/**
 * What makes a link port of an NBD server; connections go to whichever link there is when they come. Its exports should be
 * read-only: nothing else guards them from plain clients.
 */
export function linkPort(link: () => Link): SessionUpgrade {
  return {
    option: NBD_OPT_BLOCKFERRY_LINK,
    answer: answerUpgrade,
    take: (stream, rest) => void link().attach(stream, rest),
  };
}

/** What a server that has a link answers to the option: the type of its reply. */
export function answerUpgrade(data: Uint8Array): number {
  if (data.length !== UPGRADE_BYTES || data[2] !== 0 || data[3] !== 0) return NBD_REP_ERR_INVALID;
  const version = ((data[0] as number) << 8) | (data[1] as number);
  return version === LINK_VERSION ? NBD_REP_ACK : NBD_REP_ERR_UNSUP;
}
