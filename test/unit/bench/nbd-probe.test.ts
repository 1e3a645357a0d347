import { createServer, type Socket } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { NbdProbe } from "../../../bench/lib/nbd-probe.ts";

const REQUEST_BYTES = 28;
const WRITE = 1;
const FLUSH = 3;
const SIZE = 1 << 20;

interface Seen {
  readonly type: number;
  readonly offset: number;
  readonly payload: Buffer;
}

/** An NBD server of few words: answers every request with `errnoOf` it, and notes it. Returns its port. */
async function server(seen: Seen[], errnoOf: (type: number) => number): Promise<number> {
  const listener = createServer((socket) => converse(socket, seen, errnoOf));
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => new Promise((resolve) => void listener.close(() => resolve())));
  const address = listener.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

function converse(socket: Socket, seen: Seen[], errnoOf: (type: number) => number): void {
  socket.write(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), Buffer.from([0, 3])]));
  let helloBytes = 20;
  let rest = Buffer.alloc(0);
  socket.on("data", (piece: Buffer) => {
    rest = Buffer.concat([rest, piece]);
    if (helloBytes > 0 && rest.length >= helloBytes) {
      rest = rest.subarray(helloBytes);
      helloBytes = 0;
      const about = Buffer.alloc(10);
      about.writeBigUInt64BE(BigInt(SIZE), 0);
      socket.write(about);
    }
    while (helloBytes === 0 && rest.length >= REQUEST_BYTES) {
      const type = rest.readUInt16BE(6);
      const length = type === WRITE ? rest.readUInt32BE(24) : 0;
      if (rest.length < REQUEST_BYTES + length) return;
      const payload = rest.subarray(REQUEST_BYTES, REQUEST_BYTES + length);
      seen.push({ type, offset: Number(rest.readBigUInt64BE(16)), payload: Buffer.from(payload) });
      rest = rest.subarray(REQUEST_BYTES + length);
      const reply = Buffer.alloc(16);
      reply.writeUInt32BE(0x67446698, 0);
      reply.writeUInt32BE(errnoOf(type), 4);
      if (type === 2) socket.end();
      else socket.write(reply);
    }
  });
}

test("a write carries its bytes to its offset, over TCP, and a flush follows it", async () => {
  const seen: Seen[] = [];
  const port = await server(seen, () => 0);
  {
    await using probe = await NbdProbe.connect(port);
    expect(probe.sizeBytes).toBe(SIZE);
    await probe.write(8192, Buffer.alloc(4096, "data"));
    await probe.flush();
  }
  expect(seen.slice(0, 2)).toEqual([
    { type: WRITE, offset: 8192, payload: Buffer.alloc(4096, "data") },
    { type: FLUSH, offset: 0, payload: Buffer.alloc(0) },
  ]);
});

test("a refused write or flush is an error", async () => {
  const port = await server([], (type) => (type === WRITE ? 28 : 5));
  await using probe = await NbdProbe.connect(port);
  await expect(probe.write(0, Buffer.alloc(512))).rejects.toThrow("writing 512 bytes at 0: error 28");
  await expect(probe.flush()).rejects.toThrow("flushing: error 5");
});
