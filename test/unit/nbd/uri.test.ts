import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatNbdUri, type NbdUri, NbdUriError, parseNbdUri } from "../../../src/nbd/uri.ts";
import { fcParameters } from "../../support/seed.ts";

const tcp = (host: string, port = 10_809): NbdUri["address"] => ({ kind: "tcp", host, port });
const unix = (path: string): NbdUri["address"] => ({ kind: "unix", path });

describe("an NBD URI", () => {
  test.each([
    ["nbd://example.com/disk", { address: tcp("example.com"), exportName: "disk" }],
    ["nbd://example.com/", { address: tcp("example.com"), exportName: "" }],
    ["nbd://example.com", { address: tcp("example.com"), exportName: "" }],
    ["nbd://example.com//disk", { address: tcp("example.com"), exportName: "/disk" }],
    ["nbd://example.com/hello%20world", { address: tcp("example.com"), exportName: "hello world" }],
    ["nbd://example.com/a/b/c", { address: tcp("example.com"), exportName: "a/b/c" }],
    ["nbd://example.com/a%2Fb", { address: tcp("example.com"), exportName: "a/b" }],
    ["nbd://example.com:1/a+b", { address: tcp("example.com", 1), exportName: "a+b" }],
    ["nbd://example.com:65535/v%C3%A4", { address: tcp("example.com", 65_535), exportName: "vä" }],
    ["nbd://example.com:/x", { address: tcp("example.com"), exportName: "x" }],
    ["NBD://Example.com/X", { address: tcp("Example.com"), exportName: "X" }],
    ["nbd://127.0.0.1:10810", { address: tcp("127.0.0.1", 10_810), exportName: "" }],
    ["nbd://[::1]/disk", { address: tcp("::1"), exportName: "disk" }],
    ["nbd://[fe80::1%25eth0]:7000/disk", { address: tcp("fe80::1%eth0", 7000), exportName: "disk" }],
    ["nbds://host/x", { address: tcp("host"), secure: true, exportName: "x" }],
    ["nbds://alice@host/x", { address: tcp("host"), secure: true, exportName: "x", user: "alice" }],
    ["nbds://a%40b@host/x", { address: tcp("host"), secure: true, exportName: "x", user: "a@b" }],
    ["nbd+unix:///?socket=/tmp/s", { address: unix("/tmp/s"), exportName: "" }],
    ["nbd+unix:///disk?socket=nbd.sock", { address: unix("nbd.sock"), exportName: "disk" }],
    ["nbd+unix:/disk?socket=s", { address: unix("s"), exportName: "disk" }],
    ["nbd+unix:///?socket=/a%20b/c+d%26e", { address: unix("/a b/c+d&e"), exportName: "" }],
    ["nbd+unix:///?socket=%00abstract", { address: unix("\0abstract"), exportName: "" }],
    ["nbds+unix://alice@/?socket=/s", { address: unix("/s"), secure: true, exportName: "", user: "alice" }],
    [
      "nbds://h/x?tls-certificates=/etc/pki&tls-hostname=other.example&tls-verify-peer=0&tls-type=x509",
      {
        address: tcp("h"),
        secure: true,
        exportName: "x",
        tlsType: "x509",
        tlsCertificates: "/etc/pki",
        tlsHostname: "other.example",
        tlsVerifyPeer: false,
      },
    ],
    [
      "nbds+unix://bob@/x?tls-psk-file=/k.psk&tls-verify-peer=1&socket=/s&tls-type=psk",
      {
        address: unix("/s"),
        secure: true,
        exportName: "x",
        user: "bob",
        tlsType: "psk",
        tlsPskFile: "/k.psk",
        tlsVerifyPeer: true,
      },
    ],
  ] as const)("%s", (text, expected) => {
    expect(parseNbdUri(text)).toEqual({ secure: false, ...expected });
  });

  test.each([
    ["", "no scheme"],
    ["disk.raw", "no scheme"],
    ["/vm/disk.raw", "no scheme"],
    ["http://host/x", '"http"'],
    ["nbd:localhost:10809", "slash"],
    ["nbd://", "no host"],
    ["nbd:///disk", "no host"],
    ["nbd+vsock://1/x", "vsock"],
    ["nbds+vsock://1/x", "vsock"],
    ["nbd://host/x#y", '"#"'],
    ["nbd://host/a b", "percent-encoded"],
    ["nbd://host/ä", "percent-encoded"],
    ["nbd://host/100%", "percent-encoded"],
    ["nbd://host/%4", "percent-encoded"],
    ["nbd://host/%zz", "percent-encoded"],
    ["nbd://host/\n", "percent-encoded"],
    ["nbd://host/%ff", "UTF-8"],
    ["nbd://host/a%00b", "NUL"],
    [`nbd://host/${"a".repeat(4097)}`, "4096"],
    ["nbd://host:0/x", '"0"'],
    ["nbd://host:65536/x", '"65536"'],
    ["nbd://host:7x/x", '"7x"'],
    ["nbd://::1/x", "[user@]host[:port]"],
    ["nbd://[::1/x", "[user@]host[:port]"],
    ["nbd://[host]/x", "IPv6"],
    ["nbd://[]/x", "IPv6"],
    ["nbd://a@b@c/x", "[user@]host[:port]"],
    ["nbd+unix:///x", "socket is missing"],
    ["nbd+unix:///x?socket=", "socket has no value"],
    ["nbd+unix:///x?socket", "socket has no value"],
    ["nbd+unix:///x?socket=/a%00b", "NUL"],
    ["nbd+unix:///x?socket=a&socket=b", "twice"],
    ["nbd+unix://host/x?socket=a", "no host"],
    ["nbd+unix://:10809/x?socket=a", "no host"],
    ["nbd://host/x?socket=/a", "TCP"],
    ["nbd://host/x?Socket=/a", '"Socket"'],
    ["nbd://host/x?tls-typo=1", '"tls-typo"'],
    ["nbd://host/x?frob=1", '"frob"'],
    ["nbds://host/x?tls-type=anon", '"anon"'],
    ["nbds://host/x?tls-verify-peer=yes", '"yes"'],
    ["nbds://host/x?tls-certificates=", "no value"],
  ])("%j is refused, and it is told why", (text, why) => {
    try {
      parseNbdUri(text);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(NbdUriError);
      expect((error as NbdUriError).message).toContain(why);
      expect((error as NbdUriError).hint).not.toBe("");
    }
  });

  test("an unknown parameter's hint lists those there are", () => {
    expect(() => parseNbdUri("nbd://host/x?frob=1")).toThrow(
      expect.objectContaining({ hint: expect.stringContaining("tls-psk-file") }),
    );
  });
});

describe("formatting", () => {
  test("writes what people write", () => {
    for (const text of [
      "nbd://example.com/disk",
      "nbd://[::1]:7000/",
      "nbds://alice@host/x?tls-psk-file=/k.psk",
      "nbd+unix:///vda?socket=/run/blockferry/nbd.sock",
      "nbd+unix:///%20?socket=%00x%20%26%3D",
    ]) {
      expect(formatNbdUri(parseNbdUri(text))).toBe(text);
    }
  });

  const character = fc.oneof(
    fc.constantFrom(..."/?#[]@!$&'()*+,;= %äé\u{1f600}\t\n\"<>\\^`{|}:"),
    fc.string({ unit: "grapheme", minLength: 1, maxLength: 1 }),
  );
  const anyText = (minLength: number): fc.Arbitrary<string> =>
    fc
      .array(character, { minLength, maxLength: 12 })
      .map((list) => list.join(""))
      .filter((text) => text.isWellFormed() && !text.includes("\0") && text.length >= minLength);
  const address: fc.Arbitrary<NbdUri["address"]> = fc.oneof(
    fc.record({
      kind: fc.constant("tcp" as const),
      host: fc.oneof(
        fc.domain(),
        fc.ipV4(),
        fc.ipV6().filter((ip) => ip.includes(":")),
      ),
      port: fc.integer({ min: 1, max: 65_535 }),
    }),
    fc.record({ kind: fc.constant("unix" as const), path: anyText(1) }),
  );
  const uri: fc.Arbitrary<NbdUri> = fc.record(
    {
      address,
      secure: fc.boolean(),
      exportName: anyText(0),
      user: anyText(0),
      tlsType: fc.constantFrom("x509" as const, "psk" as const),
      tlsCertificates: anyText(1),
      tlsPskFile: anyText(1),
      tlsHostname: anyText(1),
      tlsVerifyPeer: fc.boolean(),
    },
    { requiredKeys: ["address", "secure", "exportName"] },
  );

  test("and parsing again gives the same", () => {
    const property = fc.property(uri, (it) => {
      expect(parseNbdUri(formatNbdUri(it))).toEqual(it);
    });
    fc.assert(property, fcParameters({ local: 1000, ci: 20_000 }));
  });

  test("and parsing never fail in another way than they say", () => {
    const property = fc.property(
      fc.string({ maxLength: 40 }),
      fc.constantFrom("", "nbd://", "nbds+unix://"),
      (text, start) => {
        try {
          const parsed = parseNbdUri(start + text);
          expect(parseNbdUri(formatNbdUri(parsed))).toEqual(parsed);
        } catch (error) {
          expect(error).toBeInstanceOf(NbdUriError);
        }
      },
    );
    fc.assert(property, fcParameters({ local: 3000, ci: 50_000 }));
  });
});
