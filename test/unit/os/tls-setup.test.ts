/** Credentials that OpenSSL itself will not use: found out only when somebody connects. */
import { connect } from "node:net";
import { expect, test } from "vitest";
import type { ByteStream } from "../../../src/env/links.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { NodeTlsClient, NodeTlsServer } from "../../../src/os/tls.ts";

type Credentials = ConstructorParameters<typeof NodeTlsServer>[0]["credentials"];
const useless = { kind: "x509", cert: "no certificate", key: "no key", ca: "no authority" } as unknown as Credentials;

test("a server that cannot use its credentials refuses, and closes the connection", async () => {
  const tls = new NodeTlsServer({ credentials: useless, verifyPeer: false });
  const accepted = Promise.withResolvers<ByteStream>();
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, accepted.resolve);
  const { address } = listener;
  const socket = connect(address.kind === "tcp" ? address.port : 0, "127.0.0.1");
  const closed = new Promise((resolve) => socket.on("error", () => {}).on("close", resolve));
  socket.resume();
  await expect(tls.accept(await accepted.promise)).rejects.toMatchObject({ name: "TlsError", code: "credentials" });
  await closed;
  listener.close();
});

test("a client that cannot use its credentials says so, and closes the connection", async () => {
  const gone = Promise.withResolvers<void>();
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => {
    const onClose = () => gone.resolve();
    stream.attach({ onBytes: () => {}, onEnd: () => stream.destroy(), onClose, onDrain: () => {} });
  });
  const tls = new NodeTlsClient({ credentials: useless, serverName: "localhost" });
  const stream = await realLinks.dial(listener.address);
  await expect(tls.connect(stream)).rejects.toMatchObject({ name: "TlsError" });
  await gone.promise;
  listener.close();
});
