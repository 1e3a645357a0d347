import { expect, test } from "vitest";
import { FileError } from "../../../src/env/files.ts";
import type { Address } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { tempDir } from "../../support/temp-dir.ts";

async function failure(address: Address, signal?: AbortSignal): Promise<FileError> {
  const outcome = await dial(address, signal).catch((error: unknown) => error);
  expect(outcome).toBeInstanceOf(FileError);
  return outcome as FileError;
}

test("an address that nobody listens on is an error that names it", async () => {
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => stream.destroy());
  listener.close();
  const error = await failure(listener.address);
  expect(error.code).toBe("ECONNREFUSED");
  expect(error.message).toMatch(/^cannot connect to 127\.0\.0\.1:\d+: /);
});

test("a path where nothing is, and one where no socket is, are errors", async () => {
  using dir = tempDir();
  expect(await failure({ kind: "unix", path: dir.file("none") })).toMatchObject({ code: "ENOENT" });
  expect(["ECONNREFUSED", "ENOTSOCK"]).toContain((await failure({ kind: "unix", path: dir.path })).code);
});

test("a host that does not exist is an error", async () => {
  expect((await failure({ kind: "tcp", host: "no-such-host.invalid", port: 1 })).code).toMatch(/ENOTFOUND|EAI_AGAIN/);
});

test("an attempt can be cancelled before it begins and while it is under way", async () => {
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => stream.destroy());
  expect(await failure(listener.address, AbortSignal.abort())).toMatchObject({ code: "ECANCELED" });
  const controller = new AbortController();
  const attempt = failure(listener.address, controller.signal);
  controller.abort();
  expect(await attempt).toMatchObject({ code: "ECANCELED" });
  listener.close();
});

test("cancelling after the connection stands does nothing", async () => {
  const listener = await listenOn({ kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => {
    stream.attach({
      onBytes: (bytes) => stream.write(Buffer.from(bytes)),
      onEnd: () => stream.end(),
      onClose: () => {},
      onDrain: () => {},
    });
  });
  const controller = new AbortController();
  const stream = await dial(listener.address, controller.signal);
  controller.abort();
  const echoed = new Promise<string>((resolve) => {
    stream.attach({
      onBytes: (bytes) => resolve(Buffer.from(bytes).toString()),
      onEnd: () => {},
      onClose: () => {},
      onDrain: () => {},
    });
  });
  stream.write(Buffer.from("echo"));
  expect(await echoed).toBe("echo");
  expect(stream.peer).toMatch(/^127\.0\.0\.1:\d+$/);
  stream.destroy();
  listener.close();
});
