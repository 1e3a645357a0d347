/**
 * `ByteStream` over a Node socket (TCP, unix or TLS).
 *
 * Receiving: every plain socket reads into one static buffer, shared by all sockets of the process: libuv fills it and
 * calls us before it reads from any other socket, and a sink may not keep the bytes. 2 GiB over loopback take 0.24 CPU
 * seconds so, against 0.59 with `data` events. A sink that waits for a long run of bytes names their place
 * (`receiveInto`), and the kernel puts them there. Node offers that (`onread`) only when a socket is constructed, hence
 * `adoptAccepted` for accepted ones. TLS sockets deliver `data` events.
 *
 * Sending: while nothing is queued, straight to the kernel (`nowait-sender.ts`); what it does not take, and everything on
 * TLS sockets, goes through Node's stream, which keeps the order and waits. `writableLength` is zero after a write that the kernel took whole, long before
 * the write's callback runs; `release` is called then, so that a caller can go on with the same buffer.
 */
import { Socket, type SocketConstructorOpts } from "node:net";
import type { TLSSocket } from "node:tls";
import type { ByteSink, ByteStream } from "../env/links.ts";
import { NowaitSender } from "./nowait-sender.ts";
import { SocketOptions } from "./socket-options.ts";

/** Fits the level-two cache together with a reply buffer; larger ones were not faster. */
const RECEIVE_BUFFER_BYTES = 256 * 1024;
const receiveBuffer = Buffer.allocUnsafeSlow(RECEIVE_BUFFER_BYTES);
const KEEP_ALIVE_AFTER_MS = 60_000;

/** What Node does not declare: the libuv handle below a socket. */
interface SocketWithHandle {
  _handle: { readonly fd?: number } | null;
}

/** Made with the first stream; null: there are no native calls. */
let sharedSender: NowaitSender | null | undefined;
let sharedOptions: SocketOptions | null | undefined;

export class SocketStream implements ByteStream {
  readonly peer: string;
  readonly #socket: Socket;
  #sink: ByteSink | undefined;
  /** One entry per write, in order; undefined when it was released during the call. */
  #releases: ((() => void) | undefined)[] = [];
  #mustDrain = false;
  /** Of a stream that is lost and not closed yet. */
  #lostBytes = 0;
  #error: Error | undefined;
  /** The peer has finished sending, and whether the sink was told. */
  #ended = false;
  #endTold = false;
  #closed = false;
  #wantsPause = false;
  /** Undefined on sockets that bytes may not be put into from the side (TLS). */
  #sender: NowaitSender | undefined;
  readonly #onWritten = (error?: Error | null): void => {
    // The stream is lost. Buffers released now would look like room for more: they are released after the close.
    if (error === undefined || error === null) this.#settleWrite();
  };

  /** For sockets made elsewhere (TLS); they deliver `data` events. */
  static overDataEvents(socket: Socket | TLSSocket, peer: string): SocketStream {
    const stream = new SocketStream(socket, peer);
    stream.#sender = undefined;
    socket.on("data", (bytes: Buffer) => stream.received(bytes));
    return stream;
  }

  /** @internal Use `overDataEvents`, `adoptAccepted` or `dial`. */
  constructor(socket: Socket, peer: string) {
    this.#socket = socket;
    this.peer = peer;
    sharedSender ??= NowaitSender.create() ?? null;
    sharedOptions ??= SocketOptions.create() ?? null;
    this.#sender = sharedSender ?? undefined;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_AFTER_MS);
    socket.pause();
    socket.on("end", this.#onEnd);
    socket.on("error", this.#onError);
    socket.on("close", this.#onClose);
  }

  get pendingBytes(): number {
    return this.#socket.writableLength + this.#lostBytes;
  }

  attach(sink: ByteSink): void {
    this.#sink = sink;
    if (this.#closed) {
      sink.onClose(this.#error);
      return;
    }
    if (!this.#wantsPause) this.resume();
  }

  write(bytes: Uint8Array, release?: () => void): void {
    if (this.#isLost) {
      this.#keepUntilClosed(bytes.length, release);
      return;
    }
    const taken = this.#sendNow(bytes);
    if (taken === bytes.length) {
      release?.();
      return;
    }
    const socket = this.#socket;
    socket.write(taken === 0 ? bytes : bytes.subarray(taken), this.#onWritten);
    if (this.#isLost) this.#keepUntilClosed(bytes.length, release);
    else if (socket.writableLength === 0) {
      this.#releases.push(undefined);
      release?.();
    } else {
      this.#releases.push(release);
      this.#mustDrain = true;
    }
  }

  keepShort(unsentBytes: number): void {
    const fd = this.#fd;
    if (fd >= 0) sharedOptions?.limitUnsent(fd, unsentBytes);
  }

  pause(): void {
    this.#wantsPause = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#wantsPause = false;
    if (this.#sink !== undefined) this.#socket.resume();
    if (this.#ended && !this.#endTold) process.nextTick(this.#tellEnd);
  }

  end(): void {
    this.#socket.end();
  }

  destroy(error?: Error): void {
    this.#error ??= error;
    this.#socket.destroy();
  }

  /** Gives the socket up, paused and without our listeners, to whoever continues on it (TLS). */
  detachSocket(): Socket {
    const socket = this.#socket;
    socket.pause();
    socket.off("end", this.#onEnd);
    socket.off("error", this.#onError);
    socket.off("close", this.#onClose);
    this.#sink = undefined;
    return socket;
  }

  /** @internal For a connected unix socket: see `SocketOptions.widenUnix`. */
  widenUnix(): void {
    const fd = this.#fd;
    if (fd >= 0) sharedOptions?.widenUnix(fd);
  }

  /** @internal For a connected TCP socket that much is to come from: see `SocketOptions.widenReceive`. */
  widenReceive(): void {
    const fd = this.#fd;
    if (fd >= 0) sharedOptions?.widenReceive(fd);
  }

  /** @internal Where the next bytes go. */
  get receiveBuffer(): Uint8Array {
    return this.#sink?.receiveInto?.() ?? receiveBuffer;
  }

  /** @internal Bytes have arrived in the buffer that was named last. Returns false to make Node stop reading. */
  received(bytes: Uint8Array): boolean {
    this.#sink?.onBytes(bytes);
    return !this.#wantsPause;
  }

  /** Node drops what is written to it from now on, at once, and tells so only when the event loop comes round. */
  get #isLost(): boolean {
    return this.#socket.destroyed || this.#socket.errored !== null;
  }

  /** Were it released now, a lost stream would look like one that takes everything: a reader of a disk would never stop. */
  #keepUntilClosed(byteLength: number, release: (() => void) | undefined): void {
    if (this.#closed) {
      release?.();
      return;
    }
    this.#lostBytes += byteLength;
    this.#releases.push(release);
  }

  /** How many of `bytes` the kernel took at once. */
  #sendNow(bytes: Uint8Array): number {
    const socket = this.#socket;
    if (this.#sender === undefined || socket.writableLength > 0 || !socket.writable || socket.connecting) return 0;
    const fd = this.#fd;
    return fd < 0 ? 0 : this.#sender.send(fd, bytes);
  }

  /** −1: it has none (any more). */
  get #fd(): number {
    return (this.#socket as unknown as SocketWithHandle)._handle?.fd ?? -1;
  }

  #settleWrite(): void {
    this.#releases.shift()?.();
    if (this.#mustDrain && this.#socket.writableLength === 0) {
      this.#mustDrain = false;
      if (!this.#closed) this.#sink?.onDrain();
    }
  }

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#tellEnd();
  };

  /** A TLS socket says that it ended also while it is paused, once it has nothing left to deliver: that waits, as bytes do. */
  readonly #tellEnd = (): void => {
    if (this.#endTold || this.#closed || this.#wantsPause || this.#sink === undefined) return;
    this.#endTold = true;
    this.#sink.onEnd();
  };

  readonly #onError = (error: Error): void => {
    this.#error ??= error;
  };

  readonly #onClose = (): void => {
    this.#closed = true;
    this.#lostBytes = 0;
    this.#sink?.onClose(this.#error);
    for (const release of this.#releases.splice(0)) release?.();
  };
}

/** The `onread` option that makes a socket read where its stream says; `bind` tells it which one that is. */
export function receiveOption(): { onread: OnRead; bind(stream: SocketStream): void } {
  let target: SocketStream | undefined;
  const onread: OnRead = {
    // Node asks once when the socket is made, and after each callback.
    buffer: () => target?.receiveBuffer ?? receiveBuffer,
    callback: (bytesRead, buffer) => target?.received(buffer.subarray(0, bytesRead)) ?? true,
  };
  return {
    onread,
    bind: (stream) => {
      target = stream;
    },
  };
}

export interface OnRead {
  buffer(): Uint8Array;
  callback(bytesRead: number, buffer: Uint8Array): boolean;
}

/**
 * Makes a stream that reads into buffers of ours of a socket that a server with `pauseOnConnect` has just accepted: its
 * handle moves to a new socket, the old object is left empty.
 */
export function adoptAccepted(accepted: Socket, peer: string): SocketStream {
  const shell = accepted as unknown as SocketWithHandle;
  const handle = shell._handle;
  shell._handle = null;
  const receive = receiveOption();
  const options = { handle, allowHalfOpen: true, onread: receive.onread };
  const socket = new Socket(options as unknown as SocketConstructorOpts);
  const stream = new SocketStream(socket, peer);
  receive.bind(stream);
  return stream;
}
