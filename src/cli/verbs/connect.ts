/** Finds the instance that a verb means, and connects to it. */
import { lstatSync, readdirSync, unlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { ControlClient } from "../../control/client.ts";
import { FileError } from "../../env/files.ts";
import type { ByteStream } from "../../env/links.ts";
import { realClock } from "../../os/clock.ts";
import { dial } from "../../os/dial.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_UNAVAILABLE, EXIT_USAGE } from "../exit-codes.ts";
import { checkRuntimeDirectory, runtimeDirectory, SOCKET_SUFFIX } from "../instance/runtime-directory.ts";

/** Connects to the control socket at `path`, or to that of the only instance that runs. Throws `CliError`. */
export async function connectControl(path: string | undefined): Promise<ControlClient> {
  const stream = path === undefined ? await dialOnlyInstance() : await dialNamed(path);
  return await ControlClient.connect(stream, realClock);
}

async function dialNamed(path: string): Promise<ByteStream> {
  try {
    return await dial({ kind: "unix", path: resolve(path) });
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    const why = GONE.has(error.code) ? "nobody listens there" : error.message;
    throw notRunning(`cannot reach the instance at ${path}`, why, "check --control; the instance may have ended");
  }
}

/** The error codes of a socket whose owner is gone. */
const GONE: ReadonlySet<string> = new Set(["ENOENT", "ECONNREFUSED"]);

async function dialOnlyInstance(): Promise<ByteStream> {
  const answering = await dialEvery(instanceSockets());
  const [first, second] = answering;
  if (first !== undefined && second === undefined) return first.stream;
  for (const { stream } of answering) stream.destroy();
  if (first === undefined) {
    const hint = "start one (`blockferry serve -C SOCKET …`), or name its socket with --control";
    throw notRunning("there is no instance to ask", "no control socket in the runtime directory answers", hint);
  }
  throw new CliError({
    exitCode: EXIT_USAGE,
    code: "several-instances",
    what: "it is not clear which instance is meant",
    why: `${answering.length} are running: ${answering.map(({ path }) => path).join(", ")}`,
    hint: `name one: --control ${first.path}`,
  });
}

/** Where there may be instances: every control socket in the runtime directory. */
export function instanceSockets(): string[] {
  const uid = process.getuid?.() ?? 0;
  const directory = runtimeDirectory(process.env, uid);
  if (directory === undefined || !checkRuntimeDirectory(directory, uid)) return [];
  const names = readdirSync(directory).filter((name) => name.endsWith(SOCKET_SUFFIX));
  return names
    .sort()
    .map((name) => join(directory, name))
    .filter((path) => lstatSync(path, { throwIfNoEntry: false })?.isSocket());
}

/** Those that answer. Sockets that dead instances have left behind are removed. */
async function dialEvery(paths: readonly string[]): Promise<{ path: string; stream: ByteStream }[]> {
  const answering: { path: string; stream: ByteStream }[] = [];
  for (const path of paths) {
    try {
      answering.push({ path, stream: await dial({ kind: "unix", path }) });
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      if (error.code === "ECONNREFUSED") removeStale(path);
    }
  }
  return answering;
}

function removeStale(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody else was quicker, or will be.
  }
}

export function notRunning(what: string, why: string, hint: string): CliError {
  return new CliError({ exitCode: EXIT_UNAVAILABLE, code: "not-running", what, why, hint });
}
