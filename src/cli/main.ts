/** The program. Its first import listens to signals; all the rest waits until the command line says what is needed. */
import "./early-signals.ts";
import { runCommandLine } from "./command-line.ts";

runCommandLine(process.argv.slice(2)).then(
  (exitCode) => process.exit(exitCode),
  (error: unknown) => {
    // Not even the error could be reported.
    console.error(error);
    process.exit(1);
  },
);
