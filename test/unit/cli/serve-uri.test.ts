import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import type { TlsPlan } from "../../../src/cli/serving/plan.ts";
import { formatUri, runScript, shellQuote } from "../../../src/cli/serving/uri.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";

const OFF: TlsPlan = { mode: "off", deliberate: false };
const PSK: TlsPlan = { mode: "require", credentials: { kind: "psk", file: "/k e y.psk" } };
const X509: TlsPlan = { mode: "require", credentials: { kind: "x509", directory: "/pki", verifyPeer: false } };
const tcp = (host: string, port = 10_809) => ({ kind: "tcp", host, port }) as const;
const unix = (path: string) => ({ kind: "unix", path }) as const;

describe("the URI of what is served", () => {
  test.each([
    [{ address: tcp("127.0.0.1"), exportName: "", tls: OFF }, "nbd://127.0.0.1/"],
    [{ address: tcp("0.0.0.0", 7000), exportName: "vda", tls: OFF }, "nbd://127.0.0.1:7000/vda"],
    [{ address: tcp("::", 7000), exportName: "", tls: OFF }, "nbd://[::1]:7000/"],
    [{ address: unix("/run/a b"), exportName: "é", tls: OFF }, "nbd+unix:///%C3%A9?socket=/run/a%20b"],
    [{ address: tcp("::1"), exportName: "", tls: X509 }, "nbds://[::1]/?tls-certificates=/pki"],
    [
      { address: unix("/s"), exportName: "", tls: PSK, pskName: "al" },
      "nbds+unix://al@/?socket=/s&tls-psk-file=/k%20e%20y.psk",
    ],
    [
      { address: unix("/s"), exportName: "", tls: { ...PSK, mode: "on" } as TlsPlan, pskName: "al" },
      "nbd+unix:///?socket=/s",
    ],
  ])("%j", (served, uri) => {
    expect(formatUri(served)).toBe(uri);
    expect(parseNbdUri(uri).exportName).toBe(served.exportName);
  });
});

describe("the script of --run", () => {
  const hostile = `it's "a" $(touch x) \`y\` \\ name`;

  test("hands every variable over unharmed, whatever is in it", () => {
    const script = runScript('printf "%s\\n" "$uri" "$nbd" "$unixsocket" "$port" "$exportname"', {
      address: unix("/tmp/so cket's"),
      exportName: hostile,
      tls: OFF,
    });
    const lines = spawnSync("/bin/sh", ["-c", script], { encoding: "utf8" }).stdout.split("\n");
    expect(parseNbdUri(lines[0] ?? "")).toMatchObject({ exportName: hostile, address: unix("/tmp/so cket's") });
    expect(lines.slice(1)).toEqual(["nbd:unix:/tmp/so cket's", "/tmp/so cket's", "", hostile, ""]);
  });

  test("tells a port for TCP, and no socket", () => {
    const script = runScript('echo "$uri|$nbd|$unixsocket|$port"', {
      address: tcp("127.0.0.1", 7000),
      exportName: "",
      tls: OFF,
    });
    expect(spawnSync("/bin/sh", ["-c", script], { encoding: "utf8" }).stdout).toBe(
      "nbd://127.0.0.1:7000/|nbd:127.0.0.1:7000||7000\n",
    );
  });

  test("quotes only what needs it", () => {
    expect(shellQuote("/run/a-b_c.sock")).toBe("/run/a-b_c.sock");
    expect(shellQuote("")).toBe("''");
    expect(shellQuote("it's")).toBe("'it'\\''s'");
  });
});
