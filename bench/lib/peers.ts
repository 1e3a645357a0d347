/**
 * The NBD servers that are compared: ours and others', each started the way its users start it, on a unix socket in a
 * folder of its own, so that nobody ever talks to a socket that an earlier run left behind.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { NbdProbe } from "./nbd-probe.ts";
import { runTool, ServerProcess, type ServerUsage } from "./process.ts";
import { SUBJECT } from "./suite.ts";

const VERSION_TIMEOUT_MS = 10_000;
export const LAUNCHER = fileURLToPath(new URL("../../bin/blockferry", import.meta.url));

export interface ServeRequest {
  readonly image: string;
  readonly readOnly: boolean;
  /** Have our server keep account of its loop delay, which costs it some µs a request when there are few requests. */
  readonly traceLoopDelay?: boolean;
  /** Holds the folder of the socket. */
  readonly directory: string;
}

/**
 * How far apart ticks of a 1 ms timer came in our server's event loop: 1 ms when it was idle, more when callbacks had to
 * wait. From the start of the process to its end.
 */
export interface LoopDelay {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export interface ServedImage extends AsyncDisposable {
  readonly socketPath: string;
  assertRunning(): void;
  usage(): ServerUsage;
  /** Stops the server; resolves to its loop delay, where the server keeps account of it. */
  stop(): Promise<LoopDelay | undefined>;
}

export interface NbdPeer {
  readonly name: string;
  readonly hint: string;
  readonly versionCommand: readonly [string, ...string[]];
  command(request: ServeRequest, socketPath: string): readonly [string, ...string[]];
}

const PEERS_HINT = "run scripts/install-peers";

export const BLOCKFERRY: NbdPeer = {
  name: SUBJECT,
  hint: "run npm ci",
  versionCommand: [LAUNCHER, "--version"],
  command: ({ image, readOnly }, socket) => [LAUNCHER, "serve", "-U", socket, ...(readOnly ? ["-r"] : []), image],
};

/** The file plugin: as many threads as nbdkit likes (16), page cache used, the plugin's defaults. */
export const NBDKIT: NbdPeer = {
  name: "nbdkit",
  hint: PEERS_HINT,
  versionCommand: ["nbdkit", "--version"],
  command: ({ image, readOnly }, socket) => [
    "nbdkit",
    "--foreground",
    ...["--unix", socket],
    ...(readOnly ? ["--readonly"] : []),
    ...["file", image],
  ],
};

export const QEMU_NBD: NbdPeer = {
  name: "qemu-nbd",
  hint: PEERS_HINT,
  versionCommand: ["qemu-nbd", "--version"],
  command: ({ image, readOnly }, socket) => [
    "qemu-nbd",
    ...["--format=raw", "--cache=writeback", "--aio=threads", "--persistent", "--shared=8"],
    ...(readOnly ? ["--read-only"] : []),
    `--socket=${socket}`,
    image,
  ],
};

export type Presence = { readonly version: string } | { readonly missing: string };

/** Asks a program for its version: the first line of what it prints. */
export async function presence(command: readonly [string, ...string[]], hint: string): Promise<Presence> {
  try {
    const { stdout } = await runTool({ argv: command, timeoutMs: VERSION_TIMEOUT_MS });
    return { version: stdout.trim().split("\n")[0] ?? "" };
  } catch (error) {
    return { missing: `${(error as Error).message}; ${hint}` };
  }
}

/** Starts a server and waits until it shakes hands. */
export async function serve(peer: NbdPeer, request: ServeRequest): Promise<ServedImage> {
  const folder = await mkdtemp(join(request.directory, `${peer.name}-`));
  const socketPath = join(folder, "socket");
  const trace = join(folder, "loop-delay.json");
  try {
    const server = await ServerProcess.start({
      name: peer.name,
      argv: peer.command(request, socketPath),
      environment: { XDG_RUNTIME_DIR: folder, ...(request.traceLoopDelay && { BLOCKFERRY_TRACE_LOOP_DELAY: trace }) },
      ready: async () => (await NbdProbe.connect(socketPath))[Symbol.asyncDispose](),
    });
    return served(server, { folder, socketPath, trace });
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

function served(server: ServerProcess, at: { folder: string; socketPath: string; trace: string }): ServedImage {
  return {
    socketPath: at.socketPath,
    assertRunning: () => server.assertRunning(),
    usage: () => server.usage(),
    stop: async () => {
      await server.stop();
      return await readLoopDelay(at.trace);
    },
    [Symbol.asyncDispose]: async () => {
      await server[Symbol.asyncDispose]();
      await rm(at.folder, { recursive: true, force: true });
    },
  };
}

async function readLoopDelay(path: string): Promise<LoopDelay | undefined> {
  try {
    return JSON.parse(await readFile(path, "utf8")) as LoopDelay;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
