/** The program. Its first import listens to signals; all the rest waits until the command line says what is needed. */
import "./early-signals.ts";
import { renderError, toCliError } from "./cli-error.ts";
import { runCommandLine } from "./command-line.ts";
import { EXIT_FAILURE } from "./exit-codes.ts";

/** Nobody caught it, so nobody knows what state we are in: say so, and end. Clients see the connection break. */
function giveUp(error: unknown): never {
  process.stderr.write(renderError(toCliError(error), false));
  process.exit(EXIT_FAILURE);
}

/** A pipe whose reader is behind has not taken everything yet, and exiting would lose the rest. */
function exitWhenWritten(exitCode: number): void {
  if (process.stdout.writableLength === 0) process.exit(exitCode);
  process.stdout.write("", () => process.exit(exitCode));
}

process.on("uncaughtException", giveUp);
process.on("unhandledRejection", giveUp);
runCommandLine(process.argv.slice(2)).then(exitWhenWritten, giveUp);
