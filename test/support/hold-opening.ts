/** A process stopped at a step of its own choosing: where it opens a file. Needs strace. */
import { spawn } from "node:child_process";

export const ONE_THREAD = { UV_THREADPOOL_SIZE: "1" };

/**
 * From when this resolves until it is disposed of, the process does not get to open the file: for the `nth` time, that is. Each
 * thread counts for itself: above 1 it takes a process with one thread for files (`ONE_THREAD`).
 */
export async function holdOpening({ pid }: { readonly pid: number }, path: string, nth = 1): Promise<AsyncDisposable> {
  const what = [
    "-P",
    path,
    "-e",
    "trace=openat,open",
    "-e",
    `inject=openat,open:delay_enter=${100_000_000}:when=${nth}+`,
  ];
  const strace = spawn("strace", ["-f", "-p", String(pid), ...what], { stdio: ["ignore", "ignore", "pipe"] });
  const closed = new Promise((resolve) => strace.once("close", resolve));
  await new Promise<void>((resolve, reject) => {
    let said = "";
    strace.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
      if (said.includes("attached")) resolve();
    });
    void closed.then(() => reject(new Error(`strace has ended: ${said}`)));
  });
  return {
    [Symbol.asyncDispose]: async () => {
      // Asked to end, it would wait for a thread that was killed while it was held.
      strace.kill("SIGKILL");
      await closed;
    },
  };
}
