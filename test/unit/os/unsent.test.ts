import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { expect, test } from "vitest";
import type { ByteStream } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { loadNative, type Native } from "../../../src/os/native.ts";
import { adoptAccepted } from "../../../src/os/stream.ts";

// <linux/sockios.h>
const SIOCOUTQNSD = 0x894b;
const KIB = 1024;
const LIMIT_BYTES = 64 * KIB;
const SENT_BYTES = 16 * KIB * KIB;

const loaded = loadNative({ disabled: false });

/** What the kernel has taken and not sent. */
function unsentBytes(native: Native, fd: number): number {
  const value = new Int32Array(1);
  const ioctl = native.bind("ioctl", "int", ["int", "uintptr_t", "uintptr_t"]);
  expect(ioctl?.(fd, SIOCOUTQNSD, native.addressOf(value.buffer))).toBe(0);
  return value[0] ?? Number.NaN;
}

/** Sends much more than the peer takes. */
function stuff(stream: ByteStream): void {
  stream.attach({ onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: () => {} });
  stream.write(new Uint8Array(SENT_BYTES));
  expect(stream.pendingBytes).toBeGreaterThan(0);
}

test.skipIf(loaded.state === "off")(
  "a stream that is kept short leaves little in the kernel, on either side",
  async () => {
    if (loaded.state === "off") return;
    const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const pair = async (): Promise<{ dialled: ByteStream; accepted: Socket }> => {
      const connection = once(server, "connection") as Promise<[Socket]>;
      const dialled = await dial({ kind: "tcp", host: "127.0.0.1", port });
      return { dialled, accepted: (await connection)[0] };
    };
    const fdOf = (stream: ByteStream): number =>
      (stream as unknown as { detachSocket(): HasHandle }).detachSocket()._handle.fd;

    const { dialled: unlimited } = await pair();
    stuff(unlimited);
    const unlimitedFd = fdOf(unlimited);
    await expect.poll(() => unsentBytes(loaded.native, unlimitedFd)).toBeGreaterThan(4 * LIMIT_BYTES);

    const { dialled, accepted } = await pair();
    const adopted = adoptAccepted(accepted, "a test");
    for (const stream of [dialled, adopted]) {
      stream.keepShort?.(LIMIT_BYTES);
      stuff(stream);
      const fd = fdOf(stream);
      for (let turn = 0; turn < 500; turn++) {
        await new Promise(setImmediate);
        expect(unsentBytes(loaded.native, fd)).toBeLessThan(2 * LIMIT_BYTES);
      }
    }
    for (const stream of [unlimited, dialled, adopted]) stream.destroy();
    server.close();
  },
);

interface HasHandle {
  readonly _handle: { readonly fd: number };
}
