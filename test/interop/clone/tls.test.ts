/** Sources behind TLS, as GnuTLS speaks it: `nbds://` with keys and with certificates, and nothing in plain text. */
import { existsSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import { makeAuthority, makeLeaf, writeCertificates } from "../../support/certificates.ts";
import { placeIn, uriOf } from "../../support/clone-checks.ts";
import { runClone } from "../../support/clone-process.ts";
import { imageDifference, makeImage } from "../../support/patterns.ts";
import { nbdkit, type Peer, qemuNbd } from "../../support/peers.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { MiB } from "../serve/layout.ts";

const KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0";
const SIZE = 2 * MiB;
const REGIONS = [{ offset: 0, length: SIZE, salt: 7 }];

const authority = makeAuthority("blockferry tests");

function keyFile(folder: TempDir, name: string, key: string): string {
  writeFileSync(folder.file(name), `alice:${key}\n`, { mode: 0o600 });
  return folder.file(name);
}

function secureUri({ address }: Peer, credentials: string): string {
  if (address.kind !== "unix") throw new Error("peers listen on unix sockets");
  return `nbds+unix://alice@/?socket=${address.path}&${credentials}`;
}

/** Copies from `uri`. Resolves to the exit status; the copy is right when it is 0, and was not begun otherwise. */
async function copyStatus(uri: string): Promise<number> {
  using folder = tempDir();
  const place = placeIn(folder, uri);
  const { status } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
  if (status === 0) expect(imageDifference(place.image, SIZE, REGIONS)).toBeUndefined();
  else expect(existsSync(place.image)).toBe(false);
  return status;
}

itWith(["nbdkit"], "a key that both know opens nbdkit, and no other key does, nor none", async () => {
  using folder = tempDir();
  makeImage(folder.file("disk"), SIZE, REGIONS);
  const right = keyFile(folder, "right.psk", KEY);
  const wrong = keyFile(folder, "wrong.psk", KEY.replace("0f", "ff"));
  await using source = await nbdkit("--tls=require", `--tls-psk=${right}`, "-r", "file", folder.file("disk"));
  expect(await copyStatus(secureUri(source, `tls-psk-file=${right}`))).toBe(0);
  expect(await copyStatus(secureUri(source, `tls-psk-file=${wrong}`))).toBe(78);
  expect(await copyStatus(uriOf(source))).toBe(78);
});

itWith(["qemu-nbd"], "certificates on both sides open qemu-nbd, and another authority's do not", async () => {
  using folder = tempDir();
  const server = makeLeaf(authority, { name: "server", use: "server", hosts: ["localhost"] });
  const client = makeLeaf(authority, { name: "client", use: "client" });
  const pki = writeCertificates(folder.file("pki"), { ca: authority, server, client });
  const other = writeCertificates(folder.file("other"), { ca: makeAuthority("somebody else"), client });
  const credentials = `tls-creds-x509,id=tls0,endpoint=server,dir=${pki},verify-peer=yes`;
  const prepare = (image: string): void => makeImage(image, SIZE, REGIONS);
  await using source = await qemuNbd(prepare, "-r", "--object", credentials, "--tls-creds", "tls0");
  expect(await copyStatus(secureUri(source, `tls-certificates=${pki}`))).toBe(0);
  expect(await copyStatus(secureUri(source, `tls-certificates=${other}`))).toBe(78);
});

itWith(["nbdkit"], "a source that would have been asked for TLS and has none is not copied from", async () => {
  using folder = tempDir();
  await using source = await nbdkit("--tls=off", "pattern", String(SIZE));
  const key = keyFile(folder, "key.psk", KEY);
  expect(await copyStatus(secureUri(source, `tls-psk-file=${key}`))).toBe(78);
});
