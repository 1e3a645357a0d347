/** What an NBD URI says of a disk, in the words of QEMU and libvirt. Pure. */
import { basename, dirname } from "node:path";
import { type NbdUri, NbdUriError, parseNbdUri } from "../../nbd/uri.ts";
import { usageError } from "../cli-error.ts";

export interface PrintedDisk {
  readonly uri: NbdUri;
  /** Of its node and device: the export's, where that will do. */
  readonly id: string;
}

export interface DiskStyle {
  readonly stopOnError: boolean;
}

/** What QEMU and libvirt wait for a server that went away, in seconds: longer than a restart of ours takes. */
export const RECONNECT_SECONDS = 60;
/** And for one that is not there yet. */
export const OPEN_SECONDS = 10;

/** QEMU's node names: 31 characters. */
const ID = /^[A-Za-z][A-Za-z0-9._-]{0,30}$/;
/** QEMU looks for keys under this name, and for no other. */
const PSK_NAME = "keys.psk";

export function planPrintedDisks(uris: readonly string[]): readonly PrintedDisk[] {
  const parsed = uris.map(parse);
  const names = parsed.map(({ exportName }) => exportName);
  const isGood = names.every((name) => ID.test(name)) && new Set(names).size === names.length;
  return parsed.map((uri, index) => ({ uri, id: isGood ? uri.exportName : `disk${index}` }));
}

/** How QEMU proves itself: the folder with its credentials. Undefined: no TLS. */
export function tlsFolder({
  secure,
  tlsCertificates,
  tlsPskFile,
}: NbdUri): { readonly kind: "x509" | "psk"; readonly folder: string } | undefined {
  if (!secure) return undefined;
  if (tlsCertificates !== undefined) return { kind: "x509", folder: tlsCertificates };
  if (tlsPskFile !== undefined && basename(tlsPskFile) === PSK_NAME)
    return { kind: "psk", folder: dirname(tlsPskFile) };
  const why =
    tlsPskFile === undefined ? "the URI names no credentials" : `QEMU takes keys from a file called ${PSK_NAME}`;
  const hint = `add tls-certificates=DIR, or tls-psk-file=DIR/${PSK_NAME}, to the URI`;
  throw usageError("cannot print a disk with TLS", why, hint);
}

function parse(text: string): NbdUri {
  try {
    return parseNbdUri(text);
  } catch (error) {
    if (error instanceof NbdUriError) throw usageError("cannot use a disk", error.message, error.hint);
    throw error;
  }
}
