/** Options of sockets that Node has no names for. Wishes: where the system cannot, everything works as before. */
import { loadNative, type Native, type NativeFunction } from "./native.ts";

// <netinet/in.h>, <linux/tcp.h>
const IPPROTO_TCP = 6;
const TCP_NOTSENT_LOWAT = 25;
// <asm-generic/socket.h>
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVLOWAT = 18;
/**
 * By default the kernel takes 208 KiB, less than a reply of 256 KiB: each then waits once more for the client. It doubles
 * this for its own bookkeeping, so that a connection whose client takes nothing costs 1 MiB of kernel memory, a quarter of
 * what TCP may take. Reads of 256 KiB, 8 in flight, MiB/s (medians of 5): 3661 as it is, 4111 with 208 KiB (doubled), 4879
 * with 512 KiB, 4375 with 1 MiB.
 */
const UNIX_SEND_BYTES = 512 * 1024;
/** As long as the longest background request. */
const RECEIVE_BYTES = 1024 * 1024;

export class SocketOptions {
  readonly #setsockopt: NativeFunction;
  /** Outside the heap, and kept, since the kernel gets its address. */
  readonly #value = new Uint32Array(new ArrayBuffer(4));
  readonly #address: number;

  private constructor(native: Native, setsockopt: NativeFunction) {
    this.#setsockopt = setsockopt;
    this.#address = native.addressOf(this.#value.buffer);
  }

  /** Undefined without native calls. */
  static create(native = loadNative()): SocketOptions | undefined {
    if (native.state === "off") return undefined;
    const setsockopt = native.native.bind("setsockopt", "int", ["int", "int", "int", "uintptr_t", "uint32_t"]);
    return setsockopt && new SocketOptions(native.native, setsockopt);
  }

  /** Gives a unix socket more room for what its peer has not taken yet, as far as the system allows. TCP finds its own. */
  widenUnix(fd: number): void {
    this.#set(fd, SOL_SOCKET, SO_SNDBUF, UNIX_SEND_BYTES);
  }

  /** Has TCP take no more while so many bytes are not sent. A send buffer grows to MiBs otherwise, all of them first come first served. */
  limitUnsent(fd: number, bytes: number): void {
    this.#set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, bytes);
  }

  /**
   * Has TCP provide for 1 MiB at once, into which the window it offers grows as bytes arrive. By itself it has room for 64 KiB,
   * and makes more by what is read within a round trip: on short paths that takes half a second, in which the peer waits for
   * us nine tenths of the time. A low-water mark makes the room, and leaves the kernel free to make more where a path is
   * long, which SO_RCVBUF would end; the mark itself is taken back.
   */
  widenReceive(fd: number): void {
    this.#set(fd, SOL_SOCKET, SO_RCVLOWAT, RECEIVE_BYTES);
    this.#set(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
  }

  #set(fd: number, level: number, option: number, value: number): void {
    this.#value[0] = value;
    this.#setsockopt(fd, level, option, this.#address, this.#value.byteLength);
  }
}
