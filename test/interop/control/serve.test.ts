/** A real `blockferry serve -C`: asked by the verbs, and by peers that mean harm. */
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { afterAll, describe, expect, test } from "vitest";
import { encodeMessage } from "../../../src/control/frame.ts";
import { itSeeded } from "../../support/seed.ts";
import {
  BLOCKFERRY,
  blockferry,
  expectError,
  isAlive,
  makeFolder,
  makeImage,
  Running,
  run,
  waitFor,
} from "../cli/harness.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());

let instances = 0;

/** A serving process with its own runtime directory, image and sockets. */
async function serving(): Promise<{ server: Running; control: string; env: Record<string, string>; uri: string }> {
  const name = `i${++instances}`;
  const env = { BLOCKFERRY_RUNTIME_DIR: folder.at(name) };
  mkdirSync(env.BLOCKFERRY_RUNTIME_DIR, { mode: 0o700 });
  const control = folder.at(`${name}/serve.ctl`);
  const image = makeImage(folder, `${name}.raw`);
  const server = new Running(
    BLOCKFERRY,
    ["serve", "--exit-with-parent", "-x", "vda", "-U", folder.at(`${name}.sock`), "-C", control, image],
    env,
  );
  return { server, control, env, uri: await server.ready() };
}

/** Connected, or turned away: of very many at once, the kernel itself refuses some. */
async function open(path: string): Promise<Socket> {
  const socket = connect(path);
  socket.on("error", () => {});
  await new Promise<void>((resolve) => socket.once("connect", resolve).once("close", () => resolve()));
  return socket;
}

function closed(socket: Socket): Promise<unknown> {
  socket.resume();
  return socket.closed ? Promise.resolve() : new Promise((resolve) => socket.once("close", resolve));
}

function peakBytes(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]) * 1024;
}

describe("the verbs, on a real instance", () => {
  test("status tells what is served, with and without --control, in every form", async () => {
    const { server, control, env, uri } = await serving();
    await using _ = server;
    const asked = blockferry(["status", "--json", "-C", control]);
    expect(asked.code).toBe(0);
    const status = JSON.parse(asked.stdout);
    expect(status).toMatchObject({
      role: "serve",
      state: "running",
      pid: server.pid,
      uris: [uri],
      reached: ["listening"],
    });
    expect(status.disks).toEqual([
      expect.objectContaining({ name: "vda", format: "raw", sizeBytes: 4194304, missingBytes: 0 }),
    ]);
    expect(blockferry(["status"], { env }).stdout).toContain(`  ${uri}\n`);
    expect(blockferry(["status", "--raw"], { env }).stdout).toMatch(/^role=serve pid=\d+ .*disk=vda .*\n$/);
    expect(blockferry(["status", "--raw", "--disk", "vda"], { env }).code).toBe(0);
    expectError(blockferry(["status", "--disk", "vdb"], { env }), 64, /there is: "vda"/);
    expectError(blockferry(["pause"], { env }), 64, /it knows: events, quit, status, wait/);
    expect(blockferry(["status", "--raw", "--json"], { env })).toMatchObject({ code: 64, stdout: "" });
  });

  test("wait comes before the instance, and returns when it listens", async () => {
    const name = `i${++instances}`;
    const env = { BLOCKFERRY_RUNTIME_DIR: folder.at(name) };
    await using waiting = new Running(BLOCKFERRY, ["wait", "--for=listening", "--json"], env);
    mkdirSync(env.BLOCKFERRY_RUNTIME_DIR, { mode: 0o700 });
    const image = makeImage(folder, `${name}.raw`);
    await using server = new Running(
      BLOCKFERRY,
      ["serve", "--exit-with-parent", "-U", "-", "-C", folder.at(`${name}/a.ctl`), image],
      env,
    );
    await expect(waiting.ended).resolves.toMatchObject({ code: 0, stdout: '{"reached":true}\n' });
    expect(isAlive(server.pid)).toBe(true);
    expectError(blockferry(["wait", "--for=hydrated"], { env }), 64, /it can be: listening/);
  });

  test("wait says no when the time is up, and 69 where nobody is for anything but listening", () => {
    const env = { BLOCKFERRY_RUNTIME_DIR: folder.at("nobody") };
    expectError(blockferry(["wait", "--for=listening", "--timeout", "200ms"], { env }), 2, /no instance has appeared/);
    expectError(blockferry(["wait", "--for=hydrated"], { env }), 69, /no instance to ask/);
    expectError(blockferry(["status", "-C", folder.at("no.ctl")]), 69, /nobody listens there/);
  });

  test("quit returns when the image is let go and the socket is gone", async () => {
    const { server, env, control } = await serving();
    await using _ = server;
    expect(blockferry(["quit"], { env })).toEqual({ code: 0, stdout: "", stderr: "" });
    // Nobody has it locked any more: it can be opened at once.
    expect(blockferry(["serve", "--run", "true", folder.at(`i${instances}.raw`)]).code).toBe(0);
    await expect(server.ended).resolves.toMatchObject({ code: 0, stderr: "" });
    expectError(blockferry(["status", "-C", control]), 69, /nobody listens/);
    expect(readdirSync(env["BLOCKFERRY_RUNTIME_DIR"] ?? "")).toEqual([]);
  });

  test("events tells of clients that come and go, and ends with the instance", async () => {
    const { server, control, uri } = await serving();
    await using _ = server;
    await using following = new Running(BLOCKFERRY, ["events", "-f", "--json", "-C", control]);
    await following.ready();
    if (run("nbdinfo", ["--size", uri]).code === 0)
      await waitFor(() => (following.stdout.includes('"clients":0') ? true : undefined));
    server.signal("SIGTERM");
    const { code, stdout } = await following.ended;
    expect(code).toBe(0);
    const events = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(events[0]).toMatchObject({ event: "listening", seq: 1 });
    expect(events.at(-1)).toMatchObject({ event: "stopping", why: "SIGTERM" });
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, index) => index + 1));
  });

  test("what another waits for is answered with no when the instance ends", async () => {
    const { server, control } = await serving();
    await using _ = server;
    await using following = new Running(BLOCKFERRY, ["events", "-f", "-C", control]);
    await following.ready();
    expect(blockferry(["quit", "--json", "-C", control])).toMatchObject({ code: 0, stdout: "{}\n" });
    await expect(following.ended).resolves.toMatchObject({ code: 0 });
  });
});

describe("which instance is meant", () => {
  test("several are listed, and a dead one's socket is removed", async () => {
    const { server, env, control } = await serving();
    await using _ = server;
    const directory = env["BLOCKFERRY_RUNTIME_DIR"] ?? "";
    const bind = `import socket; socket.socket(socket.AF_UNIX).bind("${directory}/dead.ctl")`;
    expect(spawnSync("/usr/bin/python3", ["-c", bind]).status).toBe(0);
    expect(blockferry(["status"], { env }).code).toBe(0);
    expect(readdirSync(directory)).toEqual(["serve.ctl"]);
    const other = createServer((socket) => {
      socket.on("error", () => {});
      socket.end("not a control socket, and far longer than that");
    });
    await new Promise<void>((resolve) => other.listen(`${directory}/other.ctl`, resolve));
    await using asking = new Running(BLOCKFERRY, ["status"], env);
    const outcome = await asking.ended;
    expectError(outcome, 64, /2 are running: .*other\.ctl, .*serve\.ctl/);
    await using wrong = new Running(BLOCKFERRY, ["status", "-C", `${directory}/other.ctl`]);
    expectError(await wrong.ended, 69, /blockferry on both ends/);
    other.close();
    expect(blockferry(["status", "-C", control]).code).toBe(0);
  });

  test("a runtime directory that others may use, or that is a link, is not used", () => {
    mkdirSync(folder.at("open"), { mode: 0o755 });
    mkdirSync(folder.at("real"), { mode: 0o700 });
    symlinkSync(folder.at("real"), folder.at("link"));
    for (const name of ["open", "link"]) {
      const env = { BLOCKFERRY_RUNTIME_DIR: folder.at(name) };
      expectError(blockferry(["status"], { env }), 78, /others may use it|symbolic link/);
    }
    const image = makeImage(folder, "linked.raw");
    const place = folder.at("link/a.ctl");
    expectError(blockferry(["serve", "-U", "-", "-C", place, image]), 78, /symbolic link/);
  });

  test("a control socket that somebody answers on is not taken over", async () => {
    const { server, control } = await serving();
    await using _ = server;
    const image = makeImage(folder, "second.raw");
    expectError(blockferry(["serve", "-U", "-", "-C", control, image]), 75, /another process is listening/);
    expect(blockferry(["status", "-C", control]).code).toBe(0);
  });
});

describe("peers that mean harm", () => {
  test("garbage, lengths of 4 GiB and half messages end a connection or wait; 200 of them keep nobody out", async () => {
    const { server, control } = await serving();
    await using _ = server;
    const half = encodeMessage({ id: 1, verb: "status", params: {} });
    const peers = await Promise.all(Array.from({ length: 200 }, () => open(control)));
    for (const [index, peer] of peers.entries()) {
      if (index % 4 === 0) peer.write(Buffer.alloc(4096, 0x47));
      else if (index % 4 === 1) peer.write(Buffer.from([0xff, 0xff, 0xff, 0xff]));
      else if (index % 4 === 2) peer.write(half.subarray(0, half.length / 2));
    }
    await Promise.all(peers.filter((_, index) => index % 4 < 2).map(closed));
    expect(blockferry(["status", "-C", control]).code).toBe(0);
    for (const peer of peers) peer.destroy();
    expect(blockferry(["quit", "-C", control]).code).toBe(0);
    await expect(server.ended).resolves.toMatchObject({ code: 0 });
  });

  test("clients that ask without end and never listen cost a bounded amount of memory", async () => {
    const { server, control } = await serving();
    await using _ = server;
    const before = peakBytes(server.pid);
    const requests = Buffer.concat(Array.from({ length: 20_000 }, (_, id) => encodeMessage({ id, verb: "status" })));
    const peers = await Promise.all(Array.from({ length: 12 }, () => open(control)));
    for (const peer of peers) {
      peer.pause();
      for (let n = 0; n < 8; n++) peer.write(requests);
    }
    // They are all stuck once nothing more of what they say is taken.
    let last = -1;
    await expect
      .poll(
        () => {
          const waiting = peers.reduce((sum, { writableLength }) => sum + writableLength, 0);
          const stuck = waiting === last && waiting > 0;
          last = waiting;
          return stuck;
        },
        { timeout: 20_000, interval: 300 },
      )
      .toBe(true);
    expect(blockferry(["status", "-C", control]).code).toBe(0);
    expect(peakBytes(server.pid) - before).toBeLessThan(100 * 1024 * 1024);
    for (const peer of peers) peer.destroy();
  });

  itSeeded("requests with any byte changed never end the instance", async (rng) => {
    const { server, control } = await serving();
    await using _ = server;
    const good = encodeMessage({ id: 1, verb: "events", params: { follow: true } });
    for (let round = 0; round < 100; round++) {
      const bytes = good.slice();
      for (let flips = rng.integer(1, 4); flips > 0; flips--)
        bytes[rng.integer(4, bytes.length - 1)] = rng.integer(0, 255);
      const peer = await open(control);
      peer.end(bytes);
      await closed(peer);
    }
    expect(isAlive(server.pid)).toBe(true);
    expect(blockferry(["status", "-C", control]).code).toBe(0);
  });
});
