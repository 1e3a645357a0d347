/** An NBD server that serves a pattern and, when told to, answers reads with one kind of lie. */
import { createServer, type Server, type Socket } from "node:net";
import { CHUNK, CMD, ERR, OPT, REP, u16, u32, u64 } from "../../support/nbd-wire.ts";
import { pattern } from "../../support/patterns.ts";

const OPTION_HEADER_BYTES = 16;
const REQUEST_BYTES = 28;
/** Read-only, with flags. */
const EXPORT_FLAGS = 0b11;
/** What a source is known by is read in blocks of this size: those are always answered truly. */
const SAMPLE_BYTES = 4096;

interface ReadRequest {
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
  readonly data: Buffer;
}

/** What is sent in the place of the true answer. */
export type Lie = (request: ReadRequest) => Buffer;

function chunk(type: number, { cookie, done = true }: { cookie: Buffer; done?: boolean }, payload: Buffer): Buffer {
  return Buffer.concat([u32(0x668e33ef), u16(done ? 1 : 0), u16(type), cookie, u32(payload.length), payload]);
}

function dataChunk(cookie: Buffer, offset: number, data: Buffer): Buffer {
  return chunk(CHUNK.OFFSET_DATA, { cookie }, Buffer.concat([u64(offset), data]));
}

const truth: Lie = ({ cookie, offset, data }) => dataChunk(cookie, offset, data);

/** A lie, and what is said of the one who told it. */
export interface KnownLie {
  readonly lie: Lie;
  readonly noticedAs: string;
}

export const LIES: Readonly<Record<string, KnownLie>> = {
  "a cookie that nobody sent": {
    lie: ({ offset, data }) => dataChunk(Buffer.from("deadbeefdeadbeef", "hex"), offset, data),
    noticedAs: "a reply to a request that is not pending",
  },
  "data of another place": {
    lie: ({ cookie, offset, length, data }) => dataChunk(cookie, offset + length, data),
    noticedAs: "outside of the read",
  },
  "more data than was asked for": {
    lie: ({ cookie, offset, data }) => dataChunk(cookie, offset, Buffer.concat([data, data.subarray(0, 512)])),
    noticedAs: "outside of the read",
  },
  "less data, and that it was all": {
    lie: ({ cookie, offset, data }) => dataChunk(cookie, offset, data.subarray(512)),
    noticedAs: "a read that succeeds without all of its data",
  },
  "the same data twice": {
    lie: ({ cookie, offset, data }) =>
      Buffer.concat([
        chunk(CHUNK.OFFSET_DATA, { cookie, done: false }, Buffer.concat([u64(offset), data])),
        dataChunk(cookie, offset, data),
      ]),
    noticedAs: "a chunk that overlaps an earlier one",
  },
  "no reply at all, but noise": { lie: ({ data }) => data, noticedAs: "a reply begins with 0x" },
  "a length of 4 GiB": {
    lie: ({ cookie, offset }) =>
      Buffer.concat([u32(0x668e33ef), u16(1), u16(CHUNK.OFFSET_DATA), cookie, u32(0xffff_fff0), u64(offset)]),
    noticedAs: "outside of the read",
  },
};

export class HostileSource implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #sizeBytes: number;
  readonly #salt: number;
  lie: Lie | undefined;
  /** Told so far. */
  lies = 0;

  private constructor(sizeBytes: number, salt: number) {
    this.#sizeBytes = sizeBytes;
    this.#salt = salt;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  /** Serves `pattern(…, salt)` on a unix socket. */
  static async listen(path: string, sizeBytes: number, salt: number): Promise<HostileSource> {
    const source = new HostileSource(sizeBytes, salt);
    await new Promise<void>((resolve) => source.#server.listen(path, resolve));
    return source;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => undefined).on("close", () => this.#sockets.delete(socket));
    socket.write(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
    let held = Buffer.alloc(0);
    let take: (bytes: Buffer) => number = (bytes) => {
      if (bytes.length < 4) return 0;
      take = (rest) => this.#option(socket, rest, () => (take = (more) => this.#request(socket, more)));
      return 4;
    };
    socket.on("data", (bytes) => {
      held = Buffer.concat([held, bytes as Buffer]);
      for (let used = take(held); used > 0; used = take(held)) held = held.subarray(used);
    });
  }

  /** Resolves to the bytes used: 0 while there is no whole option. */
  #option(socket: Socket, bytes: Buffer, transmission: () => void): number {
    if (bytes.length < OPTION_HEADER_BYTES) return 0;
    const type = bytes.readUInt32BE(8);
    const end = OPTION_HEADER_BYTES + bytes.readUInt32BE(12);
    if (bytes.length < end) return 0;
    const reply = (kind: number, data = Buffer.alloc(0)): Buffer =>
      Buffer.concat([Buffer.from("0003e889045565a9", "hex"), u32(type), u32(kind), u32(data.length), data]);
    if (type === OPT.GO) {
      const info = Buffer.concat([u16(0), u64(this.#sizeBytes), u16(EXPORT_FLAGS)]);
      socket.write(Buffer.concat([reply(REP.INFO, info), reply(REP.ACK)]));
      transmission();
    } else {
      socket.write(reply(type === OPT.STRUCTURED_REPLY ? REP.ACK : REP.UNSUP));
    }
    return end;
  }

  #request(socket: Socket, bytes: Buffer): number {
    if (bytes.length < REQUEST_BYTES) return 0;
    const command = bytes.readUInt16BE(6);
    const cookie = Buffer.from(bytes.subarray(8, 16));
    const offset = Number(bytes.readBigUInt64BE(16));
    const length = bytes.readUInt32BE(24);
    if (command === CMD.DISC) {
      socket.end();
    } else if (command === CMD.READ) {
      const honest = this.lie === undefined || length <= SAMPLE_BYTES;
      if (!honest) this.lies += 1;
      const answer = honest ? truth : (this.lie ?? truth);
      socket.write(answer({ cookie, offset, length, data: pattern(offset, length, this.#salt) }));
    } else {
      socket.write(chunk(CHUNK.ERROR, { cookie }, Buffer.concat([u32(ERR.EINVAL), u16(0)])));
    }
    return REQUEST_BYTES;
  }
}
