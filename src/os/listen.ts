/** Accepts connections: unix sockets, TCP, and sockets that a service manager hands over. */
import { lstatSync, unlinkSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { FileError } from "../env/files.ts";
import { type Address, type ByteStream, formatAddress } from "../env/links.ts";
import { dial } from "./dial.ts";
import { adoptAccepted } from "./stream.ts";

export type ListenTarget = Address | { readonly kind: "fd"; readonly fd: number };

export interface Listener {
  /** Where clients reach us, with the real port. For an inherited socket, what the kernel says of it. */
  readonly address: Address;
  /** Stops accepting, at once; removes the unix socket that we made. Streams live on. Idempotent. */
  close(): void;
}

const BACKLOG = 128;

/**
 * Listens on `target`; `onStream` owns each accepted stream. A unix socket is made with mode 0600; a stale one is
 * replaced, but only after a connection attempt was refused: one that answers belongs to somebody.
 * Throws `FileError` ("EADDRINUSE", "EACCES", "ENOTSOCK", …).
 */
export async function listenOn(target: ListenTarget, onStream: (stream: ByteStream) => void): Promise<Listener> {
  if (target.kind === "unix") await removeStaleSocket(target.path);
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
  let isUnix = target.kind === "unix";
  server.on("connection", (socket: Socket) => {
    const stream = adoptAccepted(socket, peerName(socket));
    if (isUnix) stream.widenUnix();
    onStream(stream);
  });
  await listening(server, target);
  const address = boundAddress(server, target);
  isUnix = address.kind === "unix";
  let closed = false;
  return {
    address,
    close: () => {
      if (closed) return;
      closed = true;
      server.close(); // libuv unlinks the path of a unix socket
    },
  };
}

async function listening(server: Server, target: ListenTarget): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      // Binding a path happens within the call, and the mode must be right from the first instant on.
      const oldMask = target.kind === "unix" ? process.umask(0o177) : undefined;
      server.listen(listenOptions(target), () => {
        server.off("error", reject);
        resolve();
      });
      if (oldMask !== undefined) process.umask(oldMask);
    });
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? "EIO";
    throw new FileError(code, `cannot listen on ${describe(target)}: ${(cause as Error).message}`, { cause });
  }
}

function listenOptions(target: ListenTarget): {
  path?: string;
  host?: string;
  port?: number;
  fd?: number;
  backlog: number;
} {
  if (target.kind === "unix") return { path: target.path, backlog: BACKLOG };
  if (target.kind === "fd") return { fd: target.fd, backlog: BACKLOG };
  return { host: target.host, port: target.port, backlog: BACKLOG };
}

function describe(target: ListenTarget): string {
  return target.kind === "fd" ? `the inherited file descriptor ${target.fd}` : formatAddress(target);
}

function boundAddress(server: Server, target: ListenTarget): Address {
  const bound = server.address();
  if (typeof bound === "string") return { kind: "unix", path: bound };
  if (bound !== null) return { kind: "tcp", host: bound.address, port: bound.port };
  // Node cannot name an inherited unix socket.
  return target.kind === "fd" ? { kind: "unix", path: `(inherited file descriptor ${target.fd})` } : target;
}

function peerName(socket: Socket): string {
  return socket.remoteAddress === undefined ? "unix" : `${socket.remoteAddress}:${socket.remotePort ?? 0}`;
}

async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket())
    throw new FileError("EEXIST", `cannot listen on unix:${path}: something that is not a socket is there`);
  try {
    const stream = await dial({ kind: "unix", path });
    stream.destroy();
  } catch (error) {
    if (!(error instanceof FileError) || error.code !== "ECONNREFUSED") throw error;
    unlinkSync(path);
    return;
  }
  throw new FileError("EADDRINUSE", `cannot listen on unix:${path}: another process is listening there`);
}
