/**
 * The server's end of a connection, for tests that say byte for byte what it does. It shares no code with the client:
 * messages are put together here from the specification, so that a mistake of the client's is not repeated.
 */
import type { ByteSink } from "../../../../src/env/links.ts";
import type { PairedStream } from "../../../support/stream-pair.ts";

export const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
};
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
};
export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)));
  return bytes;
};
export const text = (value: string): Buffer => Buffer.from(value, "utf8");
export const cat = (...parts: Uint8Array[]): Buffer => Buffer.concat(parts);

export const REP = { ack: 1, server: 2, info: 3, meta: 4 } as const;
export const ERR = {
  unsup: 0x8000_0001,
  policy: 0x8000_0002,
  invalid: 0x8000_0003,
  platform: 0x8000_0004,
  tlsReqd: 0x8000_0005,
  unknown: 0x8000_0006,
  shutdown: 0x8000_0007,
  blockSizeReqd: 0x8000_0008,
  tooBig: 0x8000_0009,
  extHeaderReqd: 0x8000_000a,
} as const;
export const OPT = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structured: 8,
  listMeta: 9,
  setMeta: 10,
  extended: 11,
} as const;
export const CMD = { read: 0, write: 1, disc: 2, flush: 3, trim: 4, cache: 5, zero: 6, status: 7 } as const;

/** HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO. */
export const ALL_FLAGS = 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800;

export interface Request {
  readonly flags: number;
  readonly command: number;
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

export class ScriptedServer implements ByteSink {
  readonly stream: PairedStream;
  #held: Buffer[] = [];
  #heldBytes = 0;
  #wanted: { bytes: number; resolve: (bytes: Buffer) => void; reject: (error: Error) => void } | undefined;
  #over: string | undefined;

  constructor(stream: PairedStream) {
    this.stream = stream;
    stream.attach(this);
  }

  /** Everything the client has sent and the script has not read. */
  get unread(): Buffer {
    this.#held = [Buffer.concat(this.#held)];
    return this.#held[0] as Buffer;
  }

  /** The client has ended or dropped the connection. */
  get over(): boolean {
    return this.#over !== undefined;
  }

  onBytes(bytes: Uint8Array): void {
    this.#held.push(Buffer.from(bytes));
    this.#heldBytes += bytes.length;
    this.#serve();
  }

  onEnd(): void {
    this.#over ??= "the client ended the connection";
    this.#serve();
  }

  onClose(): void {
    this.#over ??= "the client dropped the connection";
    this.#serve();
  }

  onDrain(): void {}

  send(...parts: Uint8Array[]): void {
    this.stream.write(cat(...parts));
  }

  read(bytes: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#wanted = { bytes, resolve, reject };
      this.#serve();
    });
  }

  #serve(): void {
    const wanted = this.#wanted;
    if (wanted === undefined) return;
    if (this.#heldBytes >= wanted.bytes) {
      this.#wanted = undefined;
      const held = this.unread;
      this.#held = [held.subarray(wanted.bytes)];
      this.#heldBytes -= wanted.bytes;
      wanted.resolve(Buffer.from(held.subarray(0, wanted.bytes)));
    } else if (this.#over !== undefined) {
      this.#wanted = undefined;
      wanted.reject(new Error(this.#over));
    }
  }

  /** Sends the greeting and returns the client's flags. */
  async greet(flags = 3): Promise<number> {
    this.send(text("NBDMAGIC"), text("IHAVEOPT"), u16(flags));
    return (await this.read(4)).readUInt32BE();
  }

  async option(): Promise<{ option: number; data: Buffer }> {
    const head = await this.read(16);
    if (head.toString("latin1", 0, 8) !== "IHAVEOPT") throw new Error("an option without IHAVEOPT");
    return { option: head.readUInt32BE(8), data: await this.read(head.readUInt32BE(12)) };
  }

  /** Reads an option, which must be the one given, and returns its data. */
  async expect(option: number): Promise<Buffer> {
    const found = await this.option();
    if (found.option !== option) throw new Error(`the client sent option ${found.option} instead of ${option}`);
    return found.data;
  }

  reply(option: number, type: number, ...data: Uint8Array[]): void {
    this.send(optionReply(option, type, ...data));
  }

  /** Reads an option, which must be the one given, and gives one answer. */
  async answer(option: number, type: number, ...data: Uint8Array[]): Promise<Buffer> {
    const found = await this.expect(option);
    this.reply(option, type, ...data);
    return found;
  }

  /** A whole handshake as a modern server has it. */
  async handshake(options: HandshakeScript = {}): Promise<void> {
    const { dialect = "structured", sizeBytes = 1 << 20, flags = ALL_FLAGS, contexts = ["base:allocation"] } = options;
    await this.greet();
    await this.answer(OPT.extended, dialect === "extended" ? REP.ack : ERR.unsup);
    if (dialect !== "extended") await this.answer(OPT.structured, dialect === "structured" ? REP.ack : ERR.unsup);
    if (dialect !== "simple") {
      await this.expect(OPT.setMeta);
      for (const [id, name] of contexts.entries()) this.reply(OPT.setMeta, REP.meta, u32(id + 1), text(name));
      this.reply(OPT.setMeta, REP.ack);
    }
    await this.expect(OPT.go);
    this.reply(OPT.go, REP.info, u16(0), u64(sizeBytes), u16(flags));
    const { blockSizes } = options;
    if (blockSizes !== undefined) this.reply(OPT.go, REP.info, u16(3), ...blockSizes.map(u32));
    this.reply(OPT.go, REP.ack);
  }

  async request(dialect: "compact" | "extended" = "compact"): Promise<Request> {
    const extended = dialect === "extended";
    const head = await this.read(extended ? 32 : 28);
    if (head.readUInt32BE() !== (extended ? 0x21e41c71 : 0x25609513)) throw new Error("a request with a wrong magic");
    const length = extended ? Number(head.readBigUInt64BE(24)) : head.readUInt32BE(24);
    const [flags, command] = [head.readUInt16BE(4), head.readUInt16BE(6)];
    const hasPayload = extended ? (flags & 32) !== 0 : command === CMD.write;
    return {
      flags,
      command,
      cookie: head.subarray(8, 16),
      offset: Number(head.readBigUInt64BE(16)),
      length,
      payload: hasPayload ? await this.read(length) : Buffer.alloc(0),
    };
  }
}

export interface HandshakeScript {
  readonly dialect?: "simple" | "structured" | "extended";
  readonly sizeBytes?: number;
  readonly flags?: number;
  readonly contexts?: readonly string[];
  readonly blockSizes?: readonly [number, number, number];
}

export function optionReply(option: number, type: number, ...data: Uint8Array[]): Buffer {
  const payload = cat(...data);
  return cat(Buffer.from("0003e889045565a9", "hex"), u32(option), u32(type), u32(payload.length), payload);
}

export function simpleReply(cookie: Uint8Array, error = 0, ...data: Uint8Array[]): Buffer {
  return cat(u32(0x67446698), u32(error), cookie, ...data);
}

export interface Chunk {
  readonly type: number;
  readonly done?: boolean;
  readonly data?: Uint8Array;
  /** What the header says, where that is not the truth. */
  readonly length?: number;
  readonly flags?: number;
}

export const DATA = 1;
export const HOLE = 2;
export const STATUS = 5;
export const STATUS_EXT = 6;
export const ERROR = 0x8001;
export const ERROR_OFFSET = 0x8002;

export function structured(cookie: Uint8Array, chunk: Chunk): Buffer {
  const { type, done = true, data = Buffer.alloc(0), length = data.length, flags = done ? 1 : 0 } = chunk;
  return cat(u32(0x668e33ef), u16(flags), u16(type), cookie, u32(length), data);
}

export function extended(cookie: Uint8Array, offset: number, chunk: Chunk): Buffer {
  const { type, done = true, data = Buffer.alloc(0), length = data.length, flags = done ? 1 : 0 } = chunk;
  return cat(u32(0x6e8a278c), u16(flags), u16(type), cookie, u64(offset), u64(length), data);
}

export const dataChunk = (offset: number, data: Uint8Array, done = true): Chunk => ({
  type: DATA,
  done,
  data: cat(u64(offset), data),
});
export const holeChunk = (offset: number, length: number, done = true): Chunk => ({
  type: HOLE,
  done,
  data: cat(u64(offset), u32(length)),
});
export const errorChunk = (error: number, message = "", done = true): Chunk => ({
  type: ERROR,
  done,
  data: cat(u32(error), u16(Buffer.byteLength(message)), text(message)),
});
export const doneChunk: Chunk = { type: 0 };
