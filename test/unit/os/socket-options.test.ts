import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { expect, test } from "vitest";
import { dial } from "../../../src/os/dial.ts";
import { loadNative, type Native } from "../../../src/os/native.ts";
import type { SocketStream } from "../../../src/os/stream.ts";

// <asm-generic/socket.h>
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_RCVLOWAT = 18;
const KIB = 1024;
const MIB = KIB * KIB;

const loaded = loadNative({ disabled: false });

function optionOf(native: Native, fd: number, option: number): number {
  const value = new Int32Array(new ArrayBuffer(8));
  value[1] = 4;
  const address = native.addressOf(value.buffer);
  const getsockopt = native.bind("getsockopt", "int", ["int", "int", "int", "uintptr_t", "uintptr_t"]);
  expect(getsockopt?.(fd, SOL_SOCKET, option, address, address + 4)).toBe(0);
  return value[0] ?? Number.NaN;
}

test.skipIf(loaded.state === "off")(
  "a TCP stream that was dialled has room for a long answer from the start, and tells of every byte",
  async () => {
    if (loaded.state === "off") return;
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const connection = once(server, "connection") as Promise<[Socket]>;
    const stream = (await dial({ kind: "tcp", host: "127.0.0.1", port })) as SocketStream;
    const [peer] = await connection;

    const got = Promise.withResolvers<string>();
    const onBytes = (bytes: Uint8Array): void => got.resolve(Buffer.from(bytes).toString());
    stream.attach({ onBytes, onEnd: () => {}, onClose: () => {}, onDrain: () => {} });
    peer.write("x");
    expect(await got.promise).toBe("x");

    const { _handle } = stream.detachSocket() as unknown as { readonly _handle: { readonly fd: number } };
    expect(optionOf(loaded.native, _handle.fd, SO_RCVBUF)).toBeGreaterThanOrEqual(MIB);
    expect(optionOf(loaded.native, _handle.fd, SO_RCVLOWAT)).toBe(1);
    stream.destroy();
    peer.destroy();
    server.close();
  },
);
