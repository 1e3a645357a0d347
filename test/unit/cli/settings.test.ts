import { describe, expect, test } from "vitest";
import { ConfigFile, readConfigFile } from "../../../src/cli/settings/config-file.ts";
import { type FileEntry, layerSettings, type SettingSources } from "../../../src/cli/settings/settings.ts";
import { errorOf } from "./error-of.ts";

const SHAPES = [
  { flag: "port", takesValue: true },
  { flag: "unix", takesValue: true },
  { flag: "read-only", takesValue: false },
  { flag: "config", takesValue: true },
  { flag: "help", takesValue: false },
];

const entry = (value: FileEntry["value"]): FileEntry => ({ value, origin: "f.toml: key" });

function layers(sources: { given?: string[]; env?: SettingSources["env"]; file?: Record<string, FileEntry["value"]> }) {
  const file = new Map(Object.entries(sources.file ?? {}).map(([key, value]) => [key, entry(value)]));
  const found = layerSettings(SHAPES, { given: new Set(sources.given), env: sources.env ?? {}, file }, [
    ["port", "unix"],
  ]);
  return Object.fromEntries(found.map(({ flag, value, source }) => [flag, [value, source]]));
}

describe("layers of settings", () => {
  test("the command line goes before the environment, and that before the file", () => {
    const env = { BLOCKFERRY_PORT: "2" };
    expect(layers({ file: { port: 3 } })).toEqual({ port: ["3", "file"] });
    expect(layers({ env, file: { port: 3 } })).toEqual({ port: ["2", "env"] });
    expect(layers({ given: ["port"], env, file: { port: 3 } })).toEqual({});
  });

  test("a switch is set by the words people use, and can be set to off", () => {
    for (const word of ["1", "true", "YES", "on"])
      expect(layers({ env: { BLOCKFERRY_READ_ONLY: word } })).toEqual({ "read-only": [true, "env"] });
    for (const word of ["0", "false", "no", "Off", ""])
      expect(layers({ env: { BLOCKFERRY_READ_ONLY: word } })).toEqual({ "read-only": [false, "env"] });
    expect(layers({ file: { "read-only": true } })).toEqual({ "read-only": [true, "file"] });
    expect(layers({ env: { BLOCKFERRY_READ_ONLY: "0" }, file: { "read-only": true } })).toEqual({
      "read-only": [false, "env"],
    });
  });

  test("a switch with another word, and a flag with a boolean for its value, are refused where they stand", () => {
    expect(errorOf(() => layers({ env: { BLOCKFERRY_READ_ONLY: "maybe" } }))).toMatchObject({
      exitCode: 64,
      what: expect.stringContaining("BLOCKFERRY_READ_ONLY"),
      why: expect.stringContaining("maybe"),
    });
    expect(errorOf(() => layers({ file: { port: true } })).what).toContain("f.toml: key");
  });

  test("flags that exclude each other: the nearer source wins, and within one source it is an error", () => {
    expect(layers({ given: ["unix"], env: { BLOCKFERRY_PORT: "2" } })).toEqual({});
    expect(layers({ env: { BLOCKFERRY_UNIX: "s" }, file: { port: 3 } })).toEqual({ unix: ["s", "env"] });
    expect(errorOf(() => layers({ given: ["unix", "port"] })).what).toBe("--port and --unix exclude each other");
    const env = { BLOCKFERRY_UNIX: "s", BLOCKFERRY_PORT: "2" };
    expect(errorOf(() => layers({ env })).what).toBe("BLOCKFERRY_PORT and BLOCKFERRY_UNIX exclude each other");
    expect(layers({ given: ["unix"], env })).toEqual({});
  });

  test("help cannot be set", () => {
    expect(layers({ env: { BLOCKFERRY_HELP: "1" } })).toEqual({});
  });
});

describe("the configuration file", () => {
  const known = new Map([
    ["serve", new Set(["port", "tls-psk", "config"])],
    ["image map", new Set(["format"])],
  ]);
  const read = (text: string) => new ConfigFile("f.toml", text, known);

  test("has keys for all subcommands, and tables for one, which go first", () => {
    const file = read('port = 1\n[serve]\nport = 2\ntls-psk = "k"\n[image.map]\nformat = "raw"');
    expect(file.forCommand("serve").get("port")).toEqual({ value: 2, origin: "f.toml: serve.port" });
    expect(file.forCommand("serve").get("tls-psk")?.value).toBe("k");
    expect(file.forCommand("image map").get("format")?.value).toBe("raw");
    expect(file.forCommand("image map").get("port")).toEqual({ value: 1, origin: "f.toml: port" });
  });

  test.each([
    ["porrt = 1", /key porrt .* no subcommand has/],
    ["[serve]\nformat = 1", /format .*`blockferry serve` does not have/],
    ["[sreve]\nport = 1", /`blockferry sreve` does not have/],
    ["port = [1]", /neither a text, a number nor true or false/],
    ["port = 1979-05-27", /neither a text/],
    ['[serve]\nconfig = "x"', /the key config/],
    ["port = ", /line 1: /],
    ["\n\nport 1", /line 3: /],
  ])("%j is refused with the reason", (text, why) => {
    expect(errorOf(() => read(text))).toMatchObject({ exitCode: 78, code: "config", why: expect.stringMatching(why) });
  });

  test("a file that is not there is named", () => {
    expect(errorOf(() => readConfigFile("/no/such.toml", known))).toMatchObject({
      exitCode: 78,
      what: expect.stringContaining("/no/such.toml"),
    });
  });
});
