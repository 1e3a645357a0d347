/** A real `blockferry serve`, as a process of its own. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { DemoFailure } from "./failure.ts";

export interface ServeProcess extends AsyncDisposable {
  readonly uri: string;
  readonly pid: number;
  /** Asks it to stop, as an operator or service manager would; resolves to its exit code. */
  stop(): Promise<number | null>;
}

/** Starts `command serve … image` on a private unix socket. It ends with us, whatever happens to us. */
export async function startServing(
  command: readonly string[],
  image: string,
  exportName: string,
): Promise<ServeProcess> {
  const [program = "", ...before] = command;
  const args = [...before, "serve", "--exit-with-parent", "-U", "-", "-x", exportName, "--format", "raw", image];
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<number | null>((resolve) => {
    child.once("error", () => resolve(null));
    child.once("close", resolve);
  });
  const stop = (): Promise<number | null> => {
    child.kill("SIGTERM");
    return ended;
  };
  const uri = await firstLineOf(child);
  return { uri, pid: child.pid ?? 0, stop, [Symbol.asyncDispose]: async () => void (await stop()) };
}

async function firstLineOf(child: ChildProcess & { stdout: Readable }): Promise<string> {
  for await (const line of createInterface({ input: child.stdout })) return line;
  throw new DemoFailure(
    "the server did not start",
    "it ended without telling where it listens",
    "see its own lines above",
  );
}
