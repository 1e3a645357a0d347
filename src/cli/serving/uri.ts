/** How clients reach what we serve: the NBD URI (doc/uri.md of the NBD project), and the variables of `--run`. */
import { type Address, formatAddress } from "../../env/links.ts";
import { formatNbdUri } from "../../nbd/uri.ts";
import type { TlsPlan } from "./plan.ts";

export interface ServedAs {
  readonly address: Address;
  readonly exportName: string;
  readonly tls: TlsPlan;
  /** The name that the URI carries when keys are pre-shared. */
  readonly pskName?: string;
}

/** "nbd://127.0.0.1/", "nbd+unix:///vda?socket=/run/…", "nbds://alice@…/?tls-psk-file=…" */
export function formatUri({ address, exportName, tls, pskName }: ServedAs): string {
  const credentials = tls.mode === "require" ? tls.credentials : undefined;
  return formatNbdUri({
    address: dialable(address),
    secure: credentials !== undefined,
    exportName,
    ...(credentials?.kind === "x509" && { tlsCertificates: credentials.directory }),
    ...(credentials?.kind === "psk" && { tlsPskFile: credentials.file }),
    ...(credentials?.kind === "psk" && pskName !== undefined && { user: pskName }),
  });
}

/** Nobody can dial "all addresses"; on this host, loopback is one of them. */
function dialable(address: Address): Address {
  if (address.kind === "unix") return address;
  if (address.host === "0.0.0.0") return { ...address, host: "127.0.0.1" };
  return address.host === "::" ? { ...address, host: "::1" } : address;
}

/**
 * The script that `--run` hands to the shell: the variables that nbdkit sets, then the command. `$nbd` is the older form
 * that some QEMU command lines want.
 */
export function runScript(command: string, served: ServedAs): string {
  const { address, exportName } = served;
  const isUnix = address.kind === "unix";
  const variables = {
    uri: formatUri(served),
    nbd: isUnix ? `nbd:unix:${address.path}` : `nbd:${formatAddress(address)}`,
    unixsocket: isUnix ? address.path : "",
    port: isUnix ? "" : String(address.port),
    exportname: exportName,
  };
  const lines = Object.entries(variables).map(([name, value]) => `${name}=${shellQuote(value)}`);
  return `${lines.join("\n")}\n${command}\n`;
}

/** One word for a POSIX shell, whatever is in it. */
export function shellQuote(text: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
