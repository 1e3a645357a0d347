/**
 * A client that says exactly what a test tells it to, over a real socket or over streams in memory, and that takes
 * nothing but what the test asks for. It uses the naive codec of `nbd-wire.ts` and nothing of the program's.
 */
import { connect, type NetConnectOpts, type Socket } from "node:net";
import type { ByteStream } from "../../src/env/links.ts";
import {
  type Chunk,
  CMD,
  clientFlags,
  contextData,
  GREETING_BYTES,
  infoData,
  isLastReply,
  OPT,
  type OptionReply,
  option,
  parseChunk,
  parseOptionReply,
  REP,
  request,
  type WholeReply,
  type WireDialect,
  WireError,
  type WireRequest,
} from "./nbd-wire.ts";

/** What carries the bytes. */
export interface Wire {
  /** `taken`: the kernel has it all. */
  write(bytes: Buffer, taken?: () => void): void;
  /** FIN. */
  end(): void;
  /** RST, where there is such a thing. */
  reset(): void;
  pause(): void;
  resume(): void;
}

export interface GoOptions {
  readonly dialect?: WireDialect;
  readonly exportName?: string;
  /** Queries for SET_META_CONTEXT. */
  readonly contexts?: readonly string[];
}

export class RawClient {
  dialect: WireDialect = "simple";
  /** What SET_META_CONTEXT answered: ids by context name. */
  contextIds = new Map<string, number>();
  readonly #wire: Wire;
  /** What has arrived and was not asked for yet. */
  #parts: Buffer[] = [];
  #bufferedBytes = 0;
  #ended = false;
  #wake: (() => void) | undefined;
  #nextCookie = 1n;
  readonly #reads = new Map<bigint, number>();
  readonly #chunks = new Map<bigint, Chunk[]>();

  /** `bind` gets what to call when bytes arrive, and when no more will. */
  constructor(bind: (onBytes: (bytes: Buffer) => void, onEnd: () => void) => Wire) {
    this.#wire = bind(
      (bytes) => {
        this.#parts.push(bytes);
        this.#bufferedBytes += bytes.length;
        this.#wake?.();
      },
      () => {
        this.#ended = true;
        this.#wake?.();
      },
    );
  }

  /** The server has closed, or the connection is lost. */
  get ended(): boolean {
    return this.#ended;
  }

  get bufferedBytes(): number {
    return this.#bufferedBytes;
  }

  send(...parts: readonly Buffer[]): void {
    this.#wire.write(Buffer.concat(parts));
  }

  /** Resolves once the kernel has taken `bytes`, or the connection is lost: for more than memory should hold. */
  sendAll(bytes: Buffer): Promise<void> {
    return new Promise((resolve) => this.#wire.write(bytes, resolve));
  }

  end(): void {
    this.#wire.end();
  }

  reset(): void {
    this.#wire.reset();
  }

  /** Reads nothing from the socket until `resume`. */
  pause(): void {
    this.#wire.pause();
  }

  resume(): void {
    this.#wire.resume();
  }

  /** Exactly `count` bytes; rejects when the server closes before that. */
  async take(count: number): Promise<Buffer> {
    while (this.#bufferedBytes < count) await this.#more();
    const all = this.#gathered();
    this.#keep(all.subarray(count));
    return all.subarray(0, count);
  }

  /** Resolves to everything up to the server's end. */
  async takeAll(): Promise<Buffer> {
    while (!this.#ended) await this.#arrival();
    const all = this.#gathered();
    this.#keep(Buffer.alloc(0));
    return all;
  }

  // ---- handshake --------------------------------------------------------------------------------------------------

  /** Takes the greeting and sends the flags. */
  async greet(flags = 3): Promise<Buffer> {
    const greeting = await this.take(GREETING_BYTES);
    this.send(clientFlags(flags));
    return greeting;
  }

  optionReply(): Promise<OptionReply> {
    return this.#message((bytes) => parseOptionReply(bytes, 0));
  }

  /** Sends an option; resolves to all replies to it. */
  async option(type: number, data: Buffer | string = "", length?: number): Promise<OptionReply[]> {
    this.send(option(type, data, length));
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      if (reply.option !== type) throw new WireError(`a reply to option ${reply.option} instead of ${type}`);
      replies.push(reply);
      if (isLastReply(reply)) return replies;
    }
  }

  /** Sends an option; resolves to the type of the last reply. */
  async optionOutcome(type: number, data: Buffer | string = "", length?: number): Promise<number> {
    const replies = await this.option(type, data, length);
    return replies.at(-1)?.type ?? 0;
  }

  /** The whole handshake; resolves to size and transmission flags. */
  async go(options: GoOptions = {}): Promise<{ sizeBytes: number; flags: number }> {
    const { dialect = "simple", exportName = "", contexts = [] } = options;
    await this.greet();
    if (dialect !== "simple") {
      const opt = dialect === "extended" ? OPT.EXTENDED_HEADERS : OPT.STRUCTURED_REPLY;
      await this.#must(opt);
    }
    if (contexts.length > 0) await this.setContexts(exportName, contexts);
    const replies = await this.#must(OPT.GO, infoData(exportName));
    const info = replies.find(({ type, data }) => type === REP.INFO && data.readUInt16BE(0) === 0);
    if (info === undefined) throw new WireError("no NBD_INFO_EXPORT");
    this.dialect = dialect;
    return { sizeBytes: Number(info.data.readBigUInt64BE(2)), flags: info.data.readUInt16BE(10) };
  }

  async setContexts(exportName: string, queries: readonly string[]): Promise<void> {
    const replies = await this.#must(OPT.SET_META_CONTEXT, contextData(exportName, queries));
    const found = replies.filter(({ type }) => type === REP.META_CONTEXT);
    this.contextIds = new Map(found.map(({ data }) => [data.toString("utf8", 4), data.readUInt32BE(0)]));
  }

  async #must(type: number, data: Buffer | string = ""): Promise<OptionReply[]> {
    const replies = await this.option(type, data);
    const last = replies.at(-1);
    if (last?.type !== REP.ACK) throw new WireError(`option ${type} was refused: ${last?.data.toString()}`);
    return replies;
  }

  // ---- transmission -----------------------------------------------------------------------------------------------

  /** Sends a request, with a cookie of its own unless it brings one; returns the cookie. */
  begin(wanted: WireRequest): bigint {
    const cookie = BigInt(wanted.cookie ?? this.#nextCookie++);
    const bytes = request({ ...wanted, cookie }, this.dialect);
    if (wanted.command === CMD.READ) this.#reads.set(cookie, Number(wanted.length ?? 0));
    this.#chunks.set(cookie, []);
    this.send(bytes);
    return cookie;
  }

  /** The rest of the reply to the request of `cookie`. Chunks of other requests that come first are kept. */
  async reply(cookie: bigint): Promise<WholeReply> {
    for (;;) {
      const chunks = this.#chunks.get(cookie);
      if (chunks === undefined) throw new WireError(`nothing was asked under the cookie ${cookie}`);
      if (chunks.at(-1)?.done === true) {
        this.#chunks.delete(cookie);
        this.#reads.delete(cookie);
        return { error: chunks.find(({ error }) => error !== 0)?.error ?? 0, chunks };
      }
      await this.chunk();
    }
  }

  /** Takes one chunk (or simple reply), whatever request it belongs to. */
  async chunk(): Promise<Chunk> {
    const readLength = (cookie: bigint) => this.#reads.get(cookie) ?? 0;
    const chunk = await this.#message((bytes) => parseChunk(bytes, 0, { dialect: this.dialect, readLength }));
    const list = this.#chunks.get(chunk.cookie);
    if (list === undefined) throw new WireError(`a reply to the cookie ${chunk.cookie}, which is not in use`);
    if (list.at(-1)?.done === true) throw new WireError(`a second reply to the cookie ${chunk.cookie}`);
    list.push(chunk);
    return chunk;
  }

  call(wanted: WireRequest): Promise<WholeReply> {
    return this.reply(this.begin(wanted));
  }

  // ---- bytes ------------------------------------------------------------------------------------------------------

  async #message<T>(parse: (bytes: Buffer) => { message: T; end: number } | undefined): Promise<T> {
    for (;;) {
      // Mostly the first part is enough; joining all of them for each message would cost quadratic time.
      const first = this.#parts[0] ?? Buffer.alloc(0);
      const parsed = parse(first);
      if (parsed !== undefined) {
        this.#parts[0] = first.subarray(parsed.end);
        this.#bufferedBytes -= parsed.end;
        return parsed.message;
      }
      if (this.#parts.length <= 1) await this.#more();
      this.#parts = [Buffer.concat(this.#parts)];
    }
  }

  async #more(): Promise<void> {
    const before = this.#bufferedBytes;
    while (this.#bufferedBytes === before) {
      if (this.#ended) throw new WireError(`the server closed; ${before} bytes are left over`);
      await this.#arrival();
    }
  }

  #arrival(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #gathered(): Buffer {
    const all = this.#parts.length === 1 ? (this.#parts[0] as Buffer) : Buffer.concat(this.#parts);
    this.#keep(all);
    return all;
  }

  #keep(bytes: Buffer): void {
    this.#parts = bytes.length === 0 ? [] : [bytes];
    this.#bufferedBytes = bytes.length;
  }
}

/** The client at the client's end of a pair of streams. */
export function rawClientOver(stream: ByteStream): RawClient {
  return new RawClient((onBytes, onEnd) => {
    stream.attach({
      onBytes: (bytes) => onBytes(Buffer.from(bytes)),
      onEnd,
      onClose: onEnd,
      onDrain: () => {},
    });
    return {
      write: (bytes, taken) => stream.write(bytes, taken),
      end: () => stream.end(),
      reset: () => stream.destroy(),
      pause: () => stream.pause(),
      resume: () => stream.resume(),
    };
  });
}

/** Connects to a unix socket's path, or to host and port. */
export async function dialRaw(to: string | { host: string; port: number }): Promise<RawClient> {
  const where: NetConnectOpts = typeof to === "string" ? { path: to } : to;
  const socket = connect({ ...where, noDelay: true, allowHalfOpen: true } as NetConnectOpts);
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", reject);
  });
  return rawClientOverSocket(socket);
}

function rawClientOverSocket(socket: Socket): RawClient {
  return new RawClient((onBytes, onEnd) => {
    socket.on("data", onBytes);
    socket.on("end", onEnd);
    socket.on("close", onEnd);
    // Resets are expected here; "close" follows.
    socket.on("error", () => {});
    return {
      write: (bytes, taken) => void socket.write(bytes, () => taken?.()),
      end: () => void socket.end(),
      // On a unix socket there is no RST: closing with unread data does the same to the peer. After `end`, Node cannot
      // reset: `resetAndDestroy` would fail, and leave the socket open for ever with nobody to read from it.
      reset: () =>
        void (socket.remoteAddress === undefined || socket.writableEnded ? socket.destroy() : socket.resetAndDestroy()),
      pause: () => void socket.pause(),
      resume: () => void socket.resume(),
    };
  });
}
