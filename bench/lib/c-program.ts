/** C programs of ours that a suite compiles for itself, where there is a compiler. */
import { basename, join } from "node:path";
import { runTool } from "./process.ts";

const COMPILE_TIMEOUT_MS = 60_000;

export type Compiled = { readonly path: string; readonly compiler: string } | { readonly missing: string };

/** Compiles one file into `folder`, optimized. */
export async function compileC(source: string, folder: string): Promise<Compiled> {
  const path = join(folder, basename(source, ".c"));
  try {
    await runTool({ argv: ["cc", "-O2", "-o", path, source], timeoutMs: COMPILE_TIMEOUT_MS });
    const { stdout } = await runTool({ argv: ["cc", "--version"], timeoutMs: COMPILE_TIMEOUT_MS });
    return { path, compiler: stdout.split("\n")[0] ?? "cc" };
  } catch (error) {
    return { missing: `${(error as Error).message}; install a C compiler, as in apt install gcc libc6-dev` };
  }
}
