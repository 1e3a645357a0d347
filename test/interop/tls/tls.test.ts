/** TLS between our server and the clients of libnbd and QEMU (both GnuTLS), and between both ends of our own. */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { afterAll, describe, expect, test } from "vitest";
import type { Address } from "../../../src/env/links.ts";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { NodeTlsClient } from "../../../src/os/tls.ts";
import { loadClientCertificates, loadPskFile } from "../../../src/os/tls-credentials.ts";
import { makeAuthority, makeLeaf, writeCertificates } from "../../support/certificates.ts";
import { nbdkit } from "../../support/peers.ts";
import { itWith } from "../../support/tools.ts";
import { makeFolder, makeImage, type Outcome, type Running, run, start, waitFor } from "../cli/harness.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());
const image = makeImage(folder);
const hashOf = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
const imageHash = hashOf(image);
const hosts = ["localhost", "127.0.0.1"];

const ca = makeAuthority("blockferry test authority");
const otherCa = makeAuthority("another authority");
const past = { fromDay: -20, untilDay: -2 };
const client = makeLeaf(ca, { name: "client", use: "client" });
const pki = (name: string, files: Parameters<typeof writeCertificates>[1]) => writeCertificates(folder.at(name), files);
const good = pki("good", { ca, server: makeLeaf(ca, { name: "localhost", use: "server", hosts }), client });
const anonymous = pki("anonymous", { ca });
const distrust = pki("distrust", { ca: otherCa });
const stranger = pki("stranger", { ca, client: makeLeaf(otherCa, { name: "client", use: "client" }) });
const late = pki("late", { ca, client: makeLeaf(ca, { name: "client", use: "client", ...past }) });
const expired = pki("expired", { ca, server: makeLeaf(ca, { name: "localhost", use: "server", hosts, ...past }) });

/** A folder with the key as QEMU wants it, which libnbd can name as a file. */
function pskFolder(name: string, keyOf: string): string {
  mkdirSync(folder.at(name));
  const line = `alice:${createHash("sha256").update(keyOf).digest("hex")}\n`;
  writeFileSync(`${folder.at(name)}/keys.psk`, line, { mode: 0o600 });
  return folder.at(name);
}
const pskGood = pskFolder("psk-good", "right");
const pskWrong = pskFolder("psk-wrong", "wrong");

interface Served extends AsyncDisposable {
  readonly port: number;
  readonly uri: string;
  readonly server: Running;
}

async function serveTls(...flags: string[]): Promise<Served> {
  const server = start(["serve", "-r", "-p", "0", "-x", "vda", "--description", "secret text", ...flags, image]);
  const uri = await server.ready();
  const { address } = parseNbdUri(uri);
  return {
    port: address.kind === "tcp" ? address.port : 0,
    uri,
    server,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** Fails, and learns nothing of what is served. */
function expectRefusal(outcome: Outcome): void {
  expect(outcome.code).not.toBe(0);
  expect(outcome.stdout + outcome.stderr).not.toMatch(/secret text|export-size|4194304|virtual size/);
}

const qemuInfo = (port: number, credentials: string): Outcome =>
  run("qemu-img", [
    "info",
    "--object",
    `${credentials},id=tls0,endpoint=client`,
    "--image-opts",
    `driver=nbd,host=localhost,port=${port},export=vda,tls-creds=tls0`,
  ]);
const qemuX509 = (port: number, directory: string) => qemuInfo(port, `tls-creds-x509,dir=${directory}`);
const qemuPsk = (port: number, directory: string) => qemuInfo(port, `tls-creds-psk,dir=${directory},username=alice`);
const libnbdX509 = (port: number, directory: string) =>
  run("nbdinfo", [`nbds://localhost:${port}/vda?tls-certificates=${directory}`]);
const libnbdPsk = (port: number, directory: string) =>
  run("nbdinfo", [`nbds://alice@localhost:${port}/vda?tls-psk-file=${directory}/keys.psk`]);

describe("good credentials", () => {
  itWith(
    ["nbdinfo", "nbdcopy", "qemu-img"],
    "certificates of the server: libnbd and QEMU read through TLS",
    async () => {
      await using there = await serveTls("--tls-certificates", good);
      expect(there.uri).toMatch(/^nbds:\/\/127\.0\.0\.1:\d+\/vda\?tls-certificates=/);
      const info = libnbdX509(there.port, anonymous);
      expect(info.stdout).toMatch(/with TLS[\s\S]*secret text[\s\S]*export-size: 4194304/);
      expect(qemuX509(there.port, anonymous).stdout).toContain("4 MiB");
      const copy = folder.at("copy-x509");
      expect(run("nbdcopy", [there.uri, copy])).toMatchObject({ code: 0, stderr: "" });
      expect(hashOf(copy)).toBe(imageHash);
    },
  );

  itWith(["nbdinfo", "qemu-img"], "certificates of both, verified by both", async () => {
    await using there = await serveTls("--tls-certificates", good, "--tls-verify-peer");
    expect(libnbdX509(there.port, good).stdout).toContain("export-size: 4194304");
    expect(qemuX509(there.port, good).stdout).toContain("4 MiB");
  });

  itWith(["nbdinfo", "nbdcopy", "qemu-img"], "a pre-shared key", async () => {
    await using there = await serveTls("--tls-psk", `${pskGood}/keys.psk`);
    expect(there.uri).toMatch(/^nbds:\/\/alice@127\.0\.0\.1:\d+\/vda\?tls-psk-file=/);
    expect(libnbdPsk(there.port, pskGood).stdout).toMatch(/with TLS[\s\S]*export-size: 4194304/);
    expect(qemuPsk(there.port, pskGood).stdout).toContain("4 MiB");
    const copy = folder.at("copy-psk");
    expect(run("nbdcopy", [there.uri, copy])).toMatchObject({ code: 0, stderr: "" });
    expect(hashOf(copy)).toBe(imageHash);
  });

  itWith(["psktool", "nbdinfo"], "a key that GnuTLS's psktool made, over a unix socket", async () => {
    const keys = folder.at("psktool.psk");
    expect(run("psktool", ["-u", "bob", "-p", keys]).code).toBe(0);
    await using server = start(["serve", "-U", "-", "--tls-psk", keys, image]);
    expect(run("nbdinfo", ["--size", await server.ready()])).toMatchObject({ code: 0, stdout: "4194304\n" });
  });

  itWith(["nbdinfo", "qemu-img"], "TLS that is offered only: with and without", async () => {
    await using there = await serveTls("--tls=on", "--tls-certificates", good);
    expect(there.uri).toMatch(/^nbd:/);
    expect(run("nbdinfo", [there.uri]).stdout).toMatch(/without TLS/);
    expect(libnbdX509(there.port, anonymous).stdout).toMatch(/with TLS/);
  });
});

describe("bad credentials are refused before anything is told", () => {
  itWith(
    ["nbdinfo", "qemu-img"],
    "an authority that the client does not trust, and a server that has expired",
    async () => {
      await using wrong = await serveTls("--tls-certificates", good);
      expectRefusal(libnbdX509(wrong.port, distrust));
      expectRefusal(qemuX509(wrong.port, distrust));
      await using old = await serveTls("--tls-certificates", expired);
      expect(old.server.stderr).toMatch(/server-cert\.pem expired on/);
      expectRefusal(libnbdX509(old.port, anonymous));
      expectRefusal(qemuX509(old.port, anonymous));
    },
  );

  itWith(
    ["nbdinfo", "qemu-img"],
    "no certificate, one of another authority, an expired one: when the server verifies",
    async () => {
      await using there = await serveTls("--tls-certificates", good, "--tls-verify-peer");
      for (const directory of [anonymous, stranger, late]) expectRefusal(libnbdX509(there.port, directory));
      for (const directory of [anonymous, stranger]) expectRefusal(qemuX509(there.port, directory));
      const lines = await waitFor(() => logOf(there.server, 4)); // QEMU looks at its own certificates, and does not even try with a stranger's
      expect(lines.map(({ msg }) => msg)).toEqual(Array.from({ length: lines.length }, () => "a TLS handshake failed"));
      expect(lines.some(({ why }) => /showed no certificate/.test(why))).toBe(true);
      expect(lines.some(({ why }) => /CERT_HAS_EXPIRED/.test(why))).toBe(true);
    },
  );

  itWith(["nbdinfo", "qemu-img"], "a wrong key, and a name that is not known", async () => {
    await using there = await serveTls("--tls-psk", `${pskGood}/keys.psk`);
    expectRefusal(libnbdPsk(there.port, pskWrong));
    expectRefusal(qemuPsk(there.port, pskWrong));
    writeFileSync(folder.at("mallory.psk"), `mallory:${"ab".repeat(32)}\n`, { mode: 0o600 });
    expectRefusal(
      run("nbdinfo", [`nbds://mallory@localhost:${there.port}/vda?tls-psk-file=${folder.at("mallory.psk")}`]),
    );
    await waitFor(() => (there.server.stderr.includes('\\"mallory\\"') ? true : undefined));
    const keyText = readFileSync(`${pskGood}/keys.psk`, "latin1").slice(6, 30);
    expect(there.server.stderr).not.toContain(keyText);
  });

  itWith(["nbdinfo", "qemu-img"], "no TLS at all, when it is required", async () => {
    await using there = await serveTls("--tls-certificates", good);
    for (const name of ["vda", ""]) expectRefusal(run("nbdinfo", [`nbd://localhost:${there.port}/${name}`]));
    expectRefusal(run("nbdinfo", ["--list", `nbd://localhost:${there.port}/`]));
    expectRefusal(run("qemu-img", ["info", `nbd://localhost:${there.port}/vda`]));
  });

  test("what a client says in plain text before TLS counts for nothing, and what it says along with STARTTLS ends it", async () => {
    await using there = await serveTls("--tls-certificates", good);
    const injected = await talk(there.port, [option(5), option(7, Buffer.from([0, 0, 0, 0, 0, 0]))]);
    expect(injected.closed).toBe(true);
    expect(injected.bytes.includes("secret text")).toBe(false);
    const plain = await talk(there.port, [option(7, Buffer.from([0, 0, 0, 3, 0x76, 0x64, 0x61, 0, 0])), option(2)]);
    expect(plain.bytes.readUInt32BE(18 + 12)).toBe(0x80000005); // NBD_REP_ERR_TLS_REQD
  });
});

describe("our own client", () => {
  const env = createRealEnv();
  const tcp = (port: number): Address => ({ kind: "tcp", host: "127.0.0.1", port });

  async function readAll(address: Address, tls: NodeTlsClient): Promise<string> {
    await using device = await connectNbd(env, { address, exportName: "vda", tls: { mode: "require", client: tls } });
    const bytes = new Uint8Array(device.sizeBytes);
    await device.read(0, bytes);
    expect(device.secure).toBe(true);
    return createHash("sha256").update(bytes).digest("hex");
  }

  test("reads everything through TLS, with certificates on both sides and with a key", async () => {
    await using x509 = await serveTls("--tls-certificates", good, "--tls-verify-peer");
    const credentials = await loadClientCertificates(good, Date.now());
    expect(await readAll(tcp(x509.port), new NodeTlsClient({ credentials, serverName: "127.0.0.1" }))).toBe(imageHash);
    await using psk = await serveTls("--tls-psk", `${pskGood}/keys.psk`);
    const keys = await loadPskFile(`${pskGood}/keys.psk`);
    expect(await readAll(tcp(psk.port), new NodeTlsClient({ credentials: keys, serverName: "localhost" }))).toBe(
      imageHash,
    );
  });

  test("refuses a server of another authority, and one that has no TLS", async () => {
    await using there = await serveTls("--tls-certificates", good);
    const credentials = await loadClientCertificates(distrust, Date.now());
    const tls = new NodeTlsClient({ credentials, serverName: "localhost" });
    await expect(readAll(tcp(there.port), tls)).rejects.toThrow(/certificate/);
    await using plain = await serveTls();
    await expect(readAll(tcp(plain.port), tls)).rejects.toThrow(/TLS/i);
  });

  itWith(["nbdkit"], "reads from nbdkit with a pre-shared key, and with certificates", async () => {
    const keys = `${pskGood}/keys.psk`;
    const ways = [
      { flag: `--tls-psk=${keys}`, credentials: await loadPskFile(keys) },
      { flag: `--tls-certificates=${good}`, credentials: await loadClientCertificates(good, Date.now()) },
    ];
    for (const { flag, credentials } of ways) {
      await using server = await nbdkit("-r", "--tls=require", flag, "file", image);
      const tls = new NodeTlsClient({ credentials, serverName: "localhost" });
      expect(await readAll(server.address, tls)).toBe(imageHash);
    }
  });
});

interface LogLine {
  readonly msg: string;
  readonly why: string;
}

function logOf(server: Running, atLeast: number): LogLine[] | undefined {
  const lines = server.stderr
    .trimEnd()
    .split("\n")
    .filter((line) => line !== "");
  return lines.length >= atLeast ? lines.map((line) => JSON.parse(line) as LogLine) : undefined;
}

/** An option of the handshake, without or with data. */
function option(number: number, data: Uint8Array = new Uint8Array()): Buffer {
  const header = Buffer.alloc(16);
  header.write("IHAVEOPT", "latin1");
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** Sends the client's flags and `messages`, all at once, and gathers what comes until the server closes. */
async function talk(port: number, messages: readonly Buffer[]): Promise<{ bytes: Buffer; closed: boolean }> {
  const socket: Socket = connect(port, "127.0.0.1");
  const parts: Buffer[] = [];
  let closed = false;
  socket.on("data", (bytes: Buffer) => parts.push(bytes)).on("error", () => {});
  socket.on("close", () => {
    closed = true;
  });
  socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), ...messages]));
  await waitFor(() => (closed ? true : undefined));
  return { bytes: Buffer.concat(parts), closed };
}
