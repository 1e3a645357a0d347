/** Before the suites that start the program: bundles the sources as they are now. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";

const BUILD = join(import.meta.dirname, "../../scripts/build.ts");
let built: Promise<unknown> | undefined;

/** Called once for each suite that names this file. */
export async function setup(): Promise<void> {
  built ??= promisify(execFile)(process.execPath, [BUILD]);
  await built;
}
