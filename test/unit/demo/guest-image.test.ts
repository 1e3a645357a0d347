/** Where the guest of `demo --vm` comes from, and what is said when it cannot come. */
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { findGuestImage } from "../../../src/demo/vm/guest-image.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";

const PROGRAMS = ["qemu-system-x86_64", "setpriv", "mkfs.ext4", "e2fsck", "busybox", "cpio", "apt-get"];

/** A checkout whose `scripts/guest-image` is `script`, and a PATH with `programs`. */
function checkout(folder: TempDir, script: string, programs: readonly string[] = PROGRAMS) {
  for (const name of ["scripts", "bin", "src", "guest"]) mkdirSync(folder.file(name));
  const put = (path: string, text: string): void => {
    writeFileSync(folder.file(path), text);
    chmodSync(folder.file(path), 0o755);
  };
  put("scripts/guest-image", script);
  for (const program of programs) put(`bin/${program}`, "");
  const said: string[] = [];
  return {
    said,
    find: () =>
      findGuestImage({
        main: folder.file("src/main.ts"),
        environment: { PATH: folder.file("bin"), BLOCKFERRY_GUEST: folder.file("guest") },
        write: (text) => void said.push(text),
      }),
  };
}

test("a guest that was made by this recipe is taken as it is", async () => {
  using folder = tempDir();
  const script = "#!/bin/sh\nexit 1\n";
  const { find, said } = checkout(folder, script, PROGRAMS.slice(0, 4));
  writeFileSync(folder.file("guest/recipe"), `${createHash("sha256").update(script).digest("hex").slice(0, 16)}\n`);
  expect(await find()).toBe(folder.file("guest"));
  expect(said).toEqual([]);
});

test("what is downloaded is told before it is", async () => {
  using folder = tempDir();
  const { find, said } = checkout(folder, "#!/bin/sh\nexit 0\n");
  expect(await find()).toBe(folder.file("guest"));
  expect(said.join("")).toContain("downloads Debian's package linux-image-cloud-amd64");
});

test("a program that is missing is named, with the package that has it", async () => {
  using folder = tempDir();
  const { find, said } = checkout(folder, "#!/bin/sh\nexit 0\n", []);
  await expect(find()).rejects.toMatchObject({
    kind: "setup",
    why: expect.stringContaining("qemu-system-x86_64"),
    hint: expect.stringContaining("apt-get install qemu-system-x86"),
  });
  expect(said).toEqual([]);
});

test("what the recipe lacks is passed on, with its advice", async () => {
  using folder = tempDir();
  const { find } = checkout(folder, "#!/bin/sh\nprintf 'guest-image: no network\\n  do:  plug it in\\n' >&2\nexit 1\n");
  await expect(find()).rejects.toMatchObject({ kind: "setup", why: "no network", hint: "plug it in" });
});

test("a program without its recipe says so", async () => {
  using folder = tempDir();
  const place = { main: folder.file("src/main.ts"), environment: {}, write: () => undefined };
  await expect(findGuestImage(place)).rejects.toMatchObject({
    kind: "setup",
    why: expect.stringContaining("guest-image"),
  });
});
