/**
 * NBD URIs: `nbd://host[:port]/export`, `nbds://`, `nbd+unix:///export?socket=PATH`, `nbds+unix://user@/…`.
 * doc/uri.md of the NBD project, on top of RFC 3986.
 *
 * Taken apart with the regular expression of RFC 3986, appendix B. `new URL()` does not do: it throws for
 * `nbds+unix://alice@/?socket=…`, and turns "+" into a space. Nothing is guessed: what is not understood is an error
 * that names it.
 */
import type { Address } from "../env/links.ts";
import { NBD_DEFAULT_PORT, NBD_MAX_STRING } from "./constants.ts";

export interface NbdUri {
  readonly address: Address;
  /** nbds: TLS or nothing. */
  readonly secure: boolean;
  /** "" is the server's default export. */
  readonly exportName: string;
  /** For pre-shared keys. */
  readonly user?: string;
  readonly tlsType?: "x509" | "psk";
  /** A folder. */
  readonly tlsCertificates?: string;
  readonly tlsPskFile?: string;
  /** The name that the server's certificate must bear, where it is not the address. */
  readonly tlsHostname?: string;
  readonly tlsVerifyPeer?: boolean;
}

/** `message` says what is wrong with which URI, and why; `hint` what to write instead. */
export class NbdUriError extends Error {
  override readonly name = "NbdUriError";
  readonly hint: string;

  constructor(uri: string, why: string, hint: string) {
    super(`bad NBD URI ${JSON.stringify(uri)}: ${why}`);
    this.hint = hint;
  }
}

const FORMS = "Write nbd://host[:port]/export or nbd+unix:///export?socket=PATH; nbds instead of nbd for TLS.";
const PARAMETERS = "socket, tls-type, tls-certificates, tls-psk-file, tls-hostname and tls-verify-peer";

/** RFC 3986, appendix B, with names. */
const PARTS =
  /^(?:(?<scheme>[^:/?#]+):)?(?:\/\/(?<authority>[^/?#]*))?(?<path>[^?#]*)(?:\?(?<query>[^#]*))?(?:#(?<fragment>.*))?$/s;
const AUTHORITY = /^(?:(?<user>[^@]*)@)?(?<host>\[[^\]]*\]|[^:@[\]]*)(?::(?<port>[^:]*))?$/;
/** Whatever RFC 3986 does not allow anywhere in a URI, and a "%" that encodes nothing. */
const NOT_URI = /[^A-Za-z0-9\-._~:/?#[\]@!$&'()*+,;=%]|%(?![0-9A-Fa-f]{2})/;
const IPV6 = /^[0-9A-Fa-f:.]+(?:%.+)?$/;

/** Throws `NbdUriError`. */
export function parseNbdUri(text: string): NbdUri {
  const fail: Fail = (why, hint = FORMS) => {
    throw new NbdUriError(text, why, hint);
  };
  const foreign = NOT_URI.exec(text)?.[0];
  if (foreign !== undefined)
    fail(`${JSON.stringify(foreign)} must be percent-encoded`, 'Write a space as "%20", a "%" as "%25".');
  const groups = PARTS.exec(text)?.groups ?? {};
  const { scheme, authority, path = "", query, fragment } = groups as Record<string, string | undefined>;
  const { secure, unix } = parseScheme(scheme, fail);
  if (fragment !== undefined) fail('a "#" has no meaning in it');
  if (path !== "" && !path.startsWith("/")) fail("the export's name has no slash before it");
  const exportName = decode(path.slice(1), "the export's name", fail);
  if (exportName.includes("\0")) fail("the export's name contains a NUL");
  if (Buffer.byteLength(exportName) > NBD_MAX_STRING) fail(`the export's name is longer than ${NBD_MAX_STRING} bytes`);
  const { user, host, port } = parseAuthority(authority ?? "", fail);
  const { socket, ...tls } = parseQuery(query, fail);
  let address: Address;
  if (unix) {
    if (host !== "" || port !== undefined) fail("a unix socket has no host");
    if (socket === undefined)
      fail("the parameter socket is missing", "Write nbd+unix:///export?socket=/path/of/socket.");
    address = { kind: "unix", path: socket };
  } else {
    if (host === "") fail("it names no host");
    if (socket !== undefined) fail("the parameter socket does not go with TCP", "Write nbd+unix:// for a unix socket.");
    address = { kind: "tcp", host, port: port ?? NBD_DEFAULT_PORT };
  }
  return { address, secure, exportName, ...(user === undefined ? {} : { user }), ...tls };
}

/** The URI that `parseNbdUri` makes `uri` of. For connecting, and for printing: it contains no secrets, only names of files. */
export function formatNbdUri(uri: NbdUri): string {
  const { address, exportName, user } = uri;
  const unix = address.kind === "unix";
  const scheme = `${uri.secure ? "nbds" : "nbd"}${unix ? "+unix" : ""}`;
  const at = user === undefined ? "" : `${encodeURIComponent(user)}@`;
  const parameters: [string, string | undefined][] = [
    ["socket", unix ? address.path : undefined],
    ["tls-type", uri.tlsType],
    ["tls-certificates", uri.tlsCertificates],
    ["tls-psk-file", uri.tlsPskFile],
    ["tls-hostname", uri.tlsHostname],
    ["tls-verify-peer", uri.tlsVerifyPeer === undefined ? undefined : uri.tlsVerifyPeer ? "1" : "0"],
  ];
  const query = parameters
    .flatMap(([key, value]) => (value === undefined ? [] : [`${key}=${encode(value)}`]))
    .join("&");
  const host = unix ? "" : formatHost(address.host) + (address.port === NBD_DEFAULT_PORT ? "" : `:${address.port}`);
  return `${scheme}://${at}${host}/${encode(exportName)}${query === "" ? "" : `?${query}`}`;
}

type Fail = (why: string, hint?: string) => never;

function parseScheme(scheme: string | undefined, fail: Fail): { secure: boolean; unix: boolean } {
  switch (scheme?.toLowerCase()) {
    case "nbd":
      return { secure: false, unix: false };
    case "nbds":
      return { secure: true, unix: false };
    case "nbd+unix":
      return { secure: false, unix: true };
    case "nbds+unix":
      return { secure: true, unix: true };
    case "nbd+vsock":
    case "nbds+vsock":
      return fail("vsock is not supported", "Use TCP or a unix socket.");
    case undefined:
      return fail("it has no scheme");
    default:
      return fail(`the scheme ${JSON.stringify(scheme)} is not one of NBD's`);
  }
}

function parseAuthority(authority: string, fail: Fail): { user?: string; host: string; port?: number } {
  const groups = AUTHORITY.exec(authority)?.groups ?? fail(`${JSON.stringify(authority)} is not [user@]host[:port]`);
  const { user, host = "", port } = groups as Record<string, string | undefined>;
  return {
    ...(user === undefined ? {} : { user: decode(user, "the user", fail) }),
    host: parseHost(host, fail),
    ...(port === undefined || port === "" ? {} : { port: parsePort(port, fail) }),
  };
}

function parseHost(host: string, fail: Fail): string {
  const bare = host.startsWith("[") ? host.slice(1, -1) : host;
  const decoded = decode(bare, "the host", fail);
  if (host !== bare && !IPV6.test(decoded)) fail(`${JSON.stringify(host)} is not an IPv6 address`);
  return decoded;
}

function parsePort(port: string, fail: Fail): number {
  const number = /^\d{1,5}$/.test(port) ? Number(port) : 0;
  if (number < 1 || number > 65_535) fail(`${JSON.stringify(port)} is not a port`);
  return number;
}

type Parameters = Pick<NbdUri, "tlsType" | "tlsCertificates" | "tlsPskFile" | "tlsHostname" | "tlsVerifyPeer"> & {
  readonly socket?: string;
};

function parseQuery(query: string | undefined, fail: Fail): Parameters {
  const found: { -readonly [K in keyof Parameters]: Parameters[K] } = {};
  const seen = new Set<string>();
  for (const pair of (query ?? "").split("&")) {
    if (pair === "") continue;
    const equals = pair.indexOf("=");
    const key = decode(equals < 0 ? pair : pair.slice(0, equals), "a parameter", fail);
    const value = equals < 0 ? "" : decode(pair.slice(equals + 1), `the parameter ${key}`, fail);
    if (seen.has(key)) fail(`the parameter ${key} is there twice`);
    seen.add(key);
    if (value === "") fail(`the parameter ${key} has no value`);
    // A unix socket of the abstract namespace begins with a NUL; nothing else has one.
    if (value.includes("\0", key === "socket" ? 1 : 0)) fail(`the parameter ${key} contains a NUL`);
    takeParameter(found, key, value, fail);
  }
  return found;
}

function takeParameter(
  found: { -readonly [K in keyof Parameters]: Parameters[K] },
  key: string,
  value: string,
  fail: Fail,
): void {
  switch (key) {
    case "socket":
      found.socket = value;
      break;
    case "tls-type":
      if (value !== "x509" && value !== "psk") fail(`the TLS type ${JSON.stringify(value)} is not x509 or psk`);
      found.tlsType = value;
      break;
    case "tls-certificates":
      found.tlsCertificates = value;
      break;
    case "tls-psk-file":
      found.tlsPskFile = value;
      break;
    case "tls-hostname":
      found.tlsHostname = value;
      break;
    case "tls-verify-peer":
      if (value !== "0" && value !== "1") fail(`tls-verify-peer is 0 or 1, not ${JSON.stringify(value)}`);
      found.tlsVerifyPeer = value === "1";
      break;
    default:
      fail(`there is no parameter ${JSON.stringify(key)}`, `Known are ${PARAMETERS}.`);
  }
}

function decode(text: string, what: string, fail: Fail): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return fail(`${what} is not UTF-8`);
  }
}

/** Slashes, colons and the like need no encoding where we put them, and are easier to read without. */
function encode(text: string): string {
  return encodeURIComponent(text).replace(/%2F|%3A|%40|%2C/g, (code) => decodeURIComponent(code));
}

function formatHost(host: string): string {
  return host.includes(":") ? `[${host.replace("%", "%25")}]` : encodeURIComponent(host);
}
