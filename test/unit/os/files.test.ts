import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, readlinkSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { describe, expect, test } from "vitest";
import { RealFiles } from "../../../src/os/files.ts";
import { pattern } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { WITH_NATIVE, WITHOUT_NATIVE } from "./places.ts";

for (const native of [WITH_NATIVE, WITHOUT_NATIVE]) {
  describe(`opening ${native.state === "loaded" ? "with" : "without"} native calls`, () =>
    opening(new RealFiles(native)));
}

function opening(files: RealFiles): void {
  test("takes a regular file as it is", async () => {
    using folder = tempDir();
    const path = folder.file("image");
    writeFileSync(path, pattern(0, 5_000));
    await using file = await files.open({ path, writable: true });
    expect(file).toMatchObject({ path, kind: "regular", writable: true });
    expect(await file.sizeBytes()).toBe(5_000);
  });

  test("refuses a directory", async () => {
    using folder = tempDir();
    for (const writable of [false, true]) {
      const opened = files.open({ path: folder.path, writable });
      await expect(opened).rejects.toMatchObject({ name: "FileError", code: "EISDIR" });
    }
  });

  test("refuses a FIFO without waiting for its other end", async () => {
    using folder = tempDir();
    const path = folder.file("fifo");
    execFileSync("mkfifo", [path]);
    for (const writable of [false, true]) {
      await expect(files.open({ path, writable })).rejects.toMatchObject({ name: "FileError", code: "EINVAL" });
    }
  });

  test("refuses a character device and a socket", async () => {
    using folder = tempDir();
    const path = folder.file("socket");
    await using server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    for (const other of ["/dev/zero", path]) {
      await expect(files.open({ path: other, writable: false })).rejects.toMatchObject({ code: "EINVAL" });
    }
  });

  test("says what is missing, and what may not be read", async () => {
    using folder = tempDir();
    const missing = folder.file("missing");
    await expect(files.open({ path: missing, writable: false })).rejects.toThrow(
      `cannot open ${missing}: no such file or directory (ENOENT)`,
    );
    await expect(files.open({ path: "a\0b", writable: false })).rejects.toMatchObject({ code: "EINVAL" });
    await expect(files.open({ path: "", writable: false })).rejects.toMatchObject({ code: "ENOENT" });
    await expect(files.open({ path: `${missing}/x`, writable: true })).rejects.toMatchObject({ name: "FileError" });
  });

  test("creates a file for its owner alone, and never over another", async () => {
    using folder = tempDir();
    const path = folder.file("image");
    const file = await files.open({ path, writable: true, create: true });
    await file.write(0, pattern(0, 512));
    await file.close();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const again = files.open({ path, writable: true, create: true });
    await expect(again).rejects.toThrow(`cannot create ${path}: file already exists (EEXIST)`);
    expect(readFileSync(path)).toEqual(pattern(0, 512));
  });

  test("follows a symbolic link, unless told not to, and never to create", async () => {
    using folder = tempDir();
    const [target, link, dangling] = [folder.file("target"), folder.file("link"), folder.file("dangling")];
    writeFileSync(target, pattern(0, 512));
    symlinkSync(target, link);
    symlinkSync(folder.file("nothing"), dangling);
    await using file = await files.open({ path: link, writable: false });
    expect(await file.sizeBytes()).toBe(512);
    const refused = files.open({ path: link, writable: true, noFollow: true });
    await expect(refused).rejects.toMatchObject({ name: "FileError", code: "ELOOP" });
    const created = files.open({ path: dangling, writable: true, create: true });
    await expect(created).rejects.toMatchObject({ name: "FileError", code: "EEXIST" });
    expect(await files.exists(folder.file("nothing"))).toBe(false);
  });

  test("leaves nothing for child processes to inherit, and no flag of the careful opening", async () => {
    using folder = tempDir();
    const path = folder.file("image");
    writeFileSync(path, "x");
    await using file = await files.open({ path, writable: true });
    const inherited = spawnSync("ls", ["-l", "/proc/self/fd"], { encoding: "utf8" });
    expect(inherited.stdout).toContain("/proc/");
    expect(inherited.stdout).not.toContain(file.path);
  });

  test("renames over what was there, removes, and makes directories durable", async () => {
    using folder = tempDir();
    const [from, to] = [folder.file("new"), folder.file("old")];
    writeFileSync(from, "new");
    writeFileSync(to, "old");
    await files.rename(from, to);
    await files.syncDirectory(folder.path);
    expect(readFileSync(to, "utf8")).toBe("new");
    expect(await files.exists(from)).toBe(false);
    await files.unlink(to);
    expect(await files.exists(to)).toBe(false);
    expect(await files.exists(`${to}/below`)).toBe(false);
    await expect(files.unlink(to)).rejects.toMatchObject({ name: "FileError", code: "ENOENT" });
    await expect(files.rename(from, to)).rejects.toMatchObject({ name: "FileError", code: "ENOENT" });
    await expect(files.syncDirectory(from)).rejects.toMatchObject({ name: "FileError", code: "ENOENT" });
  });

  test("looks through links for existence, as opening does", async () => {
    using folder = tempDir();
    mkdirSync(folder.file("directory"));
    symlinkSync(folder.file("directory"), folder.file("link"));
    symlinkSync(folder.file("nothing"), folder.file("dangling"));
    expect(await files.exists(folder.file("link"))).toBe(true);
    expect(await files.exists(folder.file("dangling"))).toBe(false);
    expect(readlinkSync(folder.file("dangling"))).toBe(folder.file("nothing"));
  });
}

test("an opened file does not block and is not O_NONBLOCK either, with native calls", async () => {
  using folder = tempDir();
  const path = folder.file("image");
  writeFileSync(path, "x");
  await using _file = await new RealFiles(WITH_NATIVE).open({ path, writable: true });
  const O_NONBLOCK = 0o4000;
  const flags = flagsOf(path);
  expect(flags).toHaveLength(1);
  expect((flags[0] ?? 0) & O_NONBLOCK).toBe(0);
});

/** The status flags with which this process has `path` open, each time. */
function flagsOf(path: string): number[] {
  const script = `for f in /proc/${process.pid}/fd/*; do
    [ "$(readlink "$f")" = "$0" ] && sed -n 's/^flags:\\s*//p' "/proc/${process.pid}/fdinfo/\${f##*/}"; done; true`;
  const { stdout } = spawnSync("sh", ["-c", script, path], { encoding: "utf8" });
  return stdout
    .split("\n")
    .filter(Boolean)
    .map((octal) => Number.parseInt(octal, 8));
}
