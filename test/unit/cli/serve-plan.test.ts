import { describe, expect, test } from "vitest";
import { checkExposure, isLoopback, planServe, type ServeFlags } from "../../../src/cli/serving/plan.ts";
import { errorOf } from "./error-of.ts";

const around = { directory: "/work", inherited: [] };
const plan = (flags: ServeFlags) => planServe("disk.raw", flags, around);
const activated = { directory: "/work", inherited: [{ fd: 3, name: "unknown" }] };

describe("where serve listens", () => {
  test("on the NBD port of loopback, unless told otherwise", () => {
    expect(plan({}).listen).toEqual({ kind: "tcp", host: "127.0.0.1", port: 10_809 });
    expect(plan({ port: 0 }).listen).toEqual({ kind: "tcp", host: "127.0.0.1", port: 0 });
    expect(plan({ bind: "::1" }).listen).toEqual({ kind: "tcp", host: "::1", port: 10_809 });
  });

  test("on a unix socket, whose path becomes absolute", () => {
    expect(plan({ unix: "run/../s" }).listen).toEqual({ kind: "unix", path: "/work/s" });
    expect(plan({ socket: "/run/s" }).listen).toEqual({ kind: "unix", path: "/run/s" });
  });

  test("on a private socket, when asked or when only a command is to use it", () => {
    expect(plan({ unix: "-" }).listen).toEqual({ kind: "private-unix" });
    expect(plan({ socket: "-" }).listen).toEqual({ kind: "private-unix" });
    expect(plan({ run: "true" }).listen).toEqual({ kind: "private-unix" });
    expect(plan({ run: "true", port: 0 }).listen).toMatchObject({ kind: "tcp" });
  });

  test("on what a service manager handed over, and then nowhere else", () => {
    expect(planServe("d", {}, activated).listen).toEqual({ kind: "inherited", sockets: activated.inherited });
    for (const flags of [
      { unix: "s" },
      { socket: "s" },
      { port: 1 },
      { bind: "::1" },
      { fork: true },
      { run: "true" },
    ]) {
      const [flag] = Object.keys(flags);
      expect(errorOf(() => planServe("d", flags, activated))).toMatchObject({
        exitCode: 64,
        what: `cannot use --${flag} here`,
      });
    }
    expect(planServe("d", { fork: false }, activated).listen.kind).toBe("inherited");
  });

  test("not on a path that the kernel would not take", () => {
    expect(plan({ unix: `/${"s".repeat(106)}` }).listen.kind).toBe("unix");
    expect(errorOf(() => plan({ unix: `/${"s".repeat(107)}` })).why).toContain("107 bytes");
    expect(errorOf(() => plan({ unix: "" })).what).toBe("cannot use --unix");
    expect(errorOf(() => plan({ bind: "" })).what).toBe("cannot use --bind");
  });
});

describe("TLS of serve", () => {
  const directory = "/pki";

  test("is required as soon as there are credentials, and off otherwise", () => {
    expect(plan({}).tls).toEqual({ mode: "off", deliberate: false });
    expect(plan({ tlsPsk: "k" }).tls).toEqual({ mode: "require", credentials: { kind: "psk", file: "/work/k" } });
    expect(plan({ tlsCertificates: directory }).tls).toEqual({
      mode: "require",
      credentials: { kind: "x509", directory, verifyPeer: false },
    });
    expect(plan({ tlsCertificates: directory, tls: "on", tlsVerifyPeer: true }).tls).toMatchObject({
      mode: "on",
      credentials: { verifyPeer: true },
    });
  });

  test("off on request puts credentials of other layers out of force", () => {
    expect(plan({ tls: "off", tlsPsk: "k" }).tls).toEqual({ mode: "off", deliberate: true });
    expect(plan({ insecure: true }).tls).toEqual({ mode: "off", deliberate: true });
  });

  test("needs credentials, and certificates for clients to be verified", () => {
    expect(errorOf(() => plan({ tls: "require" })).why).toBe("there are no credentials");
    expect(errorOf(() => plan({ tlsVerifyPeer: true })).why).toContain("no certificates");
    expect(errorOf(() => plan({ tlsVerifyPeer: true, tlsPsk: "k" })).why).toContain("proves the client already");
  });

  test("serving beyond this host takes TLS or a deliberate decision against it", () => {
    for (const bind of ["0.0.0.0", "::", "10.0.0.7", "vmhost", "fe80::1"]) {
      expect(errorOf(() => plan({ bind }))).toMatchObject({ exitCode: 64, code: "insecure" });
      expect(plan({ bind, insecure: true }).listen).toMatchObject({ host: bind });
      expect(plan({ bind, tls: "off" }).listen).toMatchObject({ host: bind });
      expect(plan({ bind, tlsPsk: "k" }).listen).toMatchObject({ host: bind });
    }
    expect(() => checkExposure("127.8.9.1", { mode: "off", deliberate: false })).not.toThrow();
  });

  test("what counts as this host", () => {
    expect(
      ["127.0.0.1", "127.255.0.3", "::1", "localhost", "::ffff:127.0.0.1"].filter((host) => !isLoopback(host)),
    ).toEqual([]);
    expect(
      ["128.0.0.1", "127.evil.example", "::2", "localhost.evil.example", "::ffff:8.8.8.8", ""].filter(isLoopback),
    ).toEqual([]);
  });
});

describe("the rest of the plan", () => {
  test("names and descriptions fit NBD", () => {
    expect(plan({ exportName: "vda", description: "root disk" })).toMatchObject({
      exportName: "vda",
      description: "root disk",
    });
    expect(plan({ exportName: "ü".repeat(2048) }).exportName).toHaveLength(2048);
    expect(errorOf(() => plan({ exportName: "ü".repeat(2049) })).why).toContain("4096 bytes");
    expect(errorOf(() => plan({ exportName: "a\0b" })).why).toContain("NUL");
    expect(errorOf(() => plan({ description: "x".repeat(4097) })).what).toBe("cannot use --description");
  });

  test("an image has a name, a shared count of 0 means no limit, a PID file gets an absolute path", () => {
    expect(errorOf(() => planServe("", {}, around)).what).toBe("there is no image to serve");
    expect(plan({ shared: 0 }).connectionsMax).toBeUndefined();
    expect(plan({ shared: 3 }).connectionsMax).toBe(3);
    expect(plan({ pidFile: "x.pid" }).pidFile).toBe("/work/x.pid");
  });
});
