/**
 * The NBD servers that are compared: ours and others', each started the way its users start it, on a unix socket in a
 * folder of its own, so that nobody ever talks to a socket that an earlier run left behind; or on a TCP port that was
 * free a moment ago.
 */
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Listen, NbdProbe } from "./nbd-probe.ts";
import { warmProgram } from "./prepare.ts";
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

export interface Served extends AsyncDisposable {
  assertRunning(): void;
  usage(): ServerUsage;
  /** Stops the server; resolves to its loop delay, where the server keeps account of it. */
  stop(): Promise<LoopDelay | undefined>;
}

export interface ServedImage extends Served {
  readonly socketPath: string;
}

export interface ServedPort extends Served {
  readonly port: number;
  readonly uri: string;
}

export interface NbdPeer {
  readonly name: string;
  readonly hint: string;
  readonly versionCommand: readonly [string, ...string[]];
  readonly environment?: Readonly<Record<string, string>>;
  command(request: ServeRequest, listen: Listen): readonly [string, ...string[]];
}

const PEERS_HINT = "run scripts/install-peers";

export const BLOCKFERRY: NbdPeer = {
  name: SUBJECT,
  hint: "run npm ci",
  versionCommand: [LAUNCHER, "--version"],
  command: ({ image, readOnly }, listen) => [
    LAUNCHER,
    "serve",
    ...(typeof listen === "string" ? ["-U", listen] : ["-p", `${listen}`]),
    ...(readOnly ? ["-r"] : []),
    image,
  ],
};

const BUILD_SCRIPT = fileURLToPath(new URL("../../scripts/build.ts", import.meta.url));
const BUILD_TIMEOUT_MS = 60_000;
/** The built program, which is what is installed: it starts in a third of the time that the sources take. */
export const BUILT = { BLOCKFERRY_DIST: "1" } as const;
export const BLOCKFERRY_BUILT: NbdPeer = { ...BLOCKFERRY, environment: BUILT };

/** Builds it from the sources as they are now, so that nobody measures an old one. */
export async function buildBlockferry(): Promise<Presence> {
  try {
    await runTool({ argv: [process.execPath, BUILD_SCRIPT], timeoutMs: BUILD_TIMEOUT_MS });
  } catch (error) {
    return { missing: `it cannot be built: ${(error as Error).message}; ${BLOCKFERRY.hint}` };
  }
  return await presence(BLOCKFERRY.versionCommand, BLOCKFERRY.hint, BUILT);
}

/** The file plugin: as many threads as nbdkit likes (16), page cache used, the plugin's defaults. */
export const NBDKIT: NbdPeer = {
  name: "nbdkit",
  hint: PEERS_HINT,
  versionCommand: ["nbdkit", "--version"],
  command: ({ image, readOnly }, listen) => [
    "nbdkit",
    "--foreground",
    ...(typeof listen === "string" ? ["--unix", listen] : ["--ipaddr=127.0.0.1", `--port=${listen}`]),
    ...(readOnly ? ["--readonly"] : []),
    ...["file", image],
  ],
};

export const QEMU_NBD: NbdPeer = {
  name: "qemu-nbd",
  hint: PEERS_HINT,
  versionCommand: ["qemu-nbd", "--version"],
  command: ({ image, readOnly }, listen) => [
    "qemu-nbd",
    ...["--format=raw", "--cache=writeback", "--aio=threads", "--persistent", "--shared=8"],
    ...(readOnly ? ["--read-only"] : []),
    ...(typeof listen === "string" ? [`--socket=${listen}`] : ["--bind=127.0.0.1", `--port=${listen}`]),
    image,
  ],
};

export type Presence = { readonly version: string } | { readonly missing: string };

/** Asks a program for its version: the first line of what it prints. */
export async function presence(
  command: readonly [string, ...string[]],
  hint: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<Presence> {
  try {
    const { stdout } = await runTool({ argv: command, environment, timeoutMs: VERSION_TIMEOUT_MS });
    return { version: stdout.trim().split("\n")[0] ?? "" };
  } catch (error) {
    return { missing: `${(error as Error).message}; ${hint}` };
  }
}

/** Starts a server on a unix socket and waits until it shakes hands. */
export async function serve(peer: NbdPeer, request: ServeRequest): Promise<ServedImage> {
  const folder = await mkdtemp(join(request.directory, `${peer.name}-`));
  const socketPath = join(folder, "socket");
  return { ...(await start(peer, request, { folder, listen: socketPath })), socketPath };
}

/** Starts a server on a port of 127.0.0.1 and waits until it shakes hands. */
export async function serveTcp(peer: NbdPeer, request: ServeRequest): Promise<ServedPort> {
  const folder = await mkdtemp(join(request.directory, `${peer.name}-`));
  const port = await freePort();
  return { ...(await start(peer, request, { folder, listen: port })), port, uri: `nbd://127.0.0.1:${port}/` };
}

async function start(peer: NbdPeer, request: ServeRequest, at: { folder: string; listen: Listen }): Promise<Served> {
  const { folder, listen } = at;
  const trace = join(folder, "loop-delay.json");
  try {
    const server = await ServerProcess.start({
      name: peer.name,
      argv: peer.command(request, listen),
      environment: {
        ...peer.environment,
        XDG_RUNTIME_DIR: folder,
        ...(request.traceLoopDelay && { BLOCKFERRY_TRACE_LOOP_DELAY: trace }),
      },
      ready: async () => (await NbdProbe.connect(listen))[Symbol.asyncDispose](),
    });
    await warmProgram(server.pid);
    return served(server, folder, trace);
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

function served(server: ServerProcess, folder: string, trace: string): Served {
  return {
    assertRunning: () => server.assertRunning(),
    usage: () => server.usage(),
    stop: async () => {
      await server.stop();
      return await readLoopDelay(trace);
    },
    [Symbol.asyncDispose]: async () => {
      await server[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** A port that nobody listened on just now. Should somebody else be quicker, the server cannot bind and the sample fails. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function readLoopDelay(path: string): Promise<LoopDelay | undefined> {
  try {
    return JSON.parse(await readFile(path, "utf8")) as LoopDelay;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
