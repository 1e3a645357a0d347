/**
 * Where control sockets are: `$BLOCKFERRY_RUNTIME_DIR`, else as root `/run/blockferry`, else `$XDG_RUNTIME_DIR/blockferry`.
 * The directory is ours alone (0700): whoever can put a socket there could be taken for a running instance, and whoever can
 * reach one could stop it.
 */
import { lstatSync, mkdirSync, type Stats } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { CliError } from "../cli-error.ts";
import { EXIT_CONFIG } from "../exit-codes.ts";

type Environment = Readonly<Record<string, string | undefined>>;

export const SOCKET_SUFFIX = ".ctl";
/** sockaddr_un.sun_path, with its terminating NUL. */
const UNIX_PATH_BYTES_MAX = 107;

/** Its path, whether it exists or not. Undefined: this user has none. */
export function runtimeDirectory(env: Environment, uid: number): string | undefined {
  const chosen = env["BLOCKFERRY_RUNTIME_DIR"];
  if (chosen !== undefined && chosen !== "") return resolve(chosen);
  if (uid === 0) return "/run/blockferry";
  const base = env["XDG_RUNTIME_DIR"];
  return base?.startsWith("/") ? join(base, "blockferry") : undefined;
}

/** Makes the directory if need be. Throws `CliError` when it could not be ours alone. */
export function makeRuntimeDirectory(env: Environment, uid: number): string {
  const path = runtimeDirectory(env, uid);
  if (path === undefined) {
    throw directoryError("the runtime directory", "XDG_RUNTIME_DIR is not set", "name a control socket with --control");
  }
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== "EEXIST") throw directoryError(path, message, "make its parent directory, or use --control");
  }
  checkRuntimeDirectory(path, uid);
  return path;
}

/** Throws `CliError` unless `path` is a real directory that only `uid` may enter. False: there is none. */
export function checkRuntimeDirectory(path: string, uid: number): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return false;
  const wrong = notPrivate(found, uid);
  if (wrong !== undefined) throw directoryError(path, wrong, `make it yours alone: chmod 700 ${path}, or remove it`);
  return true;
}

/** A socket path that the operator chose: its directory must exist, and nobody else may be able to replace what is in it. */
export function checkSocketPlace(path: string, uid: number): void {
  const directory = dirname(path);
  const found = lstatSync(directory, { throwIfNoEntry: false });
  const wrong = found === undefined ? "it does not exist" : notSafeParent(found, uid);
  if (wrong !== undefined) throw directoryError(directory, wrong, "choose a directory that only you can write to");
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    const why = `the kernel takes ${UNIX_PATH_BYTES_MAX} bytes for a socket's path, and ${path} has more`;
    throw directoryError(directory, why, "choose a shorter path");
  }
}

function notPrivate(found: Stats, uid: number): string | undefined {
  if (found.isSymbolicLink()) return "it is a symbolic link";
  if (!found.isDirectory()) return "it is not a directory";
  if (found.uid !== uid) return `it belongs to another user (${found.uid})`;
  return (found.mode & 0o077) === 0 ? undefined : `others may use it (mode ${(found.mode & 0o777).toString(8)})`;
}

function notSafeParent(found: Stats, uid: number): string | undefined {
  if (found.isSymbolicLink()) return "it is a symbolic link";
  if (!found.isDirectory()) return "it is not a directory";
  if (found.uid !== uid && found.uid !== 0) return `it belongs to another user (${found.uid})`;
  const sticky = (found.mode & 0o1000) !== 0;
  return sticky || (found.mode & 0o022) === 0 ? undefined : "others may write to it";
}

function directoryError(path: string, why: string, hint: string): CliError {
  return new CliError({
    exitCode: EXIT_CONFIG,
    code: "control",
    what: `cannot keep a control socket in ${path}`,
    why,
    hint,
  });
}
