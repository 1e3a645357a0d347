/**
 * Sends on a socket without Node's stream machinery, while the kernel has room: `send(MSG_DONTWAIT)`. A small reply costs
 * 2 µs less of this thread so than through `socket.write`, which matters when each reply is a wake-up of the client.
 */
import { BufferAddresses, loadNative, type Native, type NativeFunction } from "./native.ts";

// <bits/socket.h>
const MSG_DONTWAIT = 0x40;
/** A lost peer must not raise SIGPIPE. */
const MSG_NOSIGNAL = 0x4000;
// <netinet/in.h>, <linux/tcp.h>
const IPPROTO_TCP = 6;
const TCP_NOTSENT_LOWAT = 25;
// <asm-generic/socket.h>
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
/**
 * By default the kernel takes 208 KiB, less than a reply of 256 KiB: each then waits once more for the client. It doubles
 * this for its own bookkeeping, so that a connection whose client takes nothing costs 1 MiB of kernel memory, a quarter of
 * what TCP may take. Reads of 256 KiB, 8 in flight, MiB/s (medians of 5): 3661 as it is, 4111 with 208 KiB (doubled), 4879
 * with 512 KiB, 4375 with 1 MiB.
 */
const UNIX_SEND_BYTES = 512 * 1024;

export class NowaitSender {
  readonly #send: NativeFunction;
  readonly #addresses: BufferAddresses;
  readonly #setsockopt: NativeFunction | undefined;
  /** Outside the heap, and kept, since the kernel gets its address. */
  readonly #sendBytes = new Uint32Array(new ArrayBuffer(4)).fill(UNIX_SEND_BYTES);
  readonly #sendBytesAddress: number;
  /** The same, of `limitUnsent`. */
  readonly #unsentBytes = new Uint32Array(new ArrayBuffer(4));
  readonly #unsentBytesAddress: number;

  private constructor(native: Native, send: NativeFunction) {
    this.#send = send;
    this.#addresses = new BufferAddresses(native);
    this.#sendBytesAddress = native.addressOf(this.#sendBytes.buffer);
    this.#unsentBytesAddress = native.addressOf(this.#unsentBytes.buffer);
    this.#setsockopt = native.bind("setsockopt", "int", ["int", "int", "int", "uintptr_t", "uint32_t"]);
  }

  /** Has TCP take no more while so many bytes are not sent. A send buffer grows to MiBs otherwise, all of them first come first served. */
  limitUnsent(fd: number, bytes: number): void {
    const { byteLength } = this.#unsentBytes.fill(bytes);
    this.#setsockopt?.(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, this.#unsentBytesAddress, byteLength);
  }

  /** Undefined without native calls. */
  static create(native = loadNative()): NowaitSender | undefined {
    if (native.state === "off") return undefined;
    const send = native.native.bind("send", "int64_t", ["int", "uintptr_t", "int64_t", "int"]);
    return send && new NowaitSender(native.native, send);
  }

  /** How many of `bytes` the kernel has taken: 0 also when the socket is full, gone or no socket at all. */
  send(fd: number, bytes: Uint8Array): number {
    const sent = this.#send(fd, this.#addresses.of(bytes), bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent > 0 ? sent : 0;
  }

  /** Gives a unix socket more room for what its peer has not taken yet, as far as the system allows. TCP finds its own. */
  widenUnix(fd: number): void {
    this.#setsockopt?.(fd, SOL_SOCKET, SO_SNDBUF, this.#sendBytesAddress, this.#sendBytes.byteLength);
  }
}
