import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { defineConfig } from "vitest/config";
import { SuiteReporter } from "./test/support/reporter.ts";

// CI's machines are slow and shared: there, only a hang should reach the limit.
const inCi = Boolean(process.env["CI"]);
const testTimeout = inCi ? 120_000 : 30_000;

// Every run draws its randomness from one seed, which the reporter prints. BLOCKFERRY_SEED repeats a run.
const seed =
  process.env["BLOCKFERRY_SEED"] ?? String((inCi ? seedOfCommit() : undefined) ?? randomBytes(4).readUInt32LE());

/** CI run again on a commit tries the same; the next commit tries something else. Undefined outside a repository. */
function seedOfCommit(): number | undefined {
  try {
    const commit = execFileSync("git", ["rev-parse", "HEAD"], { cwd: import.meta.dirname, stdio: "pipe" });
    return Number.parseInt(commit.toString().slice(0, 8), 16);
  } catch {
    return undefined;
  }
}

// What Node has compiled is kept: tests start it more than a thousand times, and each start takes a third less. Coverage
// is counted in what Node compiles itself.
if (!process.argv.some((argument) => argument.startsWith("--coverage"))) {
  process.env["NODE_COMPILE_CACHE"] ??= join(import.meta.dirname, "node_modules/.cache/compile");
}

const suite = (name: string, more: { globalSetup?: string; env?: Record<string, string>; isolate?: boolean } = {}) => ({
  extends: true as const,
  test: { name, include: [`test/${name}/**/*.test.ts`], ...more },
});

// These start the program hundreds of times: as the bundle that is shipped, which also starts in a third of the time.
const built = { globalSetup: "test/support/build-bundle.ts", env: { BLOCKFERRY_DIST: "1" } };

export default defineConfig({
  test: {
    // Half of what most unit files take is their process: while developing they share some.
    projects: [
      suite("unit", { isolate: inCi }),
      suite("sim"),
      suite("interop", built),
      suite("faults", built),
      suite("guest", built),
    ],
    reporters: ["default", new SuiteReporter(seed)],
    env: { BLOCKFERRY_SEED: seed },
    pool: "forks",
    // Many tests wait for a process or a clock; where only a hang should reach the limit, nobody gains by crowding.
    maxWorkers: inCi ? 2 : 4,
    testTimeout,
    hookTimeout: testTimeout,
    // What is waited for happens, or the test hangs: how soon is the machine's affair.
    expect: { poll: { timeout: inCi ? 60_000 : 10_000 } },
    coverage: { provider: "v8", include: ["src/**/*.ts"], reporter: ["text-summary", "html"] },
  },
});
