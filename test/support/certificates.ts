/**
 * X.509 certificates made on the spot: no fixtures that expire, no openssl program needed. ECDSA on P-256, version 3,
 * just the fields that TLS programs look at. DER is written by hand, after RFC 5280, appendix A.
 */
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";

const DAY_MS = 86_400_000;

export interface Certificate {
  readonly name: string;
  readonly certPem: string;
  readonly keyPem: string;
  readonly privateKey: KeyObject;
}

export interface LeafOptions {
  readonly name: string;
  readonly use: "server" | "client";
  /** DNS names and IPv4 addresses. */
  readonly hosts?: readonly string[];
  /** Days from now; negative ones are in the past. Default: from yesterday for a month. */
  readonly fromDay?: number;
  readonly untilDay?: number;
}

/** A self-signed authority. */
export function makeAuthority(name: string): Certificate {
  const keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const extensions = [
    extension(OID.basicConstraints, true, sequence(BOOLEAN_TRUE)),
    extension(OID.keyUsage, true, tlv(0x03, Buffer.from([1, 0b0000_0110]))), // keyCertSign, cRLSign
  ];
  return certificate({ name, issuer: name, keys, signer: keys.privateKey, extensions, fromDay: -1, untilDay: 30 });
}

/** A certificate for a server or a client, signed by `authority`. */
export function makeLeaf(authority: Certificate, options: LeafOptions): Certificate {
  const keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const extensions = [
    extension(OID.basicConstraints, true, sequence()),
    extension(OID.extendedKeyUsage, false, sequence(oid(options.use === "server" ? OID.serverAuth : OID.clientAuth))),
  ];
  const hosts = options.hosts ?? [];
  if (hosts.length > 0) extensions.push(extension(OID.subjectAltName, false, sequence(...hosts.map(hostName))));
  const { fromDay = -1, untilDay = 30, name } = options;
  return certificate({
    name,
    issuer: authority.name,
    keys,
    signer: authority.privateKey,
    extensions,
    fromDay,
    untilDay,
  });
}

/** Writes a directory as NBD programs expect it; keys are 0600. */
export function writeCertificates(
  directory: string,
  files: { readonly ca?: Certificate; readonly server?: Certificate; readonly client?: Certificate },
): string {
  mkdirSync(directory, { recursive: true });
  if (files.ca) writeFileSync(join(directory, "ca-cert.pem"), files.ca.certPem);
  for (const role of ["server", "client"] as const) {
    const made = files[role];
    if (made === undefined) continue;
    writeFileSync(join(directory, `${role}-cert.pem`), made.certPem);
    writeFileSync(join(directory, `${role}-key.pem`), made.keyPem, { mode: 0o600 });
  }
  return directory;
}

interface Parts {
  readonly name: string;
  readonly issuer: string;
  readonly keys: { readonly publicKey: KeyObject; readonly privateKey: KeyObject };
  readonly signer: KeyObject;
  readonly extensions: readonly Buffer[];
  readonly fromDay: number;
  readonly untilDay: number;
}

function certificate(parts: Parts): Certificate {
  const algorithm = sequence(oid(OID.ecdsaWithSha256));
  const serial = randomBytes(8);
  serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40; // positive, and no superfluous leading zero
  const body = sequence(
    tlv(0xa0, tlv(0x02, Buffer.from([2]))), // version 3
    tlv(0x02, serial),
    algorithm,
    distinguishedName(parts.issuer),
    sequence(time(parts.fromDay), time(parts.untilDay)),
    distinguishedName(parts.name),
    parts.keys.publicKey.export({ type: "spki", format: "der" }),
    tlv(0xa3, sequence(...parts.extensions)),
  );
  const signature = sign("sha256", body, parts.signer);
  const der = sequence(body, algorithm, tlv(0x03, Buffer.concat([Buffer.of(0), signature])));
  const lines = der.toString("base64").match(/.{1,64}/g) ?? [];
  return {
    name: parts.name,
    certPem: `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`,
    keyPem: parts.keys.privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
    privateKey: parts.keys.privateKey,
  };
}

const OID = {
  commonName: "2.5.4.3",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  extendedKeyUsage: "2.5.29.37",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  clientAuth: "1.3.6.1.5.5.7.3.2",
  ecdsaWithSha256: "1.2.840.10045.4.3.2",
};

const BOOLEAN_TRUE = Buffer.from([0x01, 0x01, 0xff]);

/** Tag, length, value. */
function tlv(tag: number, value: Buffer): Buffer {
  const length = value.length;
  const prefix =
    length < 128 ? [tag, length] : length < 256 ? [tag, 0x81, length] : [tag, 0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from(prefix), value]);
}

function sequence(...parts: Buffer[]): Buffer {
  return tlv(0x30, Buffer.concat(parts));
}

function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
  const bytes = [first * 40 + second];
  for (const arc of rest) {
    const digits = [arc & 0x7f];
    for (let high = arc >>> 7; high > 0; high >>>= 7) digits.unshift((high & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return tlv(0x06, Buffer.from(bytes));
}

function distinguishedName(commonName: string): Buffer {
  return sequence(tlv(0x31, sequence(oid(OID.commonName), tlv(0x0c, Buffer.from(commonName, "utf8")))));
}

function time(day: number): Buffer {
  const digits = new Date(Date.now() + day * DAY_MS).toISOString().replace(/[-:T]/g, "").slice(0, 14);
  return tlv(0x18, Buffer.from(`${digits}Z`)); // GeneralizedTime
}

function extension(id: string, critical: boolean, value: Buffer): Buffer {
  return sequence(oid(id), ...(critical ? [BOOLEAN_TRUE] : []), tlv(0x04, value));
}

function hostName(host: string): Buffer {
  return isIP(host) === 4 ? tlv(0x87, Buffer.from(host.split(".").map(Number))) : tlv(0x82, Buffer.from(host));
}
