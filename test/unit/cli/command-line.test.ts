/** Command lines that come to nothing, as far as the text and the exit code. None of them gets to open anything. */
import { afterEach, describe, expect, test, vi } from "vitest";
import { runCommandLine } from "../../../src/cli/command-line.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

async function outcomeOf(args: readonly string[]): Promise<{ code: number; stderr: string }> {
  const written = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const code = await runCommandLine(args);
  return { code, stderr: written.mock.calls.map(([text]) => String(text)).join("") };
}

async function expectUsageError(args: readonly string[], text: RegExp): Promise<void> {
  const { code, stderr } = await outcomeOf(args);
  expect(stderr).toMatch(/^blockferry: .+\n {2}why: .+\n {2}do: {2}.+\n$/);
  expect(stderr).toMatch(text);
  expect(code).toBe(64);
}

describe("bad command lines", () => {
  test.each([
    [["serve"], /missing required argument 'image'/],
    [["serve", "a", "b"], /too many arguments/],
    [["serve", "--prot", "1", "disk.raw"], /unknown option '--prot'[\s\S]*--port/],
    [["serve", "-p", "70000", "disk.raw"], /a port is a whole number/i],
    [["serve", "-p"], /argument missing/],
    [["serve", "--tls=maybe", "disk.raw"], /off, on, require/],
    [["serve", "-U", "s", "-p", "1", "disk.raw"], /--unix and --port exclude each other/],
    [["serve", "--fork", "--run", "true", "disk.raw"], /--fork and --run exclude/],
    [["serve", "--insecure", "--tls-psk", "k", "disk.raw"], /--insecure and --tls-psk exclude/],
    [["serve", "--tls=require", "disk.raw"], /there are no credentials/],
    [["serve", "-i", "0.0.0.0", "disk.raw"], /without TLS/],
    [["serve", ""], /IMAGE is empty/],
    [["srve"], /unknown command 'srve'[\s\S]*serve/],
    [["image", "info"], /missing required argument/],
    [["image", "map", "-s", "1x", "disk.raw"], /size/i],
    [["key", "--name", "a/b", "k"], /--name/],
    [["demo", "--size", "1000"], /multiple of 1 MiB/],
  ])("%j", (args, text) => expectUsageError(args, text));
});

describe("settings that make no sense are named", () => {
  test.each([
    [{ BLOCKFERRY_PORT: "x" }, /BLOCKFERRY_PORT[\s\S]*"x" is not allowed/],
    [{ BLOCKFERRY_TLS: "x" }, /BLOCKFERRY_TLS[\s\S]*off, on, require/],
    [{ BLOCKFERRY_READ_ONLY: "perhaps" }, /BLOCKFERRY_READ_ONLY/],
    [{ BLOCKFERRY_UNIX: "a", BLOCKFERRY_SOCKET: "b" }, /BLOCKFERRY_UNIX and BLOCKFERRY_SOCKET exclude/],
  ])("%j", async (env, text) => {
    for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
    await expectUsageError(["serve", "disk.raw"], text);
  });
});

test("with --json, or BLOCKFERRY_JSON, an error is one object, even when the command line is no good", async () => {
  const { stderr } = await outcomeOf(["serve", "--json", "--prot"]);
  expect(JSON.parse(stderr)).toEqual({ code: "usage", message: expect.any(String), hint: expect.any(String) });
  vi.restoreAllMocks();
  vi.stubEnv("BLOCKFERRY_JSON", "yes");
  expect(JSON.parse((await outcomeOf(["srve"])).stderr)).toMatchObject({ code: "usage" });
});
