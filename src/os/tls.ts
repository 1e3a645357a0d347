/**
 * TLS in mid-stream, over node:tls: X.509 (with or without certificates of clients) and pre-shared keys, TLS 1.2 and
 * 1.3. Interoperates with libnbd and QEMU, which use GnuTLS.
 *
 * - A server answers through `tls.createServer().emit("connection")`: only that path sets `authorized`; a bare
 *   `new TLSSocket({ isServer })` leaves it false for good peers as well.
 * - Pre-shared keys prove both sides. A client that has one must therefore never be content with a certificate: it
 *   trusts no authority at all, and looks afterwards whether there was a certificate.
 * - In TLS 1.3 a client believes the handshake done before the server has looked at its certificate; it learns of a
 *   refusal when the connection closes. Nothing was said to it by then.
 */
import type { Socket } from "node:net";
import { isIP } from "node:net";
import { createServer, type TLSSocket, type TlsOptions, connect as tlsConnect } from "node:tls";
import type { ByteStream } from "../env/links.ts";
import type { TlsClient, TlsServer } from "../env/tls.ts";
import { SocketStream } from "./stream.ts";
import type { PskCredentials, TlsCredentials, X509Credentials } from "./tls-credentials.ts";
import { TlsError } from "./tls-error.ts";

export const HANDSHAKE_TIMEOUT_MS = 10_000;

/**
 * TLS 1.3 first (with a pre-shared key OpenSSL uses AES-128 and SHA-256 only), then TLS 1.2 with an ephemeral exchange;
 * never a bare PSK exchange, whose recordings could be read by whoever gets the key later.
 */
const PSK_CIPHERS = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-AES128-GCM-SHA256",
].join(":");

export interface TlsServerOptions {
  readonly credentials: TlsCredentials;
  /** X.509: clients must show a certificate of our authority. */
  readonly verifyPeer: boolean;
  readonly handshakeTimeoutMs?: number;
}

/** The server's side. One object serves any number of streams. */
export class NodeTlsServer implements TlsServer {
  readonly #options: TlsServerOptions;

  constructor(options: TlsServerOptions) {
    this.#options = options;
  }

  accept(stream: ByteStream): Promise<ByteStream> {
    const raw = takeSocket(stream);
    const { credentials, verifyPeer, handshakeTimeoutMs = HANDSHAKE_TIMEOUT_MS } = this.#options;
    let unknownName: string | undefined;
    const identity =
      credentials.kind === "psk"
        ? pskServerOptions(credentials, (name) => {
            unknownName = name;
          })
        : x509ServerOptions(credentials, verifyPeer);
    return new Promise<ByteStream>((resolve, reject) => {
      // A server object of its own for each stream: its events then belong to this stream and to no other.
      const server = createServer({ ...identity, minVersion: "TLSv1.2", handshakeTimeout: handshakeTimeoutMs });
      server.once("secureConnection", (socket) => resolve(protectedStream(socket, stream.peer)));
      server.once("tlsClientError", (error, socket) => {
        socket.destroy();
        raw.destroy();
        const name =
          unknownName === undefined
            ? ""
            : `; it called itself ${JSON.stringify(unknownName)}, which we have no key for`;
        reject(serverSideError(error, socket, name));
      });
      server.emit("connection", raw);
    }).catch((error: Error) => {
      // Nobody else would close it.
      raw.destroy();
      if (error instanceof TlsError) throw error;
      throw new TlsError("credentials", { what: "cannot speak TLS", why: reasonOf(error) }, { cause: error });
    });
  }
}

export interface TlsClientOptions {
  readonly credentials: TlsCredentials | { readonly kind: "system" };
  /** The name that the server's certificate must carry: the host that was dialled, unless told otherwise. */
  readonly serverName: string;
  /** Which of the pre-shared keys is ours. */
  readonly pskName?: string;
  readonly handshakeTimeoutMs?: number;
}

/** The side that dialled. */
export class NodeTlsClient implements TlsClient {
  readonly #options: TlsClientOptions;

  /** Throws `TlsError("credentials")` when there is no key of the name `pskName`. */
  constructor(options: TlsClientOptions) {
    this.#options = options;
    if (options.credentials.kind === "psk") ownKey(options.credentials, options.pskName);
  }

  async connect(stream: ByteStream): Promise<ByteStream> {
    const raw = takeSocket(stream);
    const { credentials, serverName, pskName, handshakeTimeoutMs = HANDSHAKE_TIMEOUT_MS } = this.#options;
    const identity =
      credentials.kind === "psk" ? pskClientOptions(ownKey(credentials, pskName)) : x509ClientOptions(credentials);
    let socket: TLSSocket | undefined;
    try {
      socket = tlsConnect({
        socket: raw,
        host: serverName,
        // RFC 6066: an address is not a server name.
        ...(isIP(serverName) === 0 && { servername: serverName }),
        ...identity,
        rejectUnauthorized: true,
        minVersion: "TLSv1.2",
      });
      await secured(socket, handshakeTimeoutMs);
      if (credentials.kind === "psk" && Object.keys(socket.getPeerCertificate()).length > 0) {
        throw new Error("the server showed a certificate instead of proving that it has the key");
      }
      return protectedStream(socket, stream.peer);
    } catch (error) {
      socket?.destroy();
      raw.destroy();
      throw clientSideError(error as Error, stream.peer);
    }
  }
}

function x509ServerOptions(credentials: X509Credentials, verifyPeer: boolean): TlsOptions {
  const { cert, key, ca } = credentials;
  return {
    ...(cert && { cert }),
    ...(key && { key }),
    ...(ca && { ca }),
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
  };
}

function pskServerOptions({ keys }: PskCredentials, onUnknown: (name: string) => void): TlsOptions {
  return {
    ciphers: PSK_CIPHERS,
    dhparam: "auto",
    pskCallback: (_socket, name) => {
      if (!keys.has(name)) onUnknown(name);
      return keys.keyFor(name);
    },
  };
}

function x509ClientOptions(credentials: X509Credentials | { readonly kind: "system" }): object {
  if (credentials.kind === "system") return {};
  const { ca, cert, key } = credentials;
  return { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) };
}

function pskClientOptions(own: { readonly name: string; readonly key: Buffer }): object {
  return {
    ciphers: PSK_CIPHERS,
    ca: [],
    checkServerIdentity: () => undefined,
    pskCallback: () => ({ identity: own.name, psk: own.key }),
  };
}

function ownKey(credentials: PskCredentials, wanted: string | undefined): { name: string; key: Buffer } {
  const { keys } = credentials;
  const name = wanted ?? (keys.names.length === 1 ? keys.names[0] : undefined);
  if (name !== undefined && keys.has(name)) return { name, key: keys.keyFor(name) };
  throw new TlsError("credentials", {
    what: "cannot tell which TLS key to use",
    why: wanted === undefined ? "the key file has several" : `the key file has none named ${JSON.stringify(wanted)}`,
    hint: "name the key in the URI: nbds://NAME@host",
  });
}

function takeSocket(stream: ByteStream): Socket {
  if (stream instanceof SocketStream) {
    const socket = stream.detachSocket();
    // What goes wrong from now on is reported by the TLS socket above it; an `error` nobody listens to would end us.
    socket.on("error", () => {});
    // Until the peer has proved itself, its leaving ends the attempt; `protectedStream` allows half-closing again.
    socket.allowHalfOpen = false;
    return socket;
  }
  stream.destroy();
  throw new TlsError("unsupported", { what: "cannot start TLS", why: "the connection is not a socket" });
}

function protectedStream(socket: TLSSocket, peer: string): ByteStream {
  socket.allowHalfOpen = true;
  return SocketStream.overDataEvents(socket, peer);
}

function secured(socket: TLSSocket, timeoutMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new HandshakeTimeout(timeoutMs)), timeoutMs);
    const fail = (error?: Error): void => {
      clearTimeout(timer);
      reject(error ?? new Error("the server closed the connection"));
    };
    const failOnClose = (): void => fail();
    socket.once("error", fail);
    socket.once("close", failOnClose);
    socket.once("secureConnect", () => {
      clearTimeout(timer);
      socket.off("error", fail);
      socket.off("close", failOnClose);
      resolve();
    });
  });
}

class HandshakeTimeout extends Error {
  readonly code = "ERR_TLS_HANDSHAKE_TIMEOUT";
  constructor(timeoutMs: number) {
    super(`no handshake within ${timeoutMs} ms`);
  }
}

function serverSideError(error: Error, socket: TLSSocket, addition: string): TlsError {
  const what = "TLS handshake with a client failed";
  const { code } = error as NodeJS.ErrnoException;
  const { authorizationError } = socket;
  if (authorizationError) {
    return new TlsError(
      "untrusted",
      { what, why: `its certificate was not accepted (${String(authorizationError)})` },
      { cause: error },
    );
  }
  if (code === "ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE")
    return new TlsError("untrusted", { what, why: "it showed no certificate" }, { cause: error });
  if (code === "ERR_TLS_HANDSHAKE_TIMEOUT")
    return new TlsError("deadline", { what, why: "it took too long" }, { cause: error });
  const why = `${reasonOf(error)}${addition}`;
  if (code?.includes("_ALERT_"))
    return new TlsError("refused", { what, why: `the client refused us: ${why}` }, { cause: error });
  return new TlsError(addition === "" ? "handshake" : "untrusted", { what, why }, { cause: error });
}

function clientSideError(error: Error, peer: string): TlsError {
  const what = `TLS handshake with ${peer} failed`;
  const { code = "" } = error as NodeJS.ErrnoException;
  if (code === "ERR_TLS_HANDSHAKE_TIMEOUT")
    return new TlsError("deadline", { what, why: error.message }, { cause: error });
  const why = reasonOf(error);
  if (UNTRUSTED.test(code)) {
    return new TlsError(
      "untrusted",
      { what, why: `the server's certificate was not accepted: ${why}` },
      { cause: error },
    );
  }
  if (code.includes("_ALERT_") || code === "ECONNRESET") {
    return new TlsError("refused", { what, why: `the server refused us: ${why}` }, { cause: error });
  }
  return new TlsError("handshake", { what, why }, { cause: error });
}

/** Codes of X.509 verification (`X509_V_ERR_*` without the prefix) and of the check of names. */
const UNTRUSTED =
  /CERT|UNABLE_TO|ISSUER|SELF_SIGNED|ALTNAME|_CRL|INVALID_CA|INVALID_PURPOSE|PATH_LENGTH_EXCEEDED|HOSTNAME_MISMATCH/;

/** OpenSSL's sentence without its numbers and source lines: "tlsv1 alert unknown ca". */
function reasonOf(error: Error): string {
  const { reason } = error as { reason?: unknown };
  if (typeof reason === "string") return reason;
  return error.message.replace(/^[0-9A-F]+:error:[0-9A-Fa-f]+:[^:]*:[^:]*:([^:]*):.*$/s, "$1").trim();
}
