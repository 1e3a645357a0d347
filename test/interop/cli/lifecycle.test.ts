/** How a `serve` process lives and dies. */
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { itWith, requireTools } from "../../support/tools.ts";
import { BLOCKFERRY, blockferry, isAlive, makeFolder, makeImage, Running, run, start, waitFor } from "./harness.ts";
import { startSlowClient } from "./slow-client.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());
const image = makeImage(folder);
let counter = 0;
const fresh = (kind: string) => folder.at(`${kind}${counter++}`);

describe("being ready", () => {
  test("the URI on standard output says where; the socket is private; nothing is left behind", async () => {
    await using server = start(["serve", "-U", "-", "-x", "my disk", image]);
    const uri = await server.ready();
    expect(uri).toMatch(/^nbd\+unix:\/\/\/my%20disk\?socket=.*\/blockferry-\w+\/socket$/);
    const socket = uri.replace(/^.*socket=/, "");
    expect(statSync(socket).mode & 0o777).toBe(0o600);
    expect(statSync(socket.replace("/socket", "")).mode & 0o777).toBe(0o700);
    server.signal("SIGTERM");
    expect(await server.ended).toEqual({ code: 0, stdout: `${uri}\n`, stderr: "" });
    expect(existsSync(socket.replace("/socket", ""))).toBe(false);
  });

  test("with --json it is an object, with the PID in it", async () => {
    await using server = start(["serve", "--json", "-p", "0", "-x", "vda", image]);
    const { uri, pid } = JSON.parse(await server.ready()) as { uri: string; pid: number };
    expect(uri).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/vda$/);
    expect(pid).toBe(server.pid);
  });

  test("the PID file is there when the server is ready, and gone when it has ended", async () => {
    const pidFile = fresh("pid");
    await using server = start(["serve", "-U", "-", "-P", pidFile, image]);
    await server.ready();
    expect(readFileSync(pidFile, "utf8")).toBe(`${server.pid}\n`);
    server.signal("SIGTERM");
    await server.ended;
    expect(existsSync(pidFile)).toBe(false);
  });

  test("a PID file that meanwhile belongs to another server stays", async () => {
    const pidFile = fresh("pid");
    await using server = start(["serve", "-U", "-", "-P", pidFile, image]);
    await server.ready();
    writeFileSync(pidFile, "1\n");
    server.signal("SIGTERM");
    expect((await server.ended).code).toBe(0);
    expect(readFileSync(pidFile, "utf8")).toBe("1\n");
  });

  itWith(["python3"], "systemd is told when the server is ready and when it stops", async (context) => {
    // Without native calls, systemd's own program does it.
    if (process.env["BLOCKFERRY_NO_NATIVE"] === "1") requireTools(context, ["systemd-notify"]);
    const socket = fresh("notify");
    const script = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1]); print("bound", flush=True)
for _ in range(2): print(repr(s.recv(4096)), flush=True)`;
    await using listener = new Running("python3", ["-c", script, socket]);
    await listener.ready();
    expect(blockferry(["serve", "--run", "true", image], { env: { NOTIFY_SOCKET: socket } }).code).toBe(0);
    const { stdout } = await listener.ended;
    expect(stdout).toBe(`bound\nb'READY=1\\nSTATUS=Serving ${image}'\nb'STOPPING=1'\n`);
  });
});

describe("stopping", () => {
  test.each(["SIGTERM", "SIGINT"] as const)("%s ends it with 0, also with an idle client", async (signal) => {
    const socket = fresh("s");
    await using server = start(["serve", "-U", socket, image]);
    await server.ready();
    const client = await startSlowClient(socket, 0);
    server.signal(signal);
    expect((await server.ended).code).toBe(0);
    expect(existsSync(socket)).toBe(false);
    client.destroy();
  });

  test("a client that takes no replies delays the end, by the grace period at most", async () => {
    const socket = fresh("s");
    await using server = start(["serve", "-U", socket, image]);
    await server.ready();
    const client = await startSlowClient(socket, 64);
    const asked = performance.now();
    server.signal("SIGTERM");
    expect((await server.ended).code).toBe(0);
    expect(performance.now() - asked).toBeGreaterThan(3000);
    expect(performance.now() - asked).toBeLessThan(process.env["CI"] ? 30_000 : 9000);
    client.destroy();
  });

  test("a second SIGINT does not wait", async () => {
    const socket = fresh("s");
    await using server = start(["serve", "--log-level=info", "-U", socket, image]);
    await server.ready();
    const client = await startSlowClient(socket, 64);
    server.signal("SIGINT");
    await waitFor(() => (server.stderr.includes('"stopping"') ? true : undefined));
    const asked = performance.now();
    server.signal("SIGINT");
    expect((await server.ended).code).toBe(130);
    // Less than what it would wait for.
    expect(performance.now() - asked).toBeLessThan(process.env["CI"] ? 4500 : 2500);
    client.destroy();
  });

  test("SIGUSR1 prints one line, and opens no inspector", async () => {
    await using server = start(["serve", "-p", "0", image]);
    const uri = await server.ready();
    server.signal("SIGUSR1");
    const line = await waitFor(() => /^(.*)\n/.exec(server.stderr)?.[1]);
    expect(line).toMatch(/^serving \S+disk\.raw on nbd:\/\/127\.0\.0\.1:\d+\/: 0 clients, up \d+m?s$/);
    expect(line).toContain(uri);
    server.signal("SIGTERM");
    expect((await server.ended).stderr).toBe(`${line}\n`);
  });

  test("a reader that leaves before the URI was written ends the server, quietly", async () => {
    await using server = start(["serve", "-U", "-", image]);
    server.child.stdout?.destroy();
    expect(await server.ended).toMatchObject({ code: 0, stderr: "" });
  });

  itWith(["nbdinfo"], "--shared 1 lets one client in, and the next one when that has left", async () => {
    const socket = fresh("s");
    await using server = start(["serve", "--shared", "1", "-U", socket, image]);
    const uri = await server.ready();
    const client = await startSlowClient(socket, 0);
    expect(run("nbdinfo", ["--size", uri]).code).not.toBe(0);
    client.destroy();
    await expect.poll(() => run("nbdinfo", ["--size", uri]).code).toBe(0);
  });

  test("a pipe that others write to as well is left as it was found", () => {
    const flags = "grep ^flags /proc/self/fdinfo/1";
    for (const command of [`image info --json ${image}`, `serve -U - --run true ${image}`]) {
      const { stdout } = run("sh", ["-c", `{ ${flags}; ${BLOCKFERRY} ${command}; ${flags}; } | cat`]);
      const [before, after, ...more] = stdout.match(/^flags:.*$/gm) ?? [];
      expect(before).toBeDefined();
      expect(more).toEqual([]);
      expect(after, command).toBe(before);
    }
  });

  test("SIGHUP keeps its default", async () => {
    await using server = start(["serve", "-U", "-", image]);
    await server.ready();
    server.signal("SIGHUP");
    await server.ended;
    expect(server.child.signalCode).toBe("SIGHUP");
  });

  test("a socket that a killed server left behind is replaced", async () => {
    const socket = fresh("s");
    await using killed = start(["serve", "-U", socket, image]);
    await killed.ready();
    killed.signal("SIGKILL");
    await killed.ended;
    expect(existsSync(socket)).toBe(true);
    await using next = start(["serve", "-U", socket, image]);
    expect(await next.ready()).toContain(socket);
  });

  test("--exit-with-parent: when the parent is killed, the server ends in order", async () => {
    const pidFile = fresh("pid");
    const command = `${BLOCKFERRY} serve --exit-with-parent -U - -P ${pidFile} ${image} & wait`;
    await using parent = new Running("/bin/sh", ["-c", command]);
    await parent.ready();
    const pid = Number(readFileSync(pidFile, "utf8"));
    parent.signal("SIGKILL");
    await expect.poll(() => existsSync(pidFile)).toBe(false);
    await expect.poll(() => isAlive(pid)).toBe(false);
  });
});

describe("serving for a command (--run)", () => {
  test("its exit code becomes ours", () => {
    expect(blockferry(["serve", "--run", "exit 7", image]).code).toBe(7);
    expect(blockferry(["serve", "--run", "kill -KILL $$", image]).code).toBe(137);
    expect(blockferry(["serve", "--run", "no-such-program", image]).code).toBe(127);
  });

  test("it gets the variables, and standard output for itself", () => {
    const script = 'printf "%s\\n" "$uri" "$nbd" "$unixsocket" "$port" "$exportname"';
    const { stdout } = blockferry(["serve", "-x", "it's", "--run", script, image]);
    const [uri, nbd, socket, ...rest] = stdout.split("\n");
    expect(uri).toBe(`nbd+unix:///it's?socket=${socket}`);
    expect(nbd).toBe(`nbd:unix:${socket}`);
    expect(rest).toEqual(["", "it's", ""]);
    expect(existsSync(socket ?? "")).toBe(false);
  });

  test("it does not see what was meant for us", () => {
    const env = { LISTEN_FDS: "1", LISTEN_PID: "1", NOTIFY_SOCKET: "/nowhere", LISTEN_FDNAMES: "x" };
    expect(blockferry(["serve", "--run", "env | grep -E '^(LISTEN_|NOTIFY_)'", image], { env })).toMatchObject({
      code: 1,
      stdout: "",
    });
  });

  itWith(["nbdinfo"], "the export is there under its name and as the default", () => {
    const script = 'nbdinfo --size "$uri" && nbdinfo --size "nbd+unix:///?socket=$unixsocket"';
    expect(blockferry(["serve", "-x", "vda", "--run", script, image]).stdout).toBe("4194304\n4194304\n");
  });

  test("a signal to us reaches the command", async () => {
    await using server = start(["serve", "--run", "echo started; exec sleep 600", image]);
    await server.ready();
    server.signal("SIGTERM");
    expect((await server.ended).code).toBe(143);
  });
});

describe("in the background (--fork)", () => {
  test("the parent leaves once clients can connect; the child has no terminal left", async () => {
    const pidFile = fresh("pid");
    const logFile = fresh("log");
    const socket = fresh("s");
    const flags = ["-U", socket, "-P", pidFile, "--log-file", logFile, "--log-level", "info"];
    const outcome = blockferry(["serve", "--fork", ...flags, image]);
    expect(outcome).toEqual({ code: 0, stdout: `nbd+unix:///?socket=${socket}\n`, stderr: "" });
    const pid = Number(readFileSync(pidFile, "utf8"));
    try {
      expect(isAlive(pid)).toBe(true);
      expect(readFileSync(`/proc/${pid}/stat`, "latin1").split(" ")[5]).toBe(String(pid)); // a session of its own
      process.kill(pid, "SIGTERM");
      await expect.poll(() => existsSync(pidFile)).toBe(false);
      await expect.poll(() => isAlive(pid)).toBe(false);
      expect(existsSync(socket)).toBe(false);
      expect(statSync(logFile).mode & 0o777).toBe(0o600);
      const messages = readFileSync(logFile, "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => (JSON.parse(line) as { msg: string }).msg);
      expect(messages).toEqual(["serving", "stopping"]);
    } finally {
      if (isAlive(pid)) process.kill(pid, "SIGKILL");
    }
  });

  test("what goes wrong before that is told by the parent, with its exit code", () => {
    const { code, stderr } = blockferry(["serve", "--fork", "-U", "-", folder.at("missing.raw")]);
    expect(code).toBe(74);
    expect(stderr).toMatch(/^blockferry: cannot open .*missing\.raw\n {2}why: .*\n {2}do: {2}.*\n$/);
  });
});

describe("sockets from a service manager", () => {
  itWith(["nbdinfo", "nbdcopy"], "libnbd starts us between brackets", () => {
    expect(run("nbdinfo", ["--size", "--", "[", BLOCKFERRY, "serve", image, "]"])).toEqual({
      code: 0,
      stdout: "4194304\n",
      stderr: "",
    });
    const copy = fresh("copy");
    expect(run("nbdcopy", ["--", "[", BLOCKFERRY, "serve", "-r", image, "]", copy])).toMatchObject({
      code: 0,
      stderr: "",
    });
    expect(readFileSync(copy).equals(readFileSync(image))).toBe(true);
  });

  /** Binds two sockets, becomes us with them as descriptors 3 and 4. */
  const ACTIVATE = `
import os, socket, sys
path, names, command = sys.argv[1], sys.argv[2], sys.argv[3:]
u = socket.socket(socket.AF_UNIX); u.bind(path); u.listen()
t = socket.socket(); t.bind(("127.0.0.1", 0)); t.listen()
print(t.getsockname()[1], flush=True)
os.dup2(u.fileno(), 13); os.dup2(t.fileno(), 14)
os.dup2(13, 3); os.dup2(14, 4)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execvp(command[0], command)`;

  itWith(["python3", "nbdinfo"], "several sockets are served alike, and stay when we go", async () => {
    const socket = fresh("s");
    const command = [BLOCKFERRY, "serve", "-x", "vda", image];
    await using server = new Running("python3", ["-c", ACTIVATE, socket, "a:b", ...command]);
    const port = await server.ready();
    expect(run("nbdinfo", ["--size", `nbd+unix:///vda?socket=${socket}`]).stdout).toBe("4194304\n");
    expect(run("nbdinfo", ["--size", `nbd://127.0.0.1:${port}/`]).stdout).toBe("4194304\n");
    server.signal("SIGTERM");
    expect(await server.ended).toEqual({ code: 0, stdout: `${port}\n`, stderr: "" });
    expect(existsSync(socket)).toBe(true);
  });

  itWith(
    ["python3"],
    "an announcement that makes no sense is refused, and so is a second place to listen",
    async () => {
      await using names = new Running("python3", ["-c", ACTIVATE, fresh("s"), "one", BLOCKFERRY, "serve", image]);
      expect((await names.ended).code).toBe(78);
      await using rival = new Running("python3", [
        "-c",
        ACTIVATE,
        fresh("s"),
        "a:b",
        BLOCKFERRY,
        "serve",
        "-p",
        "0",
        image,
      ]);
      const { code, stderr } = await rival.ended;
      expect(code).toBe(64);
      expect(stderr).toContain("cannot use --port here");
    },
  );

  test("an announcement for another process is not for us", async () => {
    await using server = start(["serve", "-U", "-", image], { LISTEN_FDS: "1", LISTEN_PID: "1" });
    expect(await server.ready()).toMatch(/^nbd\+unix:/);
  });
});

test("settings reach a server from the environment and from a file", async () => {
  const config = fresh("config");
  const socket = fresh("s");
  writeFileSync(config, `port = 1\n[serve]\nexport-name = "from-file"\nread-only = true\n`);
  const env = { BLOCKFERRY_CONFIG: config, BLOCKFERRY_UNIX: socket };
  await using server = start(["serve", image], env);
  expect(await server.ready()).toBe(`nbd+unix:///from-file?socket=${socket}`);
  await using second = start(["serve", "-x", "from-flag", "-U", "-", image], env);
  expect(await second.ready()).toMatch(/^nbd\+unix:\/\/\/from-flag\?/);
  const shown = blockferry(["doctor", "--show-config"], { env }).stdout;
  expect(shown).toContain(`serve  --unix=${socket}  (BLOCKFERRY_UNIX)`);
  expect(shown).toContain(`serve  --read-only=true  (${config}: serve.read-only)`);
  expect(shown).not.toContain("--port");
});

test("how late the event loop was is written at the end, when asked for", async () => {
  const file = fresh("delay");
  expect(blockferry(["serve", "--run", "true", image], { env: { BLOCKFERRY_TRACE_LOOP_DELAY: file } }).code).toBe(0);
  const report = JSON.parse(readFileSync(file, "utf8")) as Record<string, number>;
  expect(Object.keys(report)).toEqual(["p50Ms", "p99Ms", "maxMs"]);
  expect(report["maxMs"]).toBeGreaterThanOrEqual(report["p50Ms"] ?? Number.NaN);
});

describe("the other commands", () => {
  test("key writes a line that only we can read, and that serve takes", async () => {
    const file = fresh("key");
    const { stdout } = blockferry(["key", "--name", "alice", file]);
    expect(stdout).toContain("nbds://alice@HOST/");
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readFileSync(file, "utf8")).toMatch(/^alice:[0-9a-f]{64}\n$/);
    await using server = start(["serve", "-U", "-", "--tls-psk", file, image]);
    expect(await server.ready()).toMatch(/^nbds\+unix:\/\/alice@\/\?socket=/);
  });

  test("doctor looks at the folder of images, and can tell it to a program", () => {
    const { code, stdout } = blockferry(["doctor", "--json", folder.path]);
    const report = JSON.parse(stdout) as { ok: boolean; findings: { name: string }[] };
    expect({ code, ok: report.ok }).toEqual({ code: 0, ok: true });
    expect(report.findings.length).toBeGreaterThan(5);
    expect(blockferry(["doctor", folder.at("missing")]).code).toBe(78);
  });

  itWith(["qemu-img"], "image info and image map agree with qemu-img", () => {
    const ours = JSON.parse(blockferry(["image", "map", "--json", image]).stdout) as unknown;
    const theirs = JSON.parse(run("qemu-img", ["map", "--output=json", "-f", "raw", image]).stdout) as unknown;
    expect(ours).toEqual(theirs);
    const info = JSON.parse(blockferry(["image", "info", "--json", image]).stdout) as Record<string, unknown>;
    const theirInfo = JSON.parse(run("qemu-img", ["info", "--output=json", "-f", "raw", image]).stdout) as Record<
      string,
      unknown
    >;
    expect(info["virtual-size"]).toBe(theirInfo["virtual-size"]);
    expect(info["actual-size"]).toBe(theirInfo["actual-size"]);
  });

  test("version and help go to standard output, with 0", () => {
    expect(blockferry(["--version"])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
    expect(blockferry(["serve", "--help"])).toMatchObject({
      code: 0,
      stderr: "",
      stdout: expect.stringContaining("Examples:"),
    });
  });
});
