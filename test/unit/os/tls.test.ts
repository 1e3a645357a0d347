import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Address, ByteStream } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { NodeTlsClient, NodeTlsServer, type TlsClientOptions, type TlsServerOptions } from "../../../src/os/tls.ts";
import { loadClientCertificates, loadPskFile, loadServerCertificates } from "../../../src/os/tls-credentials.ts";
import { TlsError } from "../../../src/os/tls-error.ts";
import { parsePskFile } from "../../../src/os/tls-psk.ts";
import { makeAuthority, makeLeaf, writeCertificates } from "../../support/certificates.ts";

const folder = mkdtempSync(join(tmpdir(), "blockferry-tls-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);
const nowMs = Date.now();

const ca = makeAuthority("authority");
const otherCa = makeAuthority("another authority");
const server = makeLeaf(ca, { name: "localhost", use: "server", hosts: ["localhost", "127.0.0.1"] });
const client = makeLeaf(ca, { name: "client", use: "client" });
writeCertificates(at("good"), { ca, server, client });
writeCertificates(at("anonymous"), { ca });
writeCertificates(at("stranger"), { ca, client: makeLeaf(otherCa, { name: "client", use: "client" }) });
writeCertificates(at("distrust"), { ca: otherCa, client });
const past = { fromDay: -20, untilDay: -2 };
writeCertificates(at("expired-client"), { ca, client: makeLeaf(ca, { name: "client", use: "client", ...past }) });
writeCertificates(at("expired-server"), {
  ca,
  server: makeLeaf(ca, { name: "localhost", use: "server", hosts: ["localhost"], ...past }),
});

const hex = (text: string) => createHash("sha256").update(text).digest("hex");
const secretFile = (name: string, text: string) => {
  writeFileSync(at(name), text, { mode: 0o600 });
  return at(name);
};
const keys = await loadPskFile(secretFile("keys.psk", `alice:${hex("alice")}\nbob:${hex("bob")}\n`));
const aliceOnly = await loadPskFile(secretFile("alice.psk", `alice:${hex("alice")}\n`));
const aliceWrong = await loadPskFile(secretFile("wrong.psk", `alice:${hex("guess")}\n`));
const mallory = await loadPskFile(secretFile("mallory.psk", `mallory:${hex("guess")}\n`));
const x509 = (verifyPeer: boolean, directory = "good") =>
  loadServerCertificates(at(directory), { verifyPeer, nowMs }).then((credentials) => ({ credentials, verifyPeer }));
const clientOf = (directory: string) => loadClientCertificates(at(directory), nowMs);
const psk = { credentials: keys, verifyPeer: false };

/** Sends back what arrives. */
function echo(stream: ByteStream): void {
  stream.attach({
    onBytes: (bytes) => stream.write(Buffer.from(bytes)),
    onEnd: () => stream.end(),
    onClose: () => {},
    onDrain: () => {},
  });
}

/** Listens with `options`, and hands out what became of the one client that comes. */
async function tlsEcho(options: TlsServerOptions, target: Address = { kind: "tcp", host: "127.0.0.1", port: 0 }) {
  const tls = new NodeTlsServer(options);
  const outcome = Promise.withResolvers<"accepted" | TlsError>();
  const listener = await listenOn(target, (stream) => {
    tls.accept(stream).then(
      (secure) => {
        echo(secure);
        outcome.resolve("accepted");
      },
      (error: TlsError) => outcome.resolve(error),
    );
  });
  return { address: listener.address, outcome: outcome.promise, [Symbol.dispose]: () => listener.close() };
}

/** What the server sends back for `text`, through a new connection. Rejects when there is none. */
async function roundTrip(address: Address, options: TlsClientOptions, text: Buffer): Promise<string> {
  const stream = await new NodeTlsClient(options).connect(await dial(address));
  return await new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    stream.attach({
      onBytes: (bytes) => parts.push(Buffer.from(bytes)),
      onEnd: () => stream.end(),
      onClose: (error) =>
        error ? reject(error) : resolve(createHash("sha256").update(Buffer.concat(parts)).digest("hex")),
      onDrain: () => {},
    });
    stream.write(text);
    stream.end();
  });
}

const payload = Buffer.alloc(3 * 1024 * 1024 + 17, "some bytes of a disk ");
const payloadHash = createHash("sha256").update(payload).digest("hex");
const localhost = { serverName: "localhost" };

describe("peers that prove themselves", () => {
  test("a server with a certificate, any client", async () => {
    using there = await tlsEcho(await x509(false));
    const credentials = await clientOf("anonymous");
    expect(await roundTrip(there.address, { credentials, ...localhost }, payload)).toBe(payloadHash);
    expect(await there.outcome).toBe("accepted");
  });

  test("both sides with certificates, over TCP by address and over a unix socket", async () => {
    const credentials = await clientOf("good");
    using tcp = await tlsEcho(await x509(true));
    expect(await roundTrip(tcp.address, { credentials, serverName: "127.0.0.1" }, payload)).toBe(payloadHash);
    using unix = await tlsEcho(await x509(true), { kind: "unix", path: at("echo.sock") });
    expect(await roundTrip(unix.address, { credentials, ...localhost }, payload)).toBe(payloadHash);
  });

  test("pre-shared keys: each name with its own key", async () => {
    for (const pskName of ["alice", "bob"]) {
      using there = await tlsEcho(psk);
      expect(await roundTrip(there.address, { credentials: keys, pskName, ...localhost }, payload)).toBe(payloadHash);
      expect(await there.outcome).toBe("accepted");
    }
  });

  test("a single key needs no name", async () => {
    using there = await tlsEcho(psk);
    expect(await roundTrip(there.address, { credentials: aliceOnly, ...localhost }, payload)).toBe(payloadHash);
  });
});

/** Both sides' errors when `options` meet `client`. */
async function refusal(options: TlsServerOptions, clientOptions: TlsClientOptions) {
  using there = await tlsEcho(options);
  const clientSide = await roundTrip(there.address, clientOptions, payload).then(
    () => "accepted" as const,
    (error: Error) => error,
  );
  return { clientSide, serverSide: await there.outcome };
}

describe("peers that do not", () => {
  test("a server of an authority that the client does not trust", async () => {
    const { clientSide, serverSide } = await refusal(await x509(false), {
      credentials: await clientOf("distrust"),
      ...localhost,
    });
    expect(clientSide).toMatchObject({ code: "untrusted", message: expect.stringContaining("certificate") });
    expect(serverSide).toBeInstanceOf(TlsError);
  });

  test("a server whose certificate carries another name", async () => {
    const { clientSide } = await refusal(await x509(false), {
      credentials: await clientOf("anonymous"),
      serverName: "elsewhere",
    });
    expect(clientSide).toMatchObject({ code: "untrusted", message: expect.stringContaining("elsewhere") });
  });

  test("a server whose certificate has expired", async () => {
    const options = await x509(false, "expired-server");
    expect(options.credentials.warnings).toEqual([expect.stringMatching(/expired-server.*expired on/)]);
    const { clientSide } = await refusal(options, { credentials: await clientOf("anonymous"), ...localhost });
    expect(clientSide).toMatchObject({ code: "untrusted", message: expect.stringContaining("expired") });
  });

  test.each([
    ["no certificate", "anonymous", "untrusted"],
    ["a certificate of another authority", "stranger", "untrusted"],
    ["an expired certificate", "expired-client", "untrusted"],
  ])("a client with %s, when the server verifies", async (_what, directory, code) => {
    const { clientSide, serverSide } = await refusal(await x509(true), {
      credentials: await clientOf(directory),
      ...localhost,
    });
    expect(clientSide).not.toBe("accepted");
    expect(serverSide).toMatchObject({ name: "TlsError", code });
  });

  test("a client with a wrong key", async () => {
    const { clientSide, serverSide } = await refusal(psk, { credentials: aliceWrong, ...localhost });
    expect(clientSide).toMatchObject({ name: "TlsError", code: "refused" });
    expect(serverSide).toMatchObject({ name: "TlsError", code: "handshake" });
  });

  test("a client with an unknown name is told the same as one with a wrong key; our log has the name", async () => {
    const wrongKey = await refusal(psk, { credentials: aliceWrong, ...localhost });
    const unknown = await refusal(psk, { credentials: mallory, ...localhost });
    expect((unknown.clientSide as Error).message.replace(/:\d+/, "")).toBe(
      (wrongKey.clientSide as Error).message.replace(/:\d+/, ""),
    );
    expect(unknown.serverSide).toMatchObject({ code: "untrusted", message: expect.stringContaining('"mallory"') });
  });

  test("a server with a certificate, good or not, for a client that has a key", async () => {
    const { clientSide } = await refusal(await x509(false), { credentials: aliceOnly, ...localhost });
    expect(clientSide).toMatchObject({ name: "TlsError" });
  });

  test("a peer that speaks something else", async () => {
    using there = await tlsEcho(await x509(false));
    const { host, port } = there.address as { host: string; port: number };
    connect(port, host)
      .on("error", () => {})
      .end("GET / HTTP/1.0\r\n\r\n");
    expect(await there.outcome).toMatchObject({ code: "handshake" });
  });

  test("a client that leaves, and one that says nothing until the deadline", async () => {
    const options = { ...(await x509(false)), handshakeTimeoutMs: 50 };
    using left = await tlsEcho(options);
    const { host, port } = left.address as { host: string; port: number };
    connect(port, host)
      .on("error", () => {})
      .end();
    expect(await left.outcome).toMatchObject({ code: "handshake" });
    using silent = await tlsEcho(options);
    const socket = connect((silent.address as { port: number }).port, host).on("error", () => {});
    expect(await silent.outcome).toMatchObject({ code: "deadline" });
    socket.destroy();
  });

  test("a server that says nothing until the deadline", async () => {
    const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => {
      stream.attach({ onBytes: () => {}, onEnd: () => stream.end(), onClose: () => {}, onDrain: () => {} });
    });
    const options = { credentials: aliceOnly, ...localhost, handshakeTimeoutMs: 50 };
    await expect(roundTrip(listener.address, options, payload)).rejects.toMatchObject({ code: "deadline" });
    listener.close();
  });
});

describe("files of credentials", () => {
  const serverFrom = (directory: string) => loadServerCertificates(directory, { verifyPeer: true, nowMs });

  test("a missing file is named", async () => {
    await expect(serverFrom(at("anonymous"))).rejects.toThrow(/server-cert\.pem: it is not there/);
    await expect(serverFrom(at("expired-client"))).rejects.toMatchObject({ code: "credentials" });
    await expect(loadPskFile(at("none.psk"))).rejects.toThrow(/none\.psk: it is not there/);
    await expect(loadPskFile(folder)).rejects.toThrow(/not a regular file/);
  });

  test("a secret that others can read is refused, with the command that mends it", async () => {
    for (const mode of [0o640, 0o604, 0o620]) {
      const path = secretFile("shared.psk", `a:${hex("a")}\n`);
      chmodSync(path, mode);
      const error = await loadPskFile(path).catch((e: TlsError) => e);
      expect(error).toMatchObject({ code: "credentials", hint: expect.stringContaining(`chmod 600 ${path}`) });
    }
    const directory = writeCertificates(at("exposed"), { ca, server });
    chmodSync(join(directory, "server-key.pem"), 0o644);
    await expect(serverFrom(directory)).rejects.toThrow(/everybody has access/);
  });

  test("a key that belongs to another certificate, and files that are no PEM, are refused", async () => {
    const directory = writeCertificates(at("mixed"), { ca, server: { ...server, keyPem: client.keyPem } });
    await expect(serverFrom(directory)).rejects.toThrow(/key values mismatch/);
    writeFileSync(join(directory, "server-cert.pem"), "nothing");
    await expect(serverFrom(directory)).rejects.toThrow(/do not parse/);
  });

  test("a certificate that is about to expire, or not valid yet, is warned of", async () => {
    const warningOf = async (fromDay: number, untilDay: number) => {
      const soon = makeLeaf(ca, { name: "localhost", use: "server", fromDay, untilDay });
      return (await serverFrom(writeCertificates(at("dates"), { ca, server: soon }))).warnings;
    };
    expect(await warningOf(-3, 40)).toEqual([]);
    expect(await warningOf(-3, 3)).toEqual([expect.stringMatching(/expires soon/)]);
    expect(await warningOf(3, 40)).toEqual([expect.stringMatching(/not valid before/)]);
  });

  test("the client's certificate is optional, but not without its key", async () => {
    expect(await clientOf("anonymous")).not.toHaveProperty("cert");
    const directory = writeCertificates(at("keyless"), { ca });
    writeFileSync(join(directory, "client-cert.pem"), client.certPem);
    await expect(loadClientCertificates(directory, nowMs)).rejects.toThrow(/client-key\.pem: it is not there/);
  });
});

describe("the text of a key file", () => {
  const good = hex("k");

  test("holds names, also ones with a colon or in hex, and forgives blank lines and CRLF", () => {
    const parsed = parsePskFile(`\r\nalice:${good}\r\n#c3bc:${good}\n  \nhost:7:${good.toUpperCase()}`, "f");
    expect(parsed.names).toEqual(["alice", "ü", "host:7"]);
    expect(parsed.keyFor("host:7").toString("hex")).toBe(good);
  });

  test("an unknown name gets a new random key each time", () => {
    const parsed = parsePskFile(`alice:${good}`, "f");
    expect(parsed.keyFor("bob")).toHaveLength(32);
    expect(parsed.keyFor("bob").equals(parsed.keyFor("bob"))).toBe(false);
    expect(parsed.has("bob")).toBe(false);
  });

  test.each([
    ["", /it holds no key/],
    ["alice", /line 1: there is no ":"/],
    [`\nalice:xyz`, /line 2: the key is not in hex/],
    ["alice:abc", /not in hex/],
    ["alice:abcd", /shorter than 16 bytes/],
    [`alice:${"ab".repeat(513)}`, /longer than 512 bytes/],
    [`:${good}`, /the name is empty/],
    [`#zz:${good}`, /not in hex/],
    [`${"n".repeat(257)}:${good}`, /exceeds 256 bytes/],
    [`a:${good}\na:${good}`, /line 2: the name occurs twice/],
  ])("a bad line is refused %#", (text, why) => {
    expect(() => parsePskFile(text, "f")).toThrow(why);
  });

  test("no key ever shows in an error or in JSON", () => {
    const secret = "secretsecretsecret";
    let message = "";
    try {
      parsePskFile(`alice:${secret}`, "f");
    } catch (error) {
      message = JSON.stringify({ ...(error as TlsError), text: String(error) });
    }
    expect(message).toContain("line 1");
    expect(message).not.toContain(secret);
    expect(JSON.stringify(keys)).not.toContain(hex("alice"));
  });
});

test("making TLS work takes a stream that is a socket", async () => {
  mkdirSync(at("unused"), { recursive: true });
  let destroyed = false;
  const stream = { peer: "x", destroy: () => (destroyed = true) } as unknown as ByteStream;
  await expect(new NodeTlsClient({ credentials: aliceOnly, ...localhost }).connect(stream)).rejects.toMatchObject({
    code: "unsupported",
  });
  expect(destroyed).toBe(true);
});
