/** The link as it is put together in the program: an NBD link port, TCP, TLS, and what plain NBD clients see there. */
import { afterEach, describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { ByteSink } from "../../../src/env/links.ts";
import type { Channel } from "../../../src/link/channel.ts";
import { Link } from "../../../src/link/link.ts";
import { LinkDialer } from "../../../src/link/link-dialer.ts";
import { dialLink, linkPort } from "../../../src/link/upgrade.ts";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import type { TlsChoice } from "../../../src/nbd/client/negotiate.ts";
import { NbdServer, type NbdServerOptions } from "../../../src/nbd/server/server.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { NodeTlsClient, NodeTlsServer } from "../../../src/os/tls.ts";
import { parsePskFile } from "../../../src/os/tls-psk.ts";
import { pattern } from "../../support/patterns.ts";
import { counts } from "../../support/seed.ts";

const MIB = 1024 * 1024;
const env = createRealEnv();
const quiet = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function keys(secret: string) {
  return {
    kind: "psk" as const,
    keys: parsePskFile(`link:${Buffer.from(secret.padEnd(32, ".")).toString("hex")}\n`, "k"),
  };
}

const identity = () => ({ trackingId: "00".repeat(16), term: 0 });

/** A source with one read-only export, and its link. */
async function linkPortWith(options: { tls?: NbdServerOptions["tls"]; onChannel?: (channel: Channel) => void }) {
  const { onChannel = (channel: Channel) => channel.destroy(), tls } = options;
  const ids = { linkId: "a1".repeat(16), ownId: "50".repeat(16) };
  const link = new Link({ env, role: "listening", ...ids, identity, onChannel, log: quiet });
  const device = new MemoryDevice({ sizeBytes: MIB });
  const server = new NbdServer({
    clock: env.clock,
    exports: [{ name: "vda", device, readOnly: true }],
    upgrade: linkPort(() => link),
    log: quiet,
    ...(tls && { tls }),
  });
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => server.accept(stream));
  cleanups.push(
    () => listener.close(),
    () => server.close({ graceMs: 100 }),
    () => link.close(),
  );
  return { link, server, address: listener.address };
}

function dialling(address: Parameters<typeof dialLink>[1]["address"], tls: TlsChoice) {
  const log = quiet;
  const link = new Link({
    env,
    role: "dialling",
    ownId: "de".repeat(16),
    identity,
    onChannel: (c) => c.destroy(),
    log,
  });
  const dialer = new LinkDialer({ env, link, log, connect: (signal) => dialLink(env, { address, tls, signal }) });
  cleanups.push(
    () => dialer.close(),
    () => link.close(),
  );
  return { link, dialer };
}

/** Checks a pattern of so many bytes, and tells when it has ended. */
class Checking implements ByteSink {
  readonly over = Promise.withResolvers<void>();
  readonly #expected: number;
  received = 0;

  constructor(expected: number) {
    this.#expected = expected;
  }

  onBytes(bytes: Uint8Array): void {
    if (!pattern(this.received, bytes.length).equals(bytes))
      this.over.reject(new Error(`wrong after ${this.received}`));
    this.received += bytes.length;
  }
  onEnd(): void {
    if (this.received === this.#expected) this.over.resolve();
    else this.over.reject(new Error(`${this.received} bytes came`));
  }
  onClose(error?: Error): void {
    this.over.reject(error ?? new Error("closed"));
  }
  onDrain(): void {}
}

/** Writes a pattern as fast as the channel takes it. */
function pour(channel: Channel, totalBytes: number): void {
  let at = 0;
  const go = (): void => {
    while (at < totalBytes && channel.pendingBytes < MIB) {
      const bytes = pattern(at, Math.min(256 * 1024, totalBytes - at));
      at += bytes.length;
      channel.write(bytes);
    }
    if (at === totalBytes) {
      at += 1;
      channel.end();
    }
  };
  channel.attach({ onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: go });
  go();
}

const ways: { name: string; server: NbdServerOptions["tls"]; client: TlsChoice }[] = [
  { name: "TCP", server: undefined, client: { mode: "off" } },
  {
    name: "TLS",
    server: { mode: "require", server: new NodeTlsServer({ credentials: keys("a secret"), verifyPeer: false }) },
    client: {
      mode: "require",
      client: new NodeTlsClient({ credentials: keys("a secret"), serverName: "127.0.0.1" }),
    },
  },
];

for (const { name, server, client } of ways) {
  describe(`a link over ${name}`, () => {
    test("carries a tunnel in each direction, byte for byte", async () => {
      const bytes = counts({ local: 32, ci: 256 }) * MIB;
      const arrived = new Checking(bytes);
      const port = await linkPortWith({
        tls: server,
        onChannel: (channel) => {
          if (channel.label === "up") channel.attach(arrived);
          else pour(channel, bytes);
        },
      });
      const { link } = dialling(port.address, client);
      const startedMs = performance.now();
      pour(link.open("tunnel", "up"), bytes);
      const down = link.open("tunnel", "down");
      const downArrived = new Checking(bytes);
      down.attach(downArrived);
      down.end();
      await Promise.all([arrived.over.promise, downArrived.over.promise]);
      const seconds = (performance.now() - startedMs) / 1000;
      console.info(`${name}: ${Math.round((2 * bytes) / MIB / seconds)} MiB/s, both directions together`);
      expect(link.status()).toMatchObject({ state: "connected", connections: 1, peerId: "50".repeat(16) });
      expect(link.status().rttMs).toBeGreaterThan(0);
    });

    test("leaves plain NBD clients what they were: readers of a read-only export", async () => {
      const port = await linkPortWith({ tls: server });
      const plain = await connectNbd(env, { address: port.address, exportName: "vda", tls: client });
      expect([plain.sizeBytes, plain.capabilities.readOnly]).toEqual([MIB, true]);
      await plain.close();
    });
  });
}

test("a link port that requires TLS upgrades no session without it", async () => {
  const port = await linkPortWith({ tls: ways[1]?.server });
  const upgrading = dialLink(env, { address: port.address, tls: { mode: "off" } });
  await expect(upgrading).rejects.toMatchObject({ code: "tls-required" });
  expect(port.link.state).toBe("connecting");
});

test("a link port does not let in who has another key", async () => {
  const port = await linkPortWith({ tls: ways[1]?.server });
  const tls = new NodeTlsClient({ credentials: keys("a guess"), serverName: "127.0.0.1" });
  const upgrading = dialLink(env, { address: port.address, tls: { mode: "require", client: tls } });
  await expect(upgrading).rejects.toMatchObject({ code: "tls-failed" });
  expect(port.link.state).toBe("connecting");
});

test("a server that has no link refuses the upgrade, and the link is refused for good", async () => {
  const device = new MemoryDevice({ sizeBytes: MIB });
  const server = new NbdServer({ clock: env.clock, exports: [{ name: "", device, readOnly: true }], log: quiet });
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => server.accept(stream));
  cleanups.push(
    () => listener.close(),
    () => server.close({ graceMs: 100 }),
  );
  const { link, dialer } = dialling(listener.address, { mode: "off" });
  await dialer.ended;
  expect(link.status()).toMatchObject({ state: "refused", lastError: expect.stringContaining("does not know how") });
  expect(() => link.open("demand", "vda")).toThrow(expect.objectContaining({ code: "refused" }));
});

test("a link that was closed says goodbye: the peer's is closed too, and both dial no more", async () => {
  const port = await linkPortWith({});
  const { link, dialer } = dialling(port.address, { mode: "off" });
  await expect.poll(() => link.state).toBe("connected");
  await expect.poll(() => port.link.state).toBe("connected");
  await port.link.close();
  await dialer.ended;
  expect([link.state, port.link.state]).toEqual(["closed", "closed"]);
});
