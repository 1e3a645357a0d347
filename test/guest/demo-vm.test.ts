/** `blockferry demo --vm`: a Linux guest moves with its memory and its disk, and whether that can be seen to fail. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { WITHOUT_LAUNCHER } from "../support/clone-process.ts";
import { itBoots } from "../support/guest.ts";
import { run } from "../support/run.ts";
import { BLOCKFERRY } from "../support/serve-process.ts";
import { tempDir } from "../support/temp-dir.ts";

const DEMO = ["demo", "--vm", "--json", "--size=64M"];
const LIMIT = { timeoutMs: 110_000 };
const DOUBLE = join(import.meta.dirname, "demo-vm-double.ts");

itBoots(
  [],
  "the demo moves a real guest, which reads its files back when the source is gone, and leaves nothing",
  async () => {
    using folder = tempDir();
    const { status, stdout, stderr } = await run([BLOCKFERRY, ...DEMO, "--directory", folder.path], LIMIT);
    expect(stderr).toMatch(/switchover pause .*s[\s\S]*The guest has found everything that it had written\.\n$/);
    expect(status).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ ok: true, sizeBytes: 64 * 2 ** 20, switchoverPauseMs: expect.any(Number) });
    // Those that were there from the beginning, and those that it has written.
    expect(report.filesVerified).toBeGreaterThanOrEqual(32 + 10);
    expect(readdirSync(folder.path)).toEqual([]);
  },
);

itBoots([], "one wrong byte in a file of the guest makes the demo fail", async () => {
  using folder = tempDir();
  const [node = "", ...flags] = WITHOUT_LAUNCHER.slice(0, -1);
  const { status, stderr } = await run([node, ...flags, DOUBLE, ...DEMO, "--directory", folder.path], LIMIT);
  expect(stderr).toContain("the guest has not moved as it should");
  expect(stderr).toContain("mismatch");
  expect(status).toBe(1);
  expect(readdirSync(folder.path)).toEqual([]);
});
