import { connect, createServer, type TLSSocket } from "node:tls";
import { afterEach, expect, test } from "vitest";
import { SocketStream } from "../../../src/os/stream.ts";
import { makeAuthority, makeLeaf } from "../../support/certificates.ts";

const leaf = makeLeaf(makeAuthority("authority"), { name: "localhost", use: "server", hosts: ["localhost"] });
const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

/** Both ends of a TLS connection; the server's has not been wrapped yet. */
async function tlsPair(): Promise<{ near: TLSSocket; far: TLSSocket }> {
  const server = createServer({ cert: leaf.certPem, key: leaf.keyPem });
  const accepted = new Promise<TLSSocket>((resolve) => server.once("secureConnection", resolve));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const near = connect({ port, host: "127.0.0.1", rejectUnauthorized: false });
  const far = await accepted;
  far.allowHalfOpen = true;
  cleanups.push(() => {
    near.destroy();
    far.destroy();
    server.close();
  });
  return { near, far };
}

test("a paused TLS stream tells its end only when it is resumed, after the bytes before it", async () => {
  const { near, far } = await tlsPair();
  const stream = SocketStream.overDataEvents(far, "client");
  const told: string[] = [];
  const firstBytes = Promise.withResolvers<void>();
  const end = Promise.withResolvers<void>();
  stream.attach({
    onBytes: (bytes) => {
      told.push(Buffer.from(bytes).toString());
      stream.pause();
      firstBytes.resolve();
    },
    onEnd: () => {
      told.push("end");
      end.resolve();
    },
    onClose: () => told.push("close"),
    onDrain: () => {},
  });
  const socketEnded = new Promise<void>((resolve) => far.once("end", resolve));
  near.write("payload");
  await firstBytes.promise;
  near.end();
  await socketEnded;
  await new Promise((resolve) => setImmediate(resolve));
  expect(told).toEqual(["payload"]);

  stream.resume();
  await end.promise;
  await new Promise((resolve) => setImmediate(resolve));
  expect(told).toEqual(["payload", "end"]);
});

test("whoever is attached after the end of a TLS stream is told of it, once", async () => {
  const { near, far } = await tlsPair();
  const stream = SocketStream.overDataEvents(far, "client");
  const socketEnded = new Promise<void>((resolve) => far.once("end", resolve));
  near.end();
  far.resume(); // As Node does when it has nothing left to deliver.
  await socketEnded;
  let ends = 0;
  const sink = { onBytes: () => {}, onEnd: () => void ends++, onClose: () => {}, onDrain: () => {} };
  stream.attach(sink);
  await new Promise((resolve) => setImmediate(resolve));
  stream.pause();
  stream.resume();
  stream.attach(sink);
  await new Promise((resolve) => setImmediate(resolve));
  expect(ends).toBe(1);
});
