import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { expect, test } from "vitest";
import { loadNative } from "../../../src/os/native.ts";
import { adoptSocket, dialSocket } from "../../../tools/line/sockets.ts";

// <asm-generic/socket.h>, <linux/tcp.h>
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const READ_BYTES = 1024;

const native = loadNative({ disabled: false });

function waitsForMore(socket: Socket): boolean {
  if (native.state === "off") throw new Error(native.reason);
  const getsockopt = native.native.bind("getsockopt", "int", ["int", "int", "int", "uintptr_t", "uintptr_t"]);
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const [value, length] = [new Int32Array(1), new Uint32Array([4])];
  const [valueAt, lengthAt] = [value, length].map(({ buffer }) => native.native.addressOf(buffer));
  expect(getsockopt?.(fd, IPPROTO_TCP, TCP_NODELAY, valueAt ?? 0, lengthAt ?? 0)).toBe(0);
  return value[0] === 0;
}

test.skipIf(native.state === "off")("neither of the line's sockets keeps short messages back", async () => {
  const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const dialled = dialSocket({ kind: "tcp", host: "127.0.0.1", port }, READ_BYTES, () => true);
  await once(dialled, "connect");
  const [bare] = await accepted;
  // What is asked tells the two apart.
  const plain = connect(port, "127.0.0.1");
  await once(plain, "connect");
  expect(waitsForMore(plain)).toBe(true);
  const adopted = adoptSocket(bare, READ_BYTES, () => true);
  expect([waitsForMore(adopted), waitsForMore(dialled)]).toEqual([false, false]);
  for (const socket of [plain, adopted, dialled]) socket.destroy();
  server.close();
});
