/**
 * A very small NBD client, for two questions that every sample asks: is the server there, and does it serve the right
 * bytes? And for playing the guest where fio is too blunt: one request at a time. Fixed newstyle, NBD_OPT_EXPORT_NAME, simple replies. It shares no code with `src/nbd`, on purpose: what
 * checks a server should not be able to make the same mistake as the server.
 */
import { connect, type Socket } from "node:net";
import type { Pattern } from "./pattern.ts";

const NBD_GREETING = "NBDMAGICIHAVEOPT";
const NBD_OPT_EXPORT_NAME = 1;
const NBD_FLAG_FIXED_AND_NO_ZEROES = 3;
const NBD_REQUEST_MAGIC = 0x25609513;
const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
const NBD_CMD_READ = 0;
const NBD_CMD_WRITE = 1;
const NBD_CMD_DISC = 2;
const NBD_CMD_FLUSH = 3;
const SILENCE_MAX_MS = 10_000;
const LOOPBACK = "127.0.0.1";

/** Where a server listens: the path of a unix socket, or a TCP port of this machine's loopback address. */
export type Listen = string | number;

export class NbdProbe implements AsyncDisposable {
  readonly sizeBytes: number;
  readonly #socket: Socket;
  readonly #bytes: ByteReader;

  private constructor(socket: Socket, bytes: ByteReader, sizeBytes: number) {
    this.#socket = socket;
    this.#bytes = bytes;
    this.sizeBytes = sizeBytes;
  }

  /** Connects and shakes hands. Rejects when nobody listens, or when it is not an NBD server. */
  static async connect(listen: Listen, exportName = ""): Promise<NbdProbe> {
    const socket = typeof listen === "number" ? connect(listen, LOOPBACK) : connect(listen);
    socket.setNoDelay(true);
    const bytes = new ByteReader(socket);
    try {
      const greeting = await bytes.take(18);
      if (greeting.toString("latin1", 0, 16) !== NBD_GREETING) throw new Error("not an NBD server");
      const name = Buffer.from(exportName);
      const hello = Buffer.alloc(4 + 16);
      hello.writeUInt32BE(NBD_FLAG_FIXED_AND_NO_ZEROES, 0);
      hello.write("IHAVEOPT", 4, "latin1");
      hello.writeUInt32BE(NBD_OPT_EXPORT_NAME, 12);
      hello.writeUInt32BE(name.length, 16);
      socket.write(Buffer.concat([hello, name]));
      const answer = await bytes.take(10);
      return new NbdProbe(socket, bytes, Number(answer.readBigUInt64BE(0)));
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.#socket.write(request(NBD_CMD_READ, offset, length));
    await this.#reply(`reading ${length} bytes at ${offset}`);
    return await this.#bytes.take(length);
  }

  async write(offset: number, bytes: Buffer): Promise<void> {
    this.#socket.write(Buffer.concat([request(NBD_CMD_WRITE, offset, bytes.length), bytes]));
    await this.#reply(`writing ${bytes.length} bytes at ${offset}`);
  }

  async flush(): Promise<void> {
    this.#socket.write(request(NBD_CMD_FLUSH, 0, 0));
    await this.#reply("flushing");
  }

  /** Reads `length` bytes at each offset and compares them with `pattern`. */
  async verify(pattern: Pattern, offsets: Iterable<number>, length: number): Promise<void> {
    for (const offset of offsets) {
      const at = pattern.mismatch(await this.read(offset, length), offset);
      if (at >= 0) throw new Error(`the server's byte at ${at} is not that of "${pattern.tag}"`);
    }
  }

  async #reply(doing: string): Promise<void> {
    const header = await this.#bytes.take(16);
    if (header.readUInt32BE(0) !== NBD_SIMPLE_REPLY_MAGIC) throw new Error("not a simple reply");
    const errno = header.readUInt32BE(4);
    if (errno !== 0) throw new Error(`${doing}: error ${errno}`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#socket.end(request(NBD_CMD_DISC, 0, 0));
    return this.#bytes.closed;
  }
}

/** Request message of the NBD protocol: magic u32, flags u16, type u16, cookie u64, offset u64, length u32. */
function request(type: number, offset: number, length: number): Buffer {
  const message = Buffer.alloc(28);
  message.writeUInt32BE(NBD_REQUEST_MAGIC, 0);
  message.writeUInt16BE(type, 6);
  message.writeBigUInt64BE(BigInt(offset), 16);
  message.writeUInt32BE(length, 24);
  return message;
}

/** Hands out a socket's bytes in pieces of the size that is asked for; one `take` at a time. */
class ByteReader {
  /** Resolves when the socket is gone. */
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  #pieces: Buffer[] = [];
  #have = 0;
  #want = Number.POSITIVE_INFINITY;
  #enough: (() => void) | undefined;
  #failure: Error | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setTimeout(SILENCE_MAX_MS, () => socket.destroy(new Error("the server is silent")));
    socket.on("data", (piece: Buffer) => {
      this.#pieces.push(piece);
      this.#have += piece.length;
      if (this.#have >= this.#want) this.#enough?.();
    });
    socket.on("error", (error) => {
      this.#failure ??= error;
    });
    this.closed = new Promise((resolve) => {
      socket.on("close", () => {
        this.#failure ??= new Error("the server hung up");
        this.#enough?.();
        resolve();
      });
    });
  }

  async take(length: number): Promise<Buffer> {
    if (this.#have < length && this.#failure === undefined) {
      this.#want = length;
      await new Promise<void>((resolve) => {
        this.#enough = resolve;
      });
      this.#enough = undefined;
    }
    if (this.#have < length) throw this.#failure ?? new Error(`${this.#socket.bytesRead} bytes and no more`);
    const all = Buffer.concat(this.#pieces);
    this.#pieces = [all.subarray(length)];
    this.#have = all.length - length;
    return all.subarray(0, length);
  }
}
