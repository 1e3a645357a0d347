/** A target behind a line, and clients before it: plain sockets that share no code with it. */
import { createHash, type Hash } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import type { Address } from "../../../src/env/links.ts";
import type { LineProcess } from "../../../tools/line/client.ts";
import type { Stats } from "../../../tools/line/messages.ts";
import { pattern } from "../../support/patterns.ts";
import type { Prng } from "../../support/seed.ts";

export class Target implements AsyncDisposable {
  readonly address: Address;
  readonly #server: Server;
  readonly #sockets: Socket[] = [];
  readonly #wanted: ((socket: Socket) => void)[] = [];

  constructor(server: Server) {
    this.#server = server;
    const bound = server.address() as AddressInfo | string;
    this.address =
      typeof bound === "string"
        ? { kind: "unix", path: bound }
        : { kind: "tcp", host: bound.address, port: bound.port };
    server.on("connection", (socket: Socket) => {
      const wanted = this.#wanted.shift();
      this.#sockets.push(socket.on("error", () => undefined).setNoDelay(true));
      if (wanted !== undefined) wanted(socket);
      else socket.destroy();
    });
  }

  /** The next connection; ask before it is made. It reads nothing until it is told to. */
  nextSocket(): Promise<Socket> {
    return new Promise((resolve) => this.#wanted.push(resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }
}

/** `path`: of a unix socket; a free TCP port otherwise. */
export async function startTarget(path?: string): Promise<Target> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  if (path === undefined) server.listen(0, "127.0.0.1");
  else server.listen(path);
  await once(server, "listening");
  return new Target(server);
}

/** Rejects when nobody listens. Errors later on only close the socket. */
export async function dialLine({ address }: Pick<LineProcess, "address">): Promise<Socket> {
  const where = address.kind === "tcp" ? { host: address.host, port: address.port } : { path: address.path };
  const socket = connect({ ...where, allowHalfOpen: true });
  socket.pause();
  await once(socket, "connect");
  return socket.on("error", () => undefined).setNoDelay(true);
}

/** Both ends of one connection through `line`. */
export async function throughLine(line: LineProcess, target: Target): Promise<{ near: Socket; far: Socket }> {
  const next = target.nextSocket();
  const near = await dialLine(line);
  return { near, far: await next };
}

/** What a socket brings, from now on. */
export class Receiver {
  bytes = 0;
  readonly hash: Hash = createHash("sha256");
  readonly #socket: Socket;
  #waiting: { readonly bytes: number; readonly done: () => void } | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.bytes += bytes.length;
      this.hash.update(bytes);
      if (this.#waiting !== undefined && this.bytes >= this.#waiting.bytes) this.#waiting.done();
    });
    socket.resume();
  }

  has(bytes: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = { bytes, done: resolve };
      if (this.bytes >= bytes) resolve();
    });
  }

  /** Resolves to what came when the peer has finished, in order or not. */
  async finished(): Promise<number> {
    const socket = this.#socket;
    if (!socket.readableEnded && !socket.closed) {
      await new Promise<void>((resolve) => socket.once("end", resolve).once("close", () => resolve()));
    }
    return this.bytes;
  }
}

/** Writes `length` bytes that encode their own offset, in pieces of random sizes. Resolves to their SHA-256. */
export async function sendPattern(socket: Socket, length: number, rng: Prng): Promise<string> {
  const hash = createHash("sha256");
  for (let offset = 0; offset < length; ) {
    const size = Math.min(length - offset, rng.chance(0.2) ? rng.integer(1, 200) : rng.integer(1, 300_000));
    const bytes = pattern(offset, size);
    hash.update(bytes);
    if (!socket.write(bytes)) await once(socket, "drain");
    offset += size;
  }
  return hash.digest("hex");
}

/** Asks until `holds`; each question is a round trip through the line's process. */
export async function statsWhen(line: LineProcess, holds: (stats: Stats) => boolean): Promise<Stats> {
  for (;;) {
    const stats = await line.stats();
    if (holds(stats)) return stats;
  }
}

/** What was accepted upwards when that has not changed for many questions. */
export async function acceptedAtRest(line: LineProcess): Promise<number> {
  let last = -1;
  for (let same = 0; same < 300; ) {
    const { acceptedBytes } = (await line.stats()).up;
    same = acceptedBytes === last ? same + 1 : 0;
    last = acceptedBytes;
  }
  return last;
}
