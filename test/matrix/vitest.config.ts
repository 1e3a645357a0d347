/** For scripts/test-matrix alone: the interop tests that talk to NBD tools, with newer tools, and those of this folder. */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { defineConfig } from "vitest/config";
import { SuiteReporter } from "../support/reporter.ts";

const timeoutMs = process.env["CI"] ? 120_000 : 30_000;
const seed = process.env["BLOCKFERRY_SEED"] ?? String(randomBytes(4).readUInt32LE());

// biome-ignore lint/style/noDefaultExport: vitest takes its configuration from there.
export default defineConfig({
  root: join(import.meta.dirname, "../.."),
  test: {
    include: ["test/matrix/**/*.test.ts", "test/interop/serve/**/*.test.ts", "test/interop/nbd/**/*.test.ts"],
    reporters: ["default", new SuiteReporter(seed)],
    env: { BLOCKFERRY_SEED: seed },
    pool: "forks",
    maxWorkers: 2,
    testTimeout: timeoutMs,
    hookTimeout: timeoutMs,
  },
});
