/**
 * Tests against real peers. A tool that is missing, or something else that this host does not give, skips the test with
 * a hint, except in CI, where it fails the test: an interop suite that silently ran nothing has been seen to pass.
 */
import { spawnSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { type TestContext, test } from "vitest";

/** Debian's Python: the only one that Debian's libnbd binding (module `nbd`) is installed for. */
export const PYTHON = process.env["BLOCKFERRY_TEST_PYTHON"] ?? "/usr/bin/python3";

/** Things that are not simply a program on PATH. */
const SPECIAL: Readonly<Record<string, () => boolean>> = {
  "python3-libnbd": () => spawnSync(PYTHON, ["-c", "import nbd"], { stdio: "ignore" }).status === 0,
};

const found = new Map<string, boolean>();

/** Whether `tool` can be used here: a program on PATH, or `python3-libnbd`. */
export function hasTool(tool: string): boolean {
  const known = found.get(tool);
  if (known !== undefined) return known;
  const special = SPECIAL[tool];
  const present = special ? special() : onPath(tool);
  found.set(tool, present);
  return present;
}

/** What stands in the way of a test that needs `tools`, or undefined when nothing does. */
export function missingHint(tools: readonly string[]): string | undefined {
  const missing = tools.filter((tool) => !hasTool(tool));
  return missing.length > 0 ? `needs ${missing.join(", ")}: run scripts/install-peers` : undefined;
}

/** Inside a test: returns when `hint`, what stands in its way, is undefined; otherwise skips the test, or in CI fails it. */
export function requireHost(context: Pick<TestContext, "skip">, hint: string | undefined): void {
  if (hint === undefined) return;
  if (process.env["CI"]) throw new Error(hint);
  context.skip(hint);
}

/** As `requireHost`, for what only root may do: `requireRoot(context, "mounting")`. */
export function requireRoot(context: Pick<TestContext, "skip">, what: string): void {
  requireHost(context, process.getuid?.() === 0 ? undefined : `${what} is for root: run the tests as root`);
}

/** As `requireHost`: every tool has to be there. */
export function requireTools(context: Pick<TestContext, "skip">, tools: readonly string[]): void {
  requireHost(context, missingHint(tools));
}

/** Inside a test that takes long, `why` so: it runs in CI always, elsewhere when `variable` is set. */
export function requireAsked(context: Pick<TestContext, "skip">, variable: string, why: string): void {
  if (!process.env["CI"] && !process.env[variable]) context.skip(`${why}: set ${variable}=1 to run it`);
}

/** `itWith(["nbdinfo"], "nbdinfo reads the size", async () => { … })` */
export function itWith(
  tools: readonly string[],
  title: string,
  body: (context: TestContext) => unknown,
  timeoutMs?: number,
): void {
  test(
    title,
    async (context) => {
      requireTools(context, tools);
      await body(context);
    },
    timeoutMs,
  );
}

function onPath(program: string): boolean {
  // Servers live in sbin, which a plain user's PATH often lacks.
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/local/sbin", "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    try {
      accessSync(join(folder || ".", program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
