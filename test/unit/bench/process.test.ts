import { lstatSync, realpathSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { busySeconds, cpuFields, foreignCores } from "../../../bench/lib/machine.ts";
import { NbdProbe } from "../../../bench/lib/nbd-probe.ts";
import { mappedFiles } from "../../../bench/lib/prepare.ts";
import { runTool, ServerProcess, temporaryFolder, timesSeconds } from "../../../bench/lib/process.ts";

describe("a tool", () => {
  test("accounts for its time and hands over what it said", async () => {
    const spin = "let i = 0; const end = Date.now() + 150; while (Date.now() < end) i++; console.log('done')";
    const run = await runTool({ argv: [process.execPath, "-e", spin], timeoutMs: 20_000 });
    expect(run.stdout).toBe("done\n");
    expect(run.cpuSeconds).toBeGreaterThan(0.02);
    expect(run.wallMs).toBeGreaterThan(150);
    expect(run.peakRssBytes).toBeGreaterThan(1 << 20);
  });

  test("that fails is not a result: its complaint is", async () => {
    const failing = runTool({ argv: ["sh", "-c", "echo no such disk >&2; exit 3"], timeoutMs: 20_000 });
    await expect(failing).rejects.toThrow(/status 3.*no such disk/);
    await expect(runTool({ argv: ["no-such-program"], timeoutMs: 20_000 })).rejects.toThrow(/127/);
  });

  test("that takes too long is killed, with what it started", async () => {
    const endless = runTool({ argv: ["sh", "-c", "tail -f /dev/null & wait"], timeoutMs: 100 });
    await expect(endless).rejects.toThrow(/not done/);
  });
});

describe("a server", () => {
  const listen = (path: string) =>
    `require("net").createServer(() => {}).listen(${JSON.stringify(path)}); process.title = "listening";`;

  test("that ends before it is ready is reported with its last words", async () => {
    const start = ServerProcess.start({
      ...{ name: "short", argv: ["sh", "-c", "echo bind failed >&2; exit 1"] },
      ready: () => Promise.reject(new Error("not yet")),
    });
    await expect(start).rejects.toThrow(/short ended \(status 1\).*bind failed/);
  });

  test("is there while it runs and gone when it was stopped", async () => {
    const folder = temporaryFolder();
    const path = join(folder.path, "socket");
    await using server = await ServerProcess.start({
      ...{ name: "node", argv: [process.execPath, "-e", listen(path)] },
      ready: () => expect.poll(() => lstatSync(path, { throwIfNoEntry: false })?.isSocket()).toBe(true),
    });
    expect(server.usage().peakRssBytes).toBeGreaterThan(1 << 20);
    await server.stop();
    expect(() => server.assertRunning()).toThrow(/ended/);
    folder.remove();
  });
});

test("whoever listens but does not speak NBD is not an NBD server", async () => {
  const folder = temporaryFolder();
  const path = join(folder.path, "socket");
  const server = createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  await expect(NbdProbe.connect(path)).rejects.toThrow(/not an NBD server/);
  await new Promise((resolve) => server.close(resolve));
  await expect(NbdProbe.connect(path)).rejects.toThrow(/ENOENT|ECONNREFUSED/);
  folder.remove();
});

describe("what /proc says", () => {
  test("is read past a process name with spaces and parentheses", () => {
    const stat = "7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 11 12 13 14 20 0 1 0";
    expect(cpuFields(stat)).toEqual([11, 12, 13, 14]);
  });

  test("counts everything but idling and waiting as busy", () => {
    expect(busySeconds("cpu  100 200 300 9999 8888 50 60 70 1 1\ncpu0 1 1 1 1\n")).toBe(7.8);
  });

  test("leaves to others what was not our own doing", () => {
    const before = { atMs: 1000, allSeconds: 10, ownSeconds: 1 };
    expect(foreignCores(before, { atMs: 3000, allSeconds: 14, ownSeconds: 2 })).toBe(1.5);
    expect(foreignCores(before, { atMs: 3000, allSeconds: 10.5, ownSeconds: 2 })).toBe(0);
  });

  test("has the time of the shell's children in its second line", () => {
    expect(timesSeconds("0m0.00s 0m0.00s\n1m2.50s 0m0.25s\n")).toBe(62.75);
    expect(() => timesSeconds("nothing")).toThrow(/times/);
  });
});

test("the files of a process are its program and its libraries", async () => {
  const files = await mappedFiles(process.pid);
  expect(files).toContain(realpathSync(process.execPath));
  expect([...files].every((path) => lstatSync(path).isFile())).toBe(true);
});
