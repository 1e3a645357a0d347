/**
 * What `serve` was asked to do, checked as a whole: pure functions from flags and inherited sockets to a plan, or to a
 * usage error. Nothing is opened here.
 */
import { isIPv4, isIPv6 } from "node:net";
import { resolve } from "node:path";
import type { ChainLink } from "../../image/chain.ts";
import { NBD_DEFAULT_PORT, NBD_MAX_STRING } from "../../nbd/constants.ts";
import { CliError, usageError } from "../cli-error.ts";
import { EXIT_USAGE } from "../exit-codes.ts";
import type { LogFormat, LogLevel } from "../log.ts";
import type { Conflicts } from "../settings/settings.ts";
import type { InheritedSocket } from "./socket-activation.ts";

/** The flags, as commander and the layers of settings deliver them. */
export interface ServeFlags {
  readonly unix?: string;
  readonly socket?: string;
  readonly port?: number;
  readonly bind?: string;
  readonly exportName?: string;
  readonly description?: string;
  readonly readOnly?: true | boolean;
  readonly format?: string;
  readonly shared?: number;
  readonly tls?: "off" | "on" | "require";
  readonly tlsCertificates?: string;
  readonly tlsPsk?: string;
  readonly tlsVerifyPeer?: true | boolean;
  readonly insecure?: true | boolean;
  readonly fork?: true | boolean;
  readonly pidFile?: string;
  readonly control?: string;
  readonly exitWithParent?: true | boolean;
  readonly run?: string;
  readonly logLevel?: LogLevel;
  readonly logFormat?: LogFormat;
  readonly logFile?: string;
  readonly json?: true | boolean;
}

const SERVING_CONFLICTS: Conflicts = [
  ["unix", "socket"],
  ["unix", "port"],
  ["unix", "bind"],
  ["socket", "port"],
  ["socket", "bind"],
  ["tls-certificates", "tls-psk"],
  ["fork", "exit-with-parent"],
];

export const SERVE_CONFLICTS: Conflicts = [
  ...SERVING_CONFLICTS,
  ["insecure", "tls"],
  ["insecure", "tls-certificates"],
  ["insecure", "tls-psk"],
  ["fork", "run"],
];

/** `--insecure` may be for the source alone. */
export const CLONE_CONFLICTS: Conflicts = SERVING_CONFLICTS;

export type ListenPlan =
  | { readonly kind: "unix"; readonly path: string }
  /** A socket in a new directory that only we can enter, gone when we exit. */
  | { readonly kind: "private-unix" }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "inherited"; readonly sockets: readonly InheritedSocket[] };

export type TlsPlan =
  | { readonly mode: "off"; readonly deliberate: boolean }
  | { readonly mode: "on" | "require"; readonly credentials: CredentialsPlan };

export type CredentialsPlan =
  | { readonly kind: "x509"; readonly directory: string; readonly verifyPeer: boolean }
  | { readonly kind: "psk"; readonly file: string };

export interface ServePlan {
  readonly image: string;
  readonly format: string | undefined;
  /** What the image lies over, the next one first; by default nothing. */
  readonly below?: readonly ChainLink[];
  readonly readOnly: boolean;
  readonly exportName: string;
  readonly description: string | undefined;
  readonly listen: ListenPlan;
  readonly tls: TlsPlan;
  /** Connections at the same time; undefined: the server's own limit. */
  readonly connectionsMax: number | undefined;
  readonly pidFile: string | undefined;
  /** Where the control socket is to be; undefined: there is none. */
  readonly control: string | undefined;
  readonly exitWithParent: boolean;
  /** A shell command to serve for, and no longer. */
  readonly run: string | undefined;
  readonly json: boolean;
}

export interface Surroundings {
  readonly directory: string;
  readonly inherited: readonly InheritedSocket[];
}

/** sockaddr_un.sun_path, with its terminating NUL. */
const UNIX_PATH_BYTES_MAX = 107;

export function planServe(image: string, flags: ServeFlags, around: Surroundings): ServePlan {
  if (image === "")
    throw usageError("there is no image to serve", "IMAGE is empty", "name an image file or a block device");
  const { exportName = "", description, shared = 0 } = flags;
  checkText("--export-name", exportName);
  checkText("--description", description ?? "");
  const listen = planListen(flags, around);
  const tls = planTls(flags, around.directory);
  if (listen.kind === "tcp") checkExposure(listen.host, tls);
  return {
    image,
    format: flags.format,
    readOnly: flags.readOnly ?? false,
    exportName,
    description,
    listen,
    tls,
    connectionsMax: shared === 0 ? undefined : shared,
    pidFile: flags.pidFile === undefined ? undefined : resolve(around.directory, flags.pidFile),
    control: flags.control === undefined ? undefined : checkedSocketPath(flags.control, around.directory, "--control"),
    exitWithParent: flags.exitWithParent ?? false,
    run: flags.run,
    json: flags.json ?? false,
  };
}

function planListen(flags: ServeFlags, around: Surroundings): ListenPlan {
  const path = flags.unix ?? flags.socket;
  const { port, bind = "127.0.0.1" } = flags;
  if (around.inherited.length > 0) {
    refuseWithInherited(flags);
    return { kind: "inherited", sockets: around.inherited };
  }
  if (path === "-") return { kind: "private-unix" };
  if (path !== undefined) return { kind: "unix", path: checkedSocketPath(path, around.directory, "--unix") };
  if (flags.run !== undefined && port === undefined && flags.bind === undefined) return { kind: "private-unix" };
  if (bind === "") throw usageError("cannot use --bind", "the address is empty", "leave it out for 127.0.0.1");
  return { kind: "tcp", host: bind, port: port ?? NBD_DEFAULT_PORT };
}

function refuseWithInherited(flags: ServeFlags): void {
  const { unix, socket, port, bind, fork, run } = flags;
  const rival = Object.entries({ unix, socket, port, bind, fork: fork || undefined, run }).find(
    ([, value]) => value !== undefined,
  );
  if (rival === undefined) return;
  const why = "a service manager handed us the sockets to listen on (LISTEN_FDS)";
  throw usageError(
    `cannot use --${rival[0]} here`,
    why,
    `leave --${rival[0]} out, or start us without socket activation`,
  );
}

function checkedSocketPath(path: string, directory: string, flag: "--unix" | "--control"): string {
  if (path === "" || path.includes("\0"))
    throw usageError(`cannot use ${flag}`, "the path is empty or has a NUL in it", "name a path");
  const absolute = resolve(directory, path);
  const bytes = Buffer.byteLength(absolute);
  if (bytes <= UNIX_PATH_BYTES_MAX) return absolute;
  const why = `the kernel takes ${UNIX_PATH_BYTES_MAX} bytes for a socket's path, and ${absolute} has ${bytes}`;
  const hint = flag === "--unix" ? "choose a shorter path, or `-U -` for one that we choose" : "choose a shorter path";
  throw usageError(`cannot use ${flag}`, why, hint);
}

export function planTls(
  flags: Pick<ServeFlags, "tls" | "tlsCertificates" | "tlsPsk" | "tlsVerifyPeer" | "insecure">,
  cwd: string,
): TlsPlan {
  const { tlsVerifyPeer: verifyPeer = false, insecure = false } = flags;
  const credentials = planCredentials(flags, cwd);
  if (verifyPeer && credentials?.kind !== "x509") {
    const why = credentials ? "a pre-shared key proves the client already" : "there are no certificates to verify with";
    throw usageError("cannot use --tls-verify-peer", why, "use it with --tls-certificates=DIR");
  }
  const mode = flags.tls ?? (credentials ? "require" : "off");
  if (mode === "off") return { mode, deliberate: insecure || flags.tls === "off" };
  if (credentials !== undefined) return { mode, credentials };
  throw usageError(
    `cannot use --tls=${mode}`,
    "there are no credentials",
    "add --tls-certificates=DIR or --tls-psk=FILE",
  );
}

/** Paths become absolute: the URI that we print may be used from anywhere. */
function planCredentials(
  flags: Pick<ServeFlags, "tlsCertificates" | "tlsPsk" | "tlsVerifyPeer">,
  cwd: string,
): CredentialsPlan | undefined {
  const { tlsCertificates, tlsPsk, tlsVerifyPeer: verifyPeer = false } = flags;
  if (tlsCertificates !== undefined) return { kind: "x509", directory: resolve(cwd, tlsCertificates), verifyPeer };
  return tlsPsk === undefined ? undefined : { kind: "psk", file: resolve(cwd, tlsPsk) };
}

/** Off loopback, everybody on the way could read and change the disk: only on request. */
export function checkExposure(host: string, tls: TlsPlan): void {
  if (isLoopback(host) || tls.mode !== "off" || tls.deliberate) return;
  throw new CliError({
    exitCode: EXIT_USAGE,
    code: "insecure",
    what: `will not serve on ${host} without TLS`,
    why: "everybody who reaches that address could read and change the disk",
    hint: "add --tls-psk=FILE or --tls-certificates=DIR (or --insecure, if the network is trusted)",
  });
}

export function isLoopback(host: string): boolean {
  if (isIPv4(host)) return host.startsWith("127.");
  if (isIPv6(host)) return host === "::1" || host.toLowerCase().startsWith("::ffff:127.");
  return host === "localhost";
}

function checkText(flag: string, text: string): void {
  if (text.includes("\0")) throw usageError(`cannot use ${flag}`, "it has a NUL in it", "leave it out");
  if (Buffer.byteLength(text) <= NBD_MAX_STRING) return;
  throw usageError(
    `cannot use ${flag}`,
    `NBD allows ${NBD_MAX_STRING} bytes, and it has ${Buffer.byteLength(text)}`,
    "shorten it",
  );
}
