/** `--run CMD`: serves for as long as a shell command runs, whose exit code becomes ours. */
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { CliError } from "../cli-error.ts";
import { EXIT_FAILURE } from "../exit-codes.ts";
import type { StopRequest } from "./stop-request.ts";

const SIGNAL_BASE = 128;

/** Resolves to the exit code of `script`, as a shell would tell it. A wish to stop is passed on to it. */
export async function runToEnd(script: string, stop: StopRequest): Promise<number> {
  const child = spawn("/bin/sh", ["-c", script], { stdio: "inherit" });
  // On a terminal, an interrupt reaches the command by itself; a signal to us alone does not.
  void stop.wished.then((why) => why !== "SIGINT" && child.kill("SIGTERM"));
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
    child.once("error", (error) => reject(cannotRun(error)));
    child.once("close", (...outcome) => resolve(outcome));
  });
  return code ?? SIGNAL_BASE + constants.signals[signal ?? "SIGTERM"];
}

function cannotRun(error: Error): CliError {
  const hint = "--run needs /bin/sh";
  return new CliError({
    exitCode: EXIT_FAILURE,
    code: "run",
    what: "cannot start the --run command",
    why: error.message,
    hint,
  });
}
