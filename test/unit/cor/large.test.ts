import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const SCRIPT = join(import.meta.dirname, "large-overlay.ts");
const MiB = 2 ** 20;

interface Found {
  readonly sizeBytes: number;
  readonly openMs: number;
  readonly holeMs: number;
  readonly restMs: number;
  readonly localAtOpen: number;
  readonly localAfterHole: number;
  readonly missing: number;
  readonly openRssBytes: number;
  readonly rssBytes: number;
}

it("opens 16 TiB with every other cluster of 64 GiB present, and makes holes local, in bounded memory", async () => {
  const folder = await mkdtemp(join(tmpdir(), "overlay-"));
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [SCRIPT, folder]);
    console.info(stdout);
    const found = JSON.parse(stdout) as Found;
    expect(found.sizeBytes).toBeGreaterThanOrEqual(2 ** 40);
    expect(found.localAtOpen).toBeGreaterThan(8_000_000);
    expect(found.localAfterHole).toBe((100 * 2 ** 30) / 4096);
    expect(found.missing).toBeLessThan(8_500_000);
    expect(found.openRssBytes).toBeLessThan(200 * MiB);
    expect(found.rssBytes).toBeLessThan(256 * MiB);
    // What is meant is below a second each; other tests run beside this one.
    expect(found.openMs).toBeLessThan(10_000);
    expect(found.holeMs).toBeLessThan(10_000);
  } finally {
    await rm(folder, { recursive: true });
  }
}, 120_000);
