import { describe, expect, test } from "vitest";
import { CliError, renderError, toCliError } from "../../../src/cli/cli-error.ts";
import { nodeFinding } from "../../../src/cli/doctor/action.ts";
import { readableLine } from "../../../src/cli/log.ts";
import { printable, printableJson } from "../../../src/cli/printable.ts";
import { clearActivation, inheritedSockets } from "../../../src/cli/serving/socket-activation.ts";
import { parseCount, parsePort, parseSize } from "../../../src/cli/settings/option-values.ts";
import { FileError } from "../../../src/env/files.ts";
import { ImageOpenError } from "../../../src/image/errors.ts";
import { TlsError } from "../../../src/os/tls-error.ts";

describe("sockets of a service manager", () => {
  test("are ours when the PID is ours, with their names", () => {
    const env = { LISTEN_FDS: "2", LISTEN_PID: "77" };
    expect(inheritedSockets(env, 77)).toEqual([
      { fd: 3, name: "unknown" },
      { fd: 4, name: "unknown" },
    ]);
    expect(inheritedSockets({ ...env, LISTEN_FDNAMES: "nbd:" }, 77).map(({ name }) => name)).toEqual(["nbd", ""]);
    expect(inheritedSockets(env, 78)).toEqual([]);
    expect(inheritedSockets({ LISTEN_FDS: "1" }, 77)).toEqual([]);
    expect(inheritedSockets({}, 77)).toEqual([]);
  });

  test.each(["0", "-1", "65", "x", "", "1e1"])("%j is no count of sockets", (count) => {
    expect(() => inheritedSockets({ LISTEN_FDS: count, LISTEN_PID: "77" }, 77)).toThrow(/LISTEN_FDS/);
  });

  test("have a name each, or none at all", () => {
    const env = { LISTEN_FDS: "2", LISTEN_PID: "77", LISTEN_FDNAMES: "one" };
    expect(() => inheritedSockets(env, 77)).toThrow(/1 names for 2 sockets/);
  });

  test("are announced to nobody else", () => {
    const env = { LISTEN_FDS: "2", LISTEN_PID: "77", LISTEN_FDNAMES: "a:b", LISTEN_PIDFDID: "9", PATH: "/bin" };
    clearActivation(env);
    expect(env).toEqual({ PATH: "/bin" });
  });
});

describe("values of options", () => {
  test("ports", () => {
    expect([parsePort("0"), parsePort("65535")]).toEqual([0, 65_535]);
    for (const bad of ["65536", "-1", "", "1.5", "0x10", "1e3", "99999999"])
      expect(() => parsePort(bad)).toThrow(/whole number/);
  });

  test("counts", () => {
    expect(parseCount("12")).toBe(12);
    for (const bad of ["-1", "", "1.5", "12345678"]) expect(() => parseCount(bad)).toThrow(/whole number/);
  });

  test("sizes are binary, exact, and never take 64K for 64", () => {
    const cases = {
      "4096": 4096,
      "64K": 65_536,
      "1.5G": 1.5 * 2 ** 30,
      "2TiB": 2 ** 41,
      "10mb": 10 * 2 ** 20,
      "0": 0,
      "8P": 2 ** 53,
    };
    for (const [text, bytes] of Object.entries(cases).slice(0, -1)) expect(parseSize(text)).toBe(bytes);
    for (const bad of ["", "K", "1X", "-1M", "1.3", "1 M", "8P", "9999999999999999999"])
      expect(() => parseSize(bad)).toThrow(/size/);
  });
});

describe("errors", () => {
  test("three lines for people, one object for programs", () => {
    const error = new CliError({
      exitCode: 74,
      code: "empty",
      what: "cannot serve x",
      why: "it is empty",
      hint: "fill it",
    });
    expect(renderError(error, false)).toBe("blockferry: cannot serve x\n  why: it is empty\n  do:  fill it\n");
    expect(JSON.parse(renderError(error, true))).toEqual({
      code: "empty",
      message: "cannot serve x: it is empty",
      hint: "fill it",
    });
  });

  test("a name with control characters cannot move the cursor, nor make lines of its own", () => {
    const name = "a\u001b[2Jb\nc\u009b\u202ed\u007f";
    const error = new CliError({ exitCode: 74, code: "x", what: name, why: name, hint: name });
    const text = renderError(error, false);
    expect(text.split("\n")).toHaveLength(4);
    expect(text).toContain("a\\u001b[2Jb\\u000ac\\u009b\\u202ed\\u007f");
    const json = renderError(error, true);
    expect(json).toMatch(/^[\u0020-\u007e]*\n$/);
    expect((JSON.parse(json) as { hint: string }).hint).toBe(name);
  });

  const image = (code: ConstructorParameters<typeof ImageOpenError>[0]) =>
    new ImageOpenError(code, "d.raw", { why: "because", hint: "do" });
  test.each([
    [image("locked"), 75, "locked"],
    [image("not-found"), 74, "not-found"],
    [image("permission"), 74, "permission"],
    [image("not-an-image"), 74, "not-an-image"],
    [image("unknown-format"), 64, "unknown-format"],
    [new FileError("EADDRINUSE", "cannot listen on unix:/s: in use"), 75, "EADDRINUSE"],
    [new FileError("EACCES", "cannot listen on 127.0.0.1:1: no"), 78, "EACCES"],
    [new FileError("EIO", "cannot read"), 74, "EIO"],
    [new TlsError("credentials", { what: "w", why: "y" }), 78, "tls-credentials"],
    [new Error("oops"), 1, "bug"],
    ["a string", 1, "bug"],
  ])("%s has its exit code", (error, exitCode, code) => {
    expect(toCliError(error).parts).toMatchObject({ exitCode, code });
  });

  test("when cleaning up fails as well, the first failure is what is told", () => {
    const both = Object.assign(new Error("suppressed"), { name: "SuppressedError", suppressed: image("locked") });
    expect(toCliError(both).parts.code).toBe("locked");
  });
});

describe("text that is shown", () => {
  test("ordinary text stays as it is", () => {
    expect(printable("/vm/düsk, 10 GiB → x")).toBe("/vm/düsk, 10 GiB → x");
  });

  test("JSON stays the same JSON", () => {
    const value = { name: "a\u0000\u0085\u2028\ufeff" };
    expect(JSON.parse(printableJson(value))).toEqual(value);
    expect(printableJson(value)).toMatch(/^[\u0020-\u007e]*$/);
  });

  test("a log line for a terminal has the fields behind the message, quoted where they need it", () => {
    const line = JSON.stringify({
      level: "warn",
      time: "2031-02-03T04:05:06.789Z",
      pid: 1,
      peer: "10.0.0.7:4711",
      why: "too\u001bslow",
      msg: "closing",
    });
    expect(readableLine(line)).toBe('04:05:06 warn  closing  peer=10.0.0.7:4711  why="too\\u001bslow"');
  });
});

test("Node 22.15 is the oldest that will do", () => {
  const states = ["22.14.9", "22.15.0", "24.0.0", "20.99.0"].map((version) => nodeFinding(version).state);
  expect(states).toEqual(["broken", "ok", "ok", "broken"]);
});
