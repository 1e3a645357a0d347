/**
 * The line's own sockets. They read at most `readBytes` at a time, stop reading at once when told to (Node's `data`
 * events would go on filling a buffer of Node's), and have small kernel buffers, so that little waits where the line
 * does not see it.
 */
import { connect, type NetConnectOpts, type Server, Socket, type SocketConstructorOpts } from "node:net";
import type { Address } from "../../src/env/links.ts";
import { loadNative, type Native, type NativeFunction } from "../../src/os/native.ts";

/** Asked of the kernel, which doubles it for its own bookkeeping. Smaller ones slow down 1 Gb/s. */
export const KERNEL_BUFFER_BYTES = 128 * 1024;

// <asm-generic/socket.h>
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const INT_BYTES = 4;

interface WithHandle {
  _handle: { readonly fd?: number } | null;
}

/** Called with what was read, valid until the call returns. False: read no more until `resume()`. */
export type OnRead = (bytes: Uint8Array) => boolean;

/** Makes a socket that reads to `onRead` of one that a server with `pauseOnConnect` accepted. */
export function adoptSocket(accepted: Socket, readBytes: number, onRead: OnRead): Socket {
  const shell = accepted as unknown as WithHandle;
  const handle = shell._handle;
  shell._handle = null;
  // Not `noDelay` here: for a handle that is there already Node would note that it is set, and never set it.
  const options = { handle, allowHalfOpen: true, onread: receiver(readBytes, onRead) };
  return shrunk(new Socket(options as unknown as SocketConstructorOpts));
}

export function dialSocket(to: Address, readBytes: number, onRead: OnRead): Socket {
  const where = to.kind === "unix" ? { path: to.path } : { host: to.host, port: to.port };
  const onread = receiver(readBytes, onRead);
  const socket = connect({ ...where, allowHalfOpen: true, noDelay: true, onread } as NetConnectOpts);
  socket.once("connect", () => shrunk(socket));
  return socket;
}

/** Before connections come, so that the window they offer is small from the start. */
export function shrinkServer(server: Server): void {
  shrink(server as unknown as WithHandle);
}

function shrunk(socket: Socket): Socket {
  socket.setNoDelay(true);
  shrink(socket as unknown as WithHandle);
  return socket;
}

function receiver(readBytes: number, onRead: OnRead) {
  const buffer = new Uint8Array(readBytes);
  return { buffer, callback: (length: number) => onRead(buffer.subarray(0, length)) };
}

/** How long a receiver that does not read can put off the reset that ends its connection. */
const SENT_WAIT_MS_MAX = 1000;
/** When the kernel cannot be asked: over loopback, what was written has long arrived by then. */
const SENT_GUESS_MS = 50;
// <asm-generic/ioctls.h>: what was written and not acknowledged
const SIOCOUTQ = 0x5411;

/**
 * Calls `then` when all that was written to `socket` is in its peer's kernel: a reset drops what is in ours, and a cut
 * is to fall on a byte. Looks every millisecond; a cut is rare.
 */
export function whenSent(socket: Socket, then: () => void, waitedMs = 0): void {
  const unsent = socket.writableLength + unacknowledged(socket, waitedMs);
  if (unsent === 0 || socket.destroyed || waitedMs >= SENT_WAIT_MS_MAX) then();
  else setTimeout(() => whenSent(socket, then, waitedMs + 1), 1);
}

/** A unix socket knows no RST; its peer sees the end, or ECONNRESET when it left something unread. */
export function resetSocket(socket: Socket): void {
  if (socket.remoteAddress === undefined) socket.destroy();
  else socket.resetAndDestroy();
}

function unacknowledged(socket: Socket, waitedMs: number): number {
  // A unix socket writes straight into its peer's queue.
  if (socket.remoteAddress === undefined) return 0;
  const fd = (socket as unknown as WithHandle)._handle?.fd;
  if (calls === undefined || fd === undefined) return waitedMs < SENT_GUESS_MS ? 1 : 0;
  return calls.ioctl(fd, SIOCOUTQ, calls.native.addressOf(outQueue.buffer)) === 0 ? (outQueue[0] ?? 0) : 0;
}

interface Calls {
  readonly native: Native;
  readonly setsockopt: NativeFunction;
  readonly ioctl: NativeFunction;
}
const calls = bindCalls();
const optionValue = new Int32Array([KERNEL_BUFFER_BYTES]);
const outQueue = new Int32Array(1);

function bindCalls(): Calls | undefined {
  const loaded = loadNative();
  if (loaded.state === "off") return undefined;
  const { native } = loaded;
  const setsockopt = native.bind("setsockopt", "int", ["int", "int", "int", "uintptr_t", "uint32_t"]);
  const ioctl = native.bind("ioctl", "int", ["int", "uintptr_t", "uintptr_t"]);
  return setsockopt && ioctl && { native, setsockopt, ioctl };
}

/** Does nothing without native calls. */
function shrink(owner: WithHandle): void {
  const fd = owner._handle?.fd;
  if (calls === undefined || fd === undefined || fd < 0) return;
  const address = calls.native.addressOf(optionValue.buffer);
  calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, address, INT_BYTES);
  calls.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, address, INT_BYTES);
}
