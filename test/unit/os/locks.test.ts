import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import type { LockMode } from "../../../src/env/files.ts";
import { RealFiles } from "../../../src/os/files.ts";
import { makeImage } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { requireTools } from "../../support/tools.ts";
import { PLACES, WITH_NATIVE, WITHOUT_NATIVE } from "./places.ts";

const native = new RealFiles(WITH_NATIVE);
const plain = new RealFiles(WITHOUT_NATIVE);

const pairs = {
  "two with native calls": [native, native],
  "two without native calls": [plain, plain],
  "one with and one without native calls": [native, plain],
  "one without and one with native calls": [plain, native],
} as const;

for (const place of PLACES) {
  for (const [title, [files, others]] of Object.entries(pairs)) {
    describe(`on ${place.name}, of ${title},`, () => lockPair(place.directory, files, others));
  }
}

function lockPair(directory: string, files: RealFiles, others: RealFiles): void {
  const conflicts: readonly [LockMode, LockMode, boolean][] = [
    ["exclusive", "exclusive", true],
    ["exclusive", "shared", true],
    ["shared", "exclusive", true],
    ["shared", "shared", false],
    ["alone", "shared", true],
    ["alone", "exclusive", true],
    ["shared", "alone", true],
  ];
  for (const [first, second, conflict] of conflicts) {
    test(`a lock that is ${first} ${conflict ? "keeps out" : "lets in"} one that is ${second}`, async (context) => {
      requireTools(context, ["flock"]);
      using folder = tempDir(directory);
      const path = folder.file("image");
      makeImage(path, 65_536);
      const holder = await files.open({ path, writable: first !== "shared" });
      await holder.lock(first);
      await using other = await others.open({ path, writable: second !== "shared" });
      const locked = other.lock(second);
      if (conflict) await expect(locked).rejects.toMatchObject({ name: "FileError", code: "EAGAIN" });
      else await locked;
      await holder.close();
      // What was refused leaves nothing behind, and what was closed holds nothing.
      await other.lock(second);
    });
  }

  test("a lock that was refused leaves nothing behind", async (context) => {
    requireTools(context, ["flock"]);
    using folder = tempDir(directory);
    const path = folder.file("image");
    makeImage(path, 65_536);
    await using holder = await files.open({ path, writable: false });
    await holder.lock("shared");
    await using refused = await others.open({ path, writable: true });
    await expect(refused.lock("exclusive")).rejects.toMatchObject({ code: "EAGAIN" });
    await using third = await files.open({ path, writable: false });
    await third.lock("shared");
  });
}

test("a lock can be repeated, and not changed", async () => {
  using folder = tempDir();
  const path = folder.file("image");
  makeImage(path, 65_536);
  await using file = await native.open({ path, writable: true });
  await file.lock("shared");
  await file.lock("shared");
  await expect(file.lock("exclusive")).rejects.toMatchObject({ name: "FileError", code: "EINVAL" });
});

test("a conflict names whoever holds the lock", async (context) => {
  requireTools(context, ["flock"]);
  using folder = tempDir();
  const path = folder.file("image");
  makeImage(path, 65_536);
  await using holder = await native.open({ path, writable: true });
  await holder.lock("exclusive");
  await using other = await native.open({ path, writable: true });
  await expect(other.lock("exclusive")).rejects.toThrow(`cannot lock ${path}: this very process uses it`);
});

test("the kernel lists the byte locks that QEMU takes", async () => {
  using folder = tempDir();
  const path = folder.file("image");
  makeImage(path, 65_536);
  await using file = await native.open({ path, writable: true });
  await file.lock("exclusive");
  const script = `for f in /proc/${process.pid}/fd/*; do
    [ "$(readlink "$f")" = "$0" ] && grep ^lock: "/proc/${process.pid}/fdinfo/\${f##*/}"; done; true`;
  const { stdout } = spawnSync("sh", ["-c", script, path], { encoding: "utf8" });
  const locks = stdout
    .split("\n")
    .filter(Boolean)
    .map((line) => line.trim().split(/\s+/));
  const bytes = locks.filter((lock) => lock[2] === "OFDLCK").map((lock) => `${lock[4]} ${lock[7]}-${lock[8]}`);
  // Neighbouring bytes are joined by the kernel.
  expect(bytes.sort()).toEqual(["READ 100-101", "READ 103-103", "READ 201-201", "READ 203-203"]);
  expect(locks.filter((lock) => lock[2] === "FLOCK").map((lock) => lock[4])).toEqual(["WRITE"]);
});
