/** TLS of our client against nbdkit and qemu-nbd, which both use GnuTLS. */
import { writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import type { TlsClient } from "../../../../src/env/tls.ts";
import { NodeTlsClient } from "../../../../src/os/tls.ts";
import { loadClientCertificates, loadPskFile } from "../../../../src/os/tls-credentials.ts";
import { makeAuthority, makeLeaf, writeCertificates } from "../../../support/certificates.ts";
import { makeImage, pattern } from "../../../support/patterns.ts";
import { nbdkit, type Peer, qemuNbd } from "../../../support/peers.ts";
import { type TempDir, tempDir } from "../../../support/temp-dir.ts";
import { requireTools } from "../../../support/tools.ts";
import { bytesOf, outcomeOf } from "./outcome.ts";

const MIB = 1 << 20;
const KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0";

const authority = makeAuthority("blockferry tests");
const stranger = makeAuthority("somebody else");

function certificates(folder: TempDir): string {
  return writeCertificates(folder.file("pki"), {
    ca: authority,
    server: makeLeaf(authority, { name: "server", use: "server", hosts: ["localhost"] }),
    client: makeLeaf(authority, { name: "client", use: "client" }),
  });
}

async function x509(directory: string, serverName = "localhost"): Promise<TlsClient> {
  const credentials = await loadClientCertificates(directory, Date.now());
  return new NodeTlsClient({ credentials, serverName });
}

async function psk(folder: TempDir, name: string, key: string): Promise<TlsClient> {
  const path = folder.file(`${name}.psk`);
  writeFileSync(path, `${name}:${key}\n`, { mode: 0o600 });
  return new NodeTlsClient({ credentials: await loadPskFile(path), serverName: "localhost", pskName: name });
}

/** Writes and reads a few megabytes, and closes in order. */
async function exercise(peer: Peer, client: TlsClient): Promise<void> {
  await using device = await peer.open({ tls: { mode: "require", client } });
  expect(device.secure).toBe(true);
  await Promise.all([0, 1, 2].map((lane) => device.write(lane * MIB, pattern(lane * MIB, MIB - 100))));
  await device.write(3 * MIB, pattern(3 * MIB, 4 * MIB));
  expect((await bytesOf(device, 3 * MIB, 4 * MIB)).equals(pattern(3 * MIB, 4 * MIB))).toBe(true);
  expect((await bytesOf(device, MIB, 1000)).equals(pattern(MIB, 1000))).toBe(true);
  await device.flush();
  await device.close();
  expect(device.state).toBe("closed");
}

describe("TLS", () => {
  test("with certificates on both sides works with nbdkit, and everything less is refused", async (context) => {
    requireTools(context, ["nbdkit"]);
    using folder = tempDir();
    const pki = certificates(folder);
    const flags = ["--tls=require", `--tls-certificates=${pki}`, "--tls-verify-peer"];
    await using peer = await nbdkit(...flags, "memory", "16M");
    await exercise(peer, await x509(pki));
    expect(await outcomeOf(peer.open())).toMatchObject({ code: "tls-required" });
    const other = writeCertificates(folder.file("other"), { ca: stranger });
    const refusal = await outcomeOf(peer.open({ tls: { mode: "require", client: await x509(other) } }));
    expect(refusal).toMatchObject({ code: "tls-failed" });
    const wrongName = await outcomeOf(peer.open({ tls: { mode: "on", client: await x509(pki, "elsewhere") } }));
    expect(wrongName).toMatchObject({ code: "tls-failed" });
    // In TLS 1.3 the server's verdict on our certificate comes after the handshake, as a closed connection.
    const anonymous = writeCertificates(folder.file("anonymous"), { ca: authority });
    const nameless = await outcomeOf(peer.open({ tls: { mode: "require", client: await x509(anonymous) } }));
    expect(nameless).toMatchObject({ name: "NbdConnectError" });
  });

  test("with a pre-shared key works with nbdkit, and with no other key", async (context) => {
    requireTools(context, ["nbdkit"]);
    using folder = tempDir();
    const right = await psk(folder, "alice", KEY);
    await using peer = await nbdkit("--tls=require", `--tls-psk=${folder.file("alice.psk")}`, "memory", "16M");
    await exercise(peer, right);
    const wrong = await psk(folder, "mallory", KEY.replace("0f", "ff"));
    expect(await outcomeOf(peer.open({ tls: { mode: "require", client: wrong } }))).toMatchObject({
      name: "NbdConnectError",
    });
    expect(await outcomeOf(peer.open())).toMatchObject({ code: "tls-required" });
  });

  test("that is required is not done without, and that is preferred is", async (context) => {
    requireTools(context, ["nbdkit"]);
    using folder = tempDir();
    const client = await x509(certificates(folder));
    await using peer = await nbdkit("--tls=off", "memory", "1M");
    expect(await outcomeOf(peer.open({ tls: { mode: "require", client } }))).toMatchObject({ code: "tls-unavailable" });
    await using device = await peer.open({ tls: { mode: "on", client } });
    expect(device.secure).toBe(false);
    await device.write(0, pattern(0, 512));
  });

  test("works with qemu-nbd", async (context) => {
    requireTools(context, ["qemu-nbd"]);
    using folder = tempDir();
    const pki = certificates(folder);
    const credentials = `tls-creds-x509,id=tls0,endpoint=server,dir=${pki},verify-peer=yes`;
    const flags = ["--object", credentials, "--tls-creds", "tls0"];
    await using peer = await qemuNbd((image) => makeImage(image, 16 * MIB), ...flags);
    await exercise(peer, await x509(pki));
    expect(await outcomeOf(peer.open())).toMatchObject({ code: "tls-required" });
  });
});
