/** Opens connections: `Env.links` over Node's sockets. */
import { connect, type NetConnectOpts, type Socket } from "node:net";
import { FileError } from "../env/files.ts";
import { type Address, type ByteStream, formatAddress, type Links } from "../env/links.ts";
import { receiveOption, SocketStream } from "./stream.ts";

export const realLinks: Links = { dial };

/** Connects to `address`; a `FileError` names the address and carries the POSIX code ("ECONNREFUSED", "ENOENT", …). */
export async function dial(address: Address, signal?: AbortSignal): Promise<ByteStream> {
  const receive = receiveOption();
  const where = address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
  // Node's own types know `onread` for TCP only; it works for unix sockets alike.
  const socket = connect({ ...where, allowHalfOpen: true, onread: receive.onread } as NetConnectOpts);
  const stream = new SocketStream(socket, formatAddress(address));
  receive.bind(stream);
  try {
    await connected(socket, signal);
  } catch (cause) {
    socket.destroy();
    throw dialError(address, cause);
  }
  if (address.kind === "unix") stream.widenUnix();
  else stream.widenReceive();
  return stream;
}

function connected(socket: Socket, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (error?: unknown): void => {
      socket.off("connect", onConnect);
      socket.off("error", settle);
      signal?.removeEventListener("abort", onAbort);
      if (error === undefined) resolve();
      else reject(error);
    };
    const onConnect = (): void => settle();
    const onAbort = (): void => settle(new FileError("ECANCELED", "the connection attempt was cancelled"));
    socket.on("connect", onConnect);
    socket.on("error", settle);
    if (signal?.aborted === true) onAbort();
    else signal?.addEventListener("abort", onAbort);
  });
}

function dialError(address: Address, cause: unknown): FileError {
  const code = (cause as NodeJS.ErrnoException).code ?? "EIO";
  const why = (cause as Error).message;
  return new FileError(code, `cannot connect to ${formatAddress(address)}: ${why}`, { cause });
}
