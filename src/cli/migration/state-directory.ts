/** What of a migration outlives its process. The directory is one migration's alone, and one process's at a time. */
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Env } from "../../env/env.ts";
import { type File, FileError } from "../../env/files.ts";
import type { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_TRY_AGAIN } from "../exit-codes.ts";

const LOCK_NAME = "lock";

/** Makes it if need be, and locks it until `cleanup`. Throws `CliError`. */
export async function takeStateDirectory(env: Pick<Env, "files">, path: string, cleanup: Cleanup): Promise<void> {
  let lock: File | undefined;
  try {
    if (mkdirSync(path, { recursive: true, mode: 0o700 }) !== undefined) await env.files.syncDirectory(dirname(path));
    lock = await openLock(env, join(path, LOCK_NAME));
    await lock.lock("exclusive");
  } catch (error) {
    await lock?.close();
    throw cannotUse(path, error as Error & { code?: string });
  }
  const file = lock;
  cleanup.defer(() => file.close());
}

async function openLock({ files }: Pick<Env, "files">, path: string): Promise<File> {
  try {
    return await files.open({ path, writable: true, create: true });
  } catch (error) {
    if (!(error instanceof FileError) || error.code !== "EEXIST") throw error;
    return await files.open({ path, writable: true, noFollow: true });
  }
}

function cannotUse(path: string, error: Error & { code?: string }): CliError {
  const inUse = error.code === "EAGAIN";
  return new CliError(
    {
      exitCode: inUse ? EXIT_TRY_AGAIN : EXIT_IO,
      code: inUse ? "locked" : (error.code ?? "io"),
      what: `cannot keep the state of the migration in ${path}`,
      why: inUse ? "another process has it" : error.message,
      hint: inUse
        ? "it runs already: see `blockferry status`; for another migration choose another --state-dir"
        : "choose a folder that we may write to with --state-dir",
    },
    { cause: error },
  );
}
