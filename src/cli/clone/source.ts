/** The NBD export that `clone` copies: from its URI to sessions with it. */
import { resolve } from "node:path";
import type { Env } from "../../env/env.ts";
import { formatAddress } from "../../env/links.ts";
import type { NbdClient } from "../../nbd/client/client.ts";
import { formatNbdUri, type NbdUri, NbdUriError, parseNbdUri } from "../../nbd/uri.ts";
import { NodeTlsClient } from "../../os/tls.ts";
import { loadClientCertificates, loadPskFile } from "../../os/tls-credentials.ts";
import { nbdSource } from "../../stream/nbd-source.ts";
import { CliError, usageError } from "../cli-error.ts";
import { EXIT_USAGE } from "../exit-codes.ts";
import type { Log } from "../log.ts";
import { isLoopback } from "../serving/plan.ts";

export interface SourcePlan {
  /** With absolute paths: it is shown, and may be used from anywhere. */
  readonly uri: string;
  readonly parsed: NbdUri;
}

/** Throws a usage error for what is no NBD URI, and for a remote source without TLS unless `insecure`. */
export function planSource(
  text: string,
  { directory, insecure }: { directory: string; insecure: boolean },
): SourcePlan {
  const parsed = absolute(parse(text), directory);
  if (parsed.tlsVerifyPeer === false) {
    const why = "tls-verify-peer=0 would accept anybody as the source";
    throw usageError("cannot use the source", why, "leave it out; tls-hostname= helps where only the name differs");
  }
  const uri = formatNbdUri(parsed);
  if (parsed.secure || insecure || parsed.address.kind === "unix" || isLoopback(parsed.address.host))
    return { uri, parsed };
  throw new CliError({
    exitCode: EXIT_USAGE,
    code: "insecure",
    what: `will not copy from ${formatAddress(parsed.address)} without TLS`,
    why: "everybody on the way could read the disk and change what arrives",
    hint: "use an nbds:// URI (or --insecure, if the network is trusted)",
  });
}

function parse(text: string): NbdUri {
  try {
    return parseNbdUri(text);
  } catch (error) {
    if (!(error instanceof NbdUriError)) throw error;
    throw usageError("cannot use the source", error.message, error.hint);
  }
}

function absolute(uri: NbdUri, directory: string): NbdUri {
  const { address, tlsCertificates, tlsPskFile } = uri;
  return {
    ...uri,
    address: address.kind === "unix" ? { kind: "unix", path: resolve(directory, address.path) } : address,
    ...(tlsCertificates !== undefined && { tlsCertificates: resolve(directory, tlsCertificates) }),
    ...(tlsPskFile !== undefined && { tlsPskFile: resolve(directory, tlsPskFile) }),
  };
}

/** Opens a session; rejects as `connectNbd` does. */
export type ConnectSource = (signal?: AbortSignal) => Promise<NbdClient>;

/** Loads the credentials that the URI names, once. Rejects with `TlsError`. */
export async function sourceConnector(env: Env, { parsed }: SourcePlan, log: Log): Promise<ConnectSource> {
  const tls = parsed.secure ? ({ mode: "require", client: await tlsClient(env, parsed, log) } as const) : undefined;
  return nbdSource(env, { address: parsed.address, exportName: parsed.exportName, ...(tls && { tls }) });
}

async function tlsClient(env: Env, uri: NbdUri, log: Log): Promise<NodeTlsClient> {
  const { address, tlsHostname, tlsPskFile, tlsCertificates, user } = uri;
  const serverName = tlsHostname ?? (address.kind === "tcp" ? address.host : "localhost");
  if (tlsPskFile !== undefined) {
    const credentials = await loadPskFile(tlsPskFile);
    return new NodeTlsClient({ credentials, serverName, ...(user !== undefined && { pskName: user }) });
  }
  if (tlsCertificates === undefined) return new NodeTlsClient({ credentials: { kind: "system" }, serverName });
  const credentials = await loadClientCertificates(tlsCertificates, env.clock.wallMs());
  for (const warning of credentials.warnings) log.warn(warning);
  return new NodeTlsClient({ credentials, serverName });
}
