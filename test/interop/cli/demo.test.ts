/** `blockferry demo`, README's first command, and whether it can fail. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { WITHOUT_LAUNCHER } from "../../support/clone-process.ts";
import { BLOCKFERRY, makeFolder, run } from "./harness.ts";

const DOUBLE = join(import.meta.dirname, "demo-double.ts");

test("the demo moves a disk under a guest at work, and leaves nothing behind", () => {
  using place = makeFolder();
  const { code, stdout } = run(BLOCKFERRY, ["demo", "--size=24M", "--directory", place.path], {
    env: { PATH: "/usr/bin:/bin" },
  });
  expect(stdout).toMatch(/switchover pause .* ms[\s\S]*Every byte is where it belongs\.\n$/);
  expect(code).toBe(0);
  expect(run("ls", ["-A", place.path]).stdout).toBe("");
});

test("with --json the demo tells its figures", () => {
  using place = makeFolder();
  const { code, stdout, stderr } = run(BLOCKFERRY, ["demo", "--json", "--size=8M", "--directory", place.path]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    ok: true,
    sizeBytes: 8 * 1024 * 1024,
    switchoverPauseMs: expect.any(Number),
    guestWrites: expect.any(Number),
  });
  expect(stderr).toContain("Every byte is where it belongs.");
});

test("one wrong byte in what has arrived makes the demo fail", () => {
  using place = makeFolder();
  const [node = "", ...flags] = WITHOUT_LAUNCHER.slice(0, -1);
  const { code, stderr } = run(node, [...flags, DOUBLE, "demo", "--size=8M", "--directory", place.path]);
  expect(code).toBe(1);
  expect(stderr).toContain("the disk has not arrived as it should be");
  expect(run("ls", ["-A", place.path]).stdout).toBe("");
});
