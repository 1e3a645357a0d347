/**
 * Imported first of all: Node opens its inspector on SIGUSR1 unless somebody listens, and an operator who asks a server
 * for its status line must not open a debugger instead. And how the process ends is settled before anybody uses its streams.
 */
import { exitQuickly } from "../os/quick-exit.ts";

let printStatus: (() => void) | undefined;

process.on("SIGUSR1", () => printStatus?.());
exitQuickly();

/** What SIGUSR1 does from now on. */
export function onStatusSignal(print: () => void): void {
  printStatus = print;
}

/** Whoever reads our standard output may leave early (`| head`): that ends the output, and is no failure. */
let onBrokenPipe: () => void = () => process.exit(0);

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  onBrokenPipe();
});
// Nobody is left to be told.
process.stderr.on("error", () => {});

/** What a reader of standard output that has left does from now on. */
export function onOutputClosed(react: () => void): void {
  onBrokenPipe = react;
}
