/** The image lock against QEMU, both ways. */
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { describe, expect } from "vitest";
import type { LockMode } from "../../../src/env/files.ts";
import { RealFiles } from "../../../src/os/files.ts";
import { loadNative } from "../../../src/os/native.ts";
import { makeImage } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const files = new RealFiles(loadNative({ disabled: false }));
const SIZE_BYTES = 2 ** 20;

type Format = "raw" | "qcow2";

/** Runs a program of QEMU's on the image while we hold it; what it printed when it failed, or "" when it did not. */
async function whileLocked(
  format: Format,
  mode: LockMode,
  commands: readonly (readonly string[])[],
): Promise<string[]> {
  using folder = tempDir();
  const path = makeFormatted(folder.file("image"), format);
  await using file = await files.open({ path, writable: mode === "exclusive" });
  await file.lock(mode);
  return commands.map(([program = "", ...args]) => {
    const { status, stderr } = spawnSync(program, [...args, path], { encoding: "utf8" });
    return status === 0 ? "" : stderr;
  });
}

function makeFormatted(path: string, format: Format): string {
  makeImage(path, SIZE_BYTES);
  if (format === "qcow2") spawnSync("qemu-img", ["create", "-q", "-f", "qcow2", path, String(SIZE_BYTES)]);
  return path;
}

/** qemu-io with the image open, until it is told to leave. */
async function qemuIo(path: string, args: readonly string[]): Promise<ChildProcessWithoutNullStreams> {
  const child = spawn("qemu-io", [...args, path]);
  const printed = once(child.stdout, "data");
  child.stdin.write("length\n");
  await printed;
  return child;
}

async function quit(child: ChildProcessWithoutNullStreams): Promise<void> {
  const left = once(child, "exit");
  child.stdin.end("quit\n");
  await left;
}

const write = ["-c", "write 0 4k"];
const read = ["-r", "-c", "read 0 4k"];

describe("QEMU, on an image that we write,", () => {
  itWith(["qemu-img", "qemu-io"], "may not open it for writing", async () => {
    const results = await whileLocked("raw", "exclusive", [
      ["qemu-io", "-f", "raw", ...write],
      ["qemu-img", "commit", "-f", "raw"],
    ]);
    expect(results[0]).toContain('Failed to get "write" lock');
    expect(results[1]).toContain('Failed to get "write" lock');
  });

  itWith(["qemu-img", "qemu-io"], "may look at it when it is raw, with -U and without", async () => {
    const results = await whileLocked("raw", "exclusive", [
      ["qemu-img", "info", "-f", "raw"],
      ["qemu-img", "info", "-U", "-f", "raw"],
      ["qemu-io", "-f", "raw", ...read],
    ]);
    expect(results).toEqual(["", "", ""]);
  });

  itWith(["qemu-img", "qemu-io"], "may look at it with -U only when it is qcow2, as among its own", async () => {
    const [plain, shared, writing] = await whileLocked("qcow2", "exclusive", [
      ["qemu-img", "info", "-f", "qcow2"],
      ["qemu-img", "info", "-U", "-f", "qcow2"],
      ["qemu-io", "-f", "qcow2", ...write],
    ]);
    expect(plain).toContain('Failed to get shared "write" lock');
    expect(shared).toBe("");
    expect(writing).toContain('Failed to get "write" lock');
  });
});

describe("QEMU, on an image that we read,", () => {
  for (const format of ["raw", "qcow2"] as const) {
    itWith(["qemu-img", "qemu-io"], `may read it, and not write it (${format})`, async () => {
      const [info, check, reading, writing] = await whileLocked(format, "shared", [
        ["qemu-img", "info", "-f", format],
        ["qemu-img", "map", "-f", format],
        ["qemu-io", "-f", format, ...read],
        ["qemu-io", "-f", format, ...write],
      ]);
      expect([info, check, reading]).toEqual(["", "", ""]);
      expect(writing).toContain('Failed to get "write" lock');
    });
  }

  itWith(["qemu-io"], "may write it again when we have closed it", async () => {
    using folder = tempDir();
    const path = makeFormatted(folder.file("image"), "raw");
    const file = await files.open({ path, writable: true });
    await file.lock("exclusive");
    await file.close();
    expect(spawnSync("qemu-io", ["-f", "raw", ...write, path]).status).toBe(0);
  });
});

describe("an image that QEMU", () => {
  const cases: readonly [string, Format, string[], LockMode[], LockMode[]][] = [
    ["writes (raw)", "raw", ["-f", "raw"], ["exclusive", "shared"], []],
    ["writes (qcow2)", "qcow2", ["-f", "qcow2"], ["exclusive", "shared"], []],
    ["reads (qcow2)", "qcow2", ["-r", "-f", "qcow2"], ["exclusive"], ["shared"]],
    ["reads with -U (qcow2)", "qcow2", ["-U", "-r", "-f", "qcow2"], [], ["exclusive"]],
  ];
  for (const [does, format, args, refused, granted] of cases) {
    itWith(
      ["qemu-io"],
      `${does} is ${granted.length === 0 ? "not ours" : `ours to lock ${granted.join()}`}`,
      async () => {
        using folder = tempDir();
        const path = makeFormatted(folder.file("image"), format);
        const qemu = await qemuIo(path, args);
        try {
          for (const mode of refused) {
            await using file = await files.open({ path, writable: mode === "exclusive" });
            await expect(file.lock(mode)).rejects.toMatchObject({
              name: "FileError",
              code: "EAGAIN",
              message: expect.stringMatching(
                `^cannot lock ${path}: qemu-io .pid ${qemu.pid}. (uses|writes) it and has`,
              ),
            });
          }
          for (const mode of granted) {
            await using file = await files.open({ path, writable: mode === "exclusive" });
            await file.lock(mode);
          }
        } finally {
          await quit(qemu);
        }
        await using file = await files.open({ path, writable: true });
        await file.lock("exclusive");
      },
    );
  }

  itWith(
    ["qemu-nbd", "nbdinfo"],
    "exports for writing is not ours, and one it exports for reading is ours to read",
    async () => {
      using folder = tempDir();
      const path = makeFormatted(folder.file("image"), "raw");
      const socket = folder.file("nbd");
      for (const flags of [[], ["-r"]]) {
        const server = spawn("qemu-nbd", ["-f", "raw", "-t", ...flags, "-k", socket, path], { stdio: "ignore" });
        try {
          await expect.poll(() => spawnSync("nbdinfo", ["--size", `nbd+unix:///?socket=${socket}`]).status).toBe(0);
          await using file = await files.open({ path, writable: false });
          if (flags.length === 0) await expect(file.lock("shared")).rejects.toMatchObject({ code: "EAGAIN" });
          else await file.lock("shared");
        } finally {
          const left = once(server, "exit");
          server.kill();
          await left;
        }
      }
    },
  );
});
