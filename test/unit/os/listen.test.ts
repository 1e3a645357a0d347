import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { lstatSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { afterEach, describe, expect, test } from "vitest";
import { FileError } from "../../../src/env/files.ts";
import type { ByteStream } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { type Listener, type ListenTarget, listenOn } from "../../../src/os/listen.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";

const open: { close(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0).reverse()) one.close();
});

function folder(): TempDir {
  const dir = tempDir();
  open.push({ close: () => dir[Symbol.dispose]() });
  return dir;
}

async function listen(target: ListenTarget, onStream = (stream: ByteStream) => stream.destroy()): Promise<Listener> {
  const listener = await listenOn(target, onStream);
  open.push(listener);
  return listener;
}

async function failure(target: ListenTarget): Promise<FileError> {
  const outcome = await listenOn(target, (stream) => stream.destroy()).catch((error: unknown) => error);
  expect(outcome).toBeInstanceOf(FileError);
  return outcome as FileError;
}

const TCP = { kind: "tcp", host: "127.0.0.1", port: 0 } as const;
const permissions = (path: string) => lstatSync(path).mode & 0o777;

describe("a unix socket", () => {
  test("is for its owner alone, from the first moment on, and other files are made as before", async () => {
    const dir = folder();
    const before = process.umask();
    await listen({ kind: "unix", path: dir.file("s") });
    expect(permissions(dir.file("s"))).toBe(0o600);
    expect(process.umask()).toBe(before);
    writeFileSync(dir.file("f"), "");
    expect(permissions(dir.file("f"))).toBe(0o666 & ~before);
  });

  test("is gone once the listener is closed, and may be made again", async () => {
    const dir = folder();
    for (let round = 0; round < 3; round++) {
      const listener = await listen({ kind: "unix", path: dir.file("s") });
      listener.close();
      listener.close();
      await expect.poll(() => lstatSync(dir.file("s"), { throwIfNoEntry: false })).toBeUndefined();
    }
  });

  test("that nobody listens on any more is replaced", async () => {
    const dir = folder();
    abandonedSocket(dir.file("s"));
    expect(lstatSync(dir.file("s")).isSocket()).toBe(true);
    const listener = await listen({ kind: "unix", path: dir.file("s") });
    (await dial(listener.address)).destroy();
  });

  test("that somebody listens on is left alone", async () => {
    const dir = folder();
    const first = await listen({ kind: "unix", path: dir.file("s") });
    expect(await failure({ kind: "unix", path: dir.file("s") })).toMatchObject({ code: "EADDRINUSE" });
    (await dial(first.address)).destroy();
  });

  test("does not replace a file, a folder, or what a link points to", async () => {
    const dir = folder();
    writeFileSync(dir.file("file"), "precious");
    mkdirSync(dir.file("folder"));
    abandonedSocket(dir.file("s"));
    symlinkSync(dir.file("s"), dir.file("link"));
    symlinkSync(dir.file("nowhere"), dir.file("dangling"));
    for (const name of ["file", "folder", "link", "dangling"]) {
      expect(await failure({ kind: "unix", path: dir.file(name) })).toMatchObject({ code: "EEXIST" });
    }
    expect(lstatSync(dir.file("file")).size).toBe(8);
  });

  test("in a folder that does not exist is an error that names it", async () => {
    const path = folder().file("none/s");
    const error = await failure({ kind: "unix", path });
    expect(["ENOENT", "EACCES"]).toContain(error.code);
    expect(error.message).toContain(path);
  });
});

/** A socket whose listener was killed: closing one in good order would remove it. */
function abandonedSocket(path: string): void {
  const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  spawnSync(process.execPath, ["-e", script]);
}

describe("a TCP port", () => {
  test("is chosen by the kernel when it is 0, and told", async () => {
    const listener = await listen(TCP);
    expect(listener.address).toMatchObject({ kind: "tcp", host: "127.0.0.1" });
    expect(listener.address.kind === "tcp" && listener.address.port).toBeGreaterThan(0);
    (await dial(listener.address)).destroy();
  });

  test("that is taken is an error that names it", async () => {
    const { address } = await listen(TCP);
    const error = await failure(address);
    expect(error.code).toBe("EADDRINUSE");
    expect(error.message).toMatch(/cannot listen on 127\.0\.0\.1:\d+/);
  });

  test("on an address that is not ours is an error", async () => {
    expect(await failure({ kind: "tcp", host: "192.0.2.1", port: 0 })).toMatchObject({ code: "EADDRNOTAVAIL" });
  });
});

describe("an inherited socket", () => {
  test("is listened on as it is", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
    const script = `
      import { listenOn } from ${JSON.stringify(new URL("../../../src/os/listen.ts", import.meta.url).href)};
      const { address } = await listenOn({ kind: "fd", fd: 3 }, (stream) => {
        stream.attach({ onBytes() {}, onEnd() {}, onClose() {}, onDrain() {} });
        stream.write(Buffer.from("hello"));
        stream.end();
      });
      console.log(JSON.stringify(address));`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit", fd],
    });
    open.push({ close: () => child.kill("SIGKILL") });
    const [line] = (await once(createInterface({ input: child.stdout as Readable }), "line")) as [string];
    // From here on the child alone has it.
    server.close();
    expect(JSON.parse(line)).toEqual({ kind: "tcp", host: "127.0.0.1", port });
    const heard = Promise.withResolvers<string>();
    const stream = await dial({ kind: "tcp", host: "127.0.0.1", port });
    stream.attach({
      onBytes: (bytes) => heard.resolve(Buffer.from(bytes).toString()),
      onEnd: () => stream.destroy(),
      onClose: () => {},
      onDrain: () => {},
    });
    expect(await heard.promise).toBe("hello");
  });

  test("that is no socket is an error", async () => {
    const error = await failure({ kind: "fd", fd: 0 });
    expect(["ENOTSOCK", "EINVAL"]).toContain(error.code);
    expect(error.message).toContain("file descriptor 0");
  });
});

describe("a listener", () => {
  test("names its clients", async () => {
    const peers: string[] = [];
    const arrived: (() => void)[] = [];
    const onStream = (stream: ByteStream) => {
      peers.push(stream.peer);
      stream.destroy();
      arrived.shift()?.();
    };
    for (const target of [TCP, { kind: "unix", path: folder().file("s") } as const]) {
      const { address } = await listen(target, onStream);
      const arrival = new Promise<void>((resolve) => arrived.push(resolve));
      (await dial(address)).destroy();
      await arrival;
    }
    expect(peers).toEqual([expect.stringMatching(/^127\.0\.0\.1:\d+$/), "unix"]);
  });

  test("that is closed takes no more clients, and those it has live on", async () => {
    const arrived = Promise.withResolvers<ByteStream>();
    const listener = await listen(TCP, (stream) => arrived.resolve(stream));
    const near = await dial(listener.address);
    const far = await arrived.promise;
    open.push({ close: () => near.destroy() }, { close: () => far.destroy() });
    listener.close();
    await expect(dial(listener.address)).rejects.toMatchObject({ code: "ECONNREFUSED" });
    const heard = Promise.withResolvers<string>();
    far.attach({
      onBytes: (bytes) => heard.resolve(Buffer.from(bytes).toString()),
      onEnd: () => {},
      onClose: () => {},
      onDrain: () => {},
    });
    near.write(Buffer.from("still here"));
    expect(await heard.promise).toBe("still here");
  });
});
