/**
 * Loads what TLS needs from the files that NBD programs agree on: a directory with `ca-cert.pem`, `server-cert.pem`,
 * `server-key.pem`, `client-cert.pem`, `client-key.pem` (as QEMU, libnbd and nbdkit use), or a file of pre-shared keys.
 *
 * Secrets must be secret: a file that everybody can read is refused, and so is one of our own that a group can read.
 * A file of another owner may be readable by a group, for that may be the only way for us to read it.
 */
import { X509Certificate } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { createSecureContext } from "node:tls";
import { TlsError } from "./tls-error.ts";
import { type PskKeys, parsePskFile } from "./tls-psk.ts";

/** A file of certificates or keys is small; anything larger is not one. */
const FILE_BYTES_MAX = 1024 * 1024;
const DAY_MS = 86_400_000;

export interface X509Credentials {
  readonly kind: "x509";
  /** Who may vouch for the peer. Absent: on a client, the authorities that Node trusts. */
  readonly ca?: Buffer;
  readonly cert?: Buffer;
  readonly key?: Buffer;
  /** Sentences about what will soon be, or already is, a problem. */
  readonly warnings: readonly string[];
}

export interface PskCredentials {
  readonly kind: "psk";
  readonly keys: PskKeys;
}

export type TlsCredentials = X509Credentials | PskCredentials;

/** The server's certificate and key; with `verifyPeer`, also the authority that clients' certificates must come from. */
export async function loadServerCertificates(
  directory: string,
  options: { verifyPeer: boolean; nowMs: number },
): Promise<X509Credentials> {
  const cert = await readPublic(join(directory, "server-cert.pem"));
  const key = await readSecret(join(directory, "server-key.pem"));
  const ca = options.verifyPeer ? await readPublic(join(directory, "ca-cert.pem")) : undefined;
  const warnings = checkPair({ cert, key, ...(ca && { ca }) }, join(directory, "server-cert.pem"), options.nowMs);
  return { kind: "x509", cert, key, ...(ca && { ca }), warnings };
}

/** The authority that the server's certificate must come from, and our own certificate when there is one. */
export async function loadClientCertificates(directory: string, nowMs: number): Promise<X509Credentials> {
  const ca = await readPublic(join(directory, "ca-cert.pem"));
  const certPath = join(directory, "client-cert.pem");
  const cert = await readPublic(certPath, { optional: true });
  if (cert === undefined) {
    checkParses({ ca }, join(directory, "ca-cert.pem"));
    return { kind: "x509", ca, warnings: [] };
  }
  const key = await readSecret(join(directory, "client-key.pem"));
  return { kind: "x509", ca, cert, key, warnings: checkPair({ ca, cert, key }, certPath, nowMs) };
}

/** The keys that clients may use (`name:hexkey` lines). */
export async function loadPskFile(path: string): Promise<PskCredentials> {
  const bytes = await readSecret(path);
  return { kind: "psk", keys: parsePskFile(bytes.toString("utf8"), path) };
}

interface Pem {
  readonly ca?: Buffer;
  readonly cert?: Buffer;
  readonly key?: Buffer;
}

/** Refuses files that do not parse or do not belong together; warns of a certificate that is not valid now. */
function checkPair(pem: Pem & { readonly cert: Buffer }, certPath: string, nowMs: number): string[] {
  checkParses(pem, certPath);
  const certificate = new X509Certificate(pem.cert);
  const from = Date.parse(certificate.validFrom);
  const until = Date.parse(certificate.validTo);
  if (nowMs > until) return [`${certPath} expired on ${certificate.validTo}; peers will refuse it`];
  if (nowMs < from) return [`${certPath} is not valid before ${certificate.validFrom}; peers will refuse it`];
  if (until - nowMs < 14 * DAY_MS) return [`${certPath} expires soon, on ${certificate.validTo}`];
  return [];
}

function checkParses(pem: Pem, path: string): void {
  try {
    createSecureContext({ ...pem, minVersion: "TLSv1.2" });
  } catch (error) {
    throw new TlsError(
      "credentials",
      {
        what: `cannot use the TLS certificate ${path}`,
        why: `the files beside it do not parse or do not belong together (${opensslReason(error)})`,
        hint: "the files must be PEM, without a passphrase, and the key must be the one the certificate was made for",
      },
      { cause: error },
    );
  }
}

/** OpenSSL's own words ("key values mismatch") without its error numbers. */
function opensslReason(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.replace(/^error:[0-9A-Fa-f]+:[^:]*:[^:]*:/, "");
}

async function readPublic(path: string, options: { optional: true }): Promise<Buffer | undefined>;
async function readPublic(path: string): Promise<Buffer>;
async function readPublic(path: string, options?: { optional: true }): Promise<Buffer | undefined> {
  await using file = await openForReading(path, options?.optional ?? false);
  return file && (await readWhole(file, path));
}

async function readSecret(path: string): Promise<Buffer> {
  await using file = await openForReading(path, false);
  if (file === undefined) throw unreadable(path, "it is not there");
  const { mode, uid } = await file.stat();
  const ours = uid === process.geteuid?.();
  const exposed = (mode & 0o007) !== 0 ? "everybody" : ours && (mode & 0o070) !== 0 ? "its group" : undefined;
  if (exposed !== undefined) {
    throw new TlsError("credentials", {
      what: `will not use the TLS secret ${path}`,
      why: `${exposed} has access to it (mode ${(mode & 0o777).toString(8).padStart(4, "0")})`,
      hint: `chmod 600 ${path}, and if others may have read it, make a new one`,
    });
  }
  return await readWhole(file, path);
}

async function openForReading(path: string, optional: boolean): Promise<FileHandle | undefined> {
  try {
    // O_NONBLOCK, so that a named pipe is found out instead of waited for.
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (optional && code === "ENOENT") return undefined;
    if (code === "ENOENT") throw unreadable(path, "it is not there", error);
    if (code === "EACCES") throw unreadable(path, "we may not read it", error);
    throw unreadable(path, code ?? String(error), error);
  }
}

async function readWhole(file: FileHandle, path: string): Promise<Buffer> {
  const stats = await file.stat();
  if (!stats.isFile()) throw unreadable(path, "it is not a regular file");
  if (stats.size > FILE_BYTES_MAX) throw unreadable(path, `it is larger than ${FILE_BYTES_MAX} bytes`);
  return await file.readFile();
}

function unreadable(path: string, why: string, cause?: unknown): TlsError {
  return new TlsError(
    "credentials",
    {
      what: `cannot read the TLS file ${path}`,
      why,
      hint: "--tls-certificates wants a directory with ca-cert.pem, server-cert.pem, server-key.pem; --tls-psk a key file",
    },
    { cause },
  );
}
