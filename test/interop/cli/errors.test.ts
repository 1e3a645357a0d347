/** Bad input, as a user gets to see it: an exit code, and three lines. */
import { chmodSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { requireTools } from "../../support/tools.ts";
import { BLOCKFERRY, blockferry, expectError, makeFolder, makeImage, run, start } from "./harness.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());
const image = makeImage(folder);
const files = { cwd: folder.path };
writeFileSync(folder.at("empty.raw"), "");
mkdirSync(folder.at("directory"));
symlinkSync("nowhere", folder.at("dangling"));
writeFileSync(folder.at("bad.toml"), "[serve]\nprot = 1\n");
writeFileSync(folder.at("open.psk"), `a:${"ab".repeat(16)}\n`, { mode: 0o644 });
writeFileSync(folder.at("not-a-socket"), "x");

describe("bad command lines (more of them in the unit tests)", () => {
  test.each([
    [["serve", "--prot", "1", "disk.raw"], /unknown option '--prot'[\s\S]*--port/],
    [["serve", "--format", "vdi", "disk.raw"], /no image format called "vdi"/],
  ])("%j", (args, text) => {
    expectError(blockferry(args, files), 64, text);
  });

  test("no command at all gets the help, and 64", () => {
    const { code, stderr } = blockferry([]);
    expect(code).toBe(64);
    expect(stderr).toContain("Usage: blockferry");
  });
});

describe("images that cannot be served", () => {
  test.each([
    ["missing.raw", 74, /there is no such file/],
    ["directory", 74, /it is a directory/],
    ["dangling", 74, /there is no such file/],
    ["/dev/null", 74, /neither a regular file nor a block device/],
    ["empty.raw", 74, /0 bytes long/],
    ["disk.raw/x", 74, /no such file/],
  ])("%s", (name, code, text) => {
    expectError(blockferry(["serve", "-U", "-", name], files), code, text);
  });

  test("one that we may not read", (context) => {
    const path = makeImage(folder, "secret.raw");
    chmodSync(path, 0o000);
    // Root may read everything, unless that is taken from it.
    const asAnybody = process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] : [];
    requireTools(context, asAnybody.slice(0, 1));
    const [program = "", ...args] = [...asAnybody, BLOCKFERRY, "serve", "-U", "-", path];
    expectError(run(program, args), 74, /permission denied/);
  });

  test("one that another server has open: try again", async () => {
    await using first = start(["serve", "-U", "-", image]);
    await first.ready();
    expectError(blockferry(["serve", "-U", "-", image]), 75, /has it locked/);
    expectError(blockferry(["serve", "-U", "-", "-r", image]), 75, /has it locked/);
  });

  test("two readers get along", async () => {
    await using first = start(["serve", "-r", "-U", "-", image]);
    await first.ready();
    expect(blockferry(["serve", "-r", "--run", "exit 5", image]).code).toBe(5);
  });
});

describe("places to listen that cannot be had", () => {
  test("an address that is in use: try again", async () => {
    await using first = start(["serve", "-r", "-U", folder.at("s"), image]);
    await first.ready();
    expectError(blockferry(["serve", "-r", "-U", "s", "disk.raw"], files), 75, /another process is listening/);
    await using tcp = start(["serve", "-r", "-p", "0", image]);
    const port = new URL((await tcp.ready()).replace("nbd:", "http:")).port;
    expectError(blockferry(["serve", "-r", "-p", port, image]), 75, /address already in use/);
  });

  test.each([
    [["-U", "not-a-socket"], 78, /not a socket/],
    [["-U", "no/such/folder/s"], 78, /there is no folder/],
    [["-U", `/${"s".repeat(120)}`], 64, /107 bytes/],
    [["-i", "192.0.2.1", "--insecure"], 78, /EADDRNOTAVAIL/],
    [["-i", "no.such.host.invalid", "--insecure"], 78, /ENOTFOUND|EAI_AGAIN/],
  ])("%j", (args, code, text) => {
    expectError(blockferry(["serve", ...args, "disk.raw"], files), code, text);
  });
});

describe("configuration and credentials", () => {
  test.each([
    [["--config", "bad.toml"], {}, /key prot/],
    [["--config", "missing.toml"], {}, /ENOENT/],
    [[], { BLOCKFERRY_CONFIG: "missing.toml" }, /missing\.toml/],
    [["--tls-psk", "missing.psk"], {}, /it is not there/],
    [["--tls-psk", "open.psk"], {}, /everybody has access[\s\S]*chmod 600/],
    [["--tls-certificates", "directory"], {}, /server-cert\.pem/],
  ])("%j %j", (args, env, text) => {
    expectError(blockferry(["serve", ...args, "disk.raw"], { ...files, env }), 78, text);
  });

  test("a key is never written over", () => {
    expect(blockferry(["key", "new.psk"], files).code).toBe(0);
    expectError(blockferry(["key", "new.psk"], files), 74, /there already/);
    expectError(blockferry(["key", "no/such/new.psk"], files), 74, /ENOENT/);
  });
});

describe("errors for programs", () => {
  test.each([
    [["serve", "--json", "missing.raw"], {}, 74, "not-found"],
    [["serve", "missing.raw"], { BLOCKFERRY_JSON: "1" }, 74, "not-found"],
    [["serve", "--json", "--prot"], {}, 64, "usage"],
    [["image", "info", "--json", "directory"], {}, 74, "not-an-image"],
  ])("%j %j", (args, env, code, word) => {
    const outcome = blockferry(args, { ...files, env });
    expect(outcome.code).toBe(code);
    expect(JSON.parse(outcome.stderr)).toEqual({ code: word, message: expect.any(String), hint: expect.any(String) });
  });
});

test("a name with control characters in it reaches the terminal written out", () => {
  const { stderr } = blockferry(["image", "info", "\u001b]0;x\u0007\u009b.raw"]);
  expect(stderr).toContain("\\u001b]0;x\\u0007\\u009b.raw");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the absence of control characters is the point
  expect(stderr).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/);
});

test("a broken pipe on standard output is no failure", async () => {
  const path = makeImage(folder, "pieces.raw");
  const pieces = 4096;
  truncateSync(path, 0);
  const bytes = Buffer.alloc(4096, "piece ");
  const { openSync, writeSync, closeSync } = await import("node:fs");
  const fd = openSync(path, "r+");
  for (let i = 0; i < pieces; i++) writeSync(fd, bytes, 0, bytes.length, i * 16_384);
  closeSync(fd);
  await using mapping = start(["image", "map", "--json", path]);
  await mapping.ready();
  mapping.child.stdout?.destroy();
  expect(await mapping.ended).toMatchObject({ code: 0, stderr: "" });
});
