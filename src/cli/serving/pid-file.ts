/** The file that tells a service's PID: appears whole, and is removed only by the process that it names. */
import { readFileSync, renameSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";

/** Writes our PID to `path`, in one step. Returns the function that removes it. */
export function writePidFile(path: string): () => void {
  const text = `${process.pid}\n`;
  const draft = `${path}.${process.pid}`;
  try {
    writeFileSync(draft, text, { flag: "wx", mode: 0o644 });
    renameSync(draft, path);
  } catch (error) {
    rmSync(draft, { force: true });
    const why = (error as Error).message;
    const hint = "choose another --pid-file, in a folder that we may write to";
    throw new CliError({ exitCode: EXIT_IO, code: "pid-file", what: `cannot write the PID file ${path}`, why, hint });
  }
  return () => {
    try {
      if (readFileSync(path, "latin1") === text) unlinkSync(path);
    } catch {
      // It is gone already, which is what we want.
    }
  };
}
