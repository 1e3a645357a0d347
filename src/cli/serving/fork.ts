/**
 * `--fork`: a Node process cannot fork itself, so the parent starts the same command line again in a session of its own
 * and stays until that one is ready (or has failed). Between the two there is one pipe, `READY_FD` of the child: it gets
 * one line of JSON when the child serves. Until then the child's stderr comes through the parent; afterwards it leads
 * nowhere, and the log goes to `--log-file`.
 */
import { spawn } from "node:child_process";
import { closeSync, writeSync } from "node:fs";
import type { Readable } from "node:stream";
import { EXIT_FAILURE } from "../exit-codes.ts";

const READY_FD = 3;
const MARK = "BLOCKFERRY_FORKED_FROM";

/** True in the process that is to serve; clears the mark, so that nobody whom we start sees it. */
export function isForkedChild(env: Record<string, string | undefined>): boolean {
  const marked = env[MARK] !== undefined;
  delete env[MARK];
  return marked;
}

/** The parent's part. Resolves to what the child said when it became ready, or to the exit code it failed with. */
export async function spawnDetached(args: readonly string[]): Promise<{ ready: string } | { exitCode: number }> {
  const [script = ""] = process.argv.slice(1);
  const child = spawn(process.execPath, [...process.execArgv, script, ...args], {
    detached: true,
    stdio: ["ignore", "ignore", "pipe", "pipe"],
    env: { ...process.env, [MARK]: String(process.pid) },
  });
  child.stderr?.pipe(process.stderr);
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on("SIGINT", pass).on("SIGTERM", pass);
  const exited = new Promise<{ exitCode: number }>((resolve) => {
    child.once("error", () => resolve({ exitCode: EXIT_FAILURE }));
    // "close" comes when all that the child wrote to stderr has been passed on.
    child.once("close", (code) => resolve({ exitCode: code ?? EXIT_FAILURE }));
  });
  const outcome = await Promise.race([firstLine(child.stdio[READY_FD] as Readable), exited]);
  return outcome ?? (await exited);
}

/** The child's part: tells the parent, which then leaves. */
export function announceToParent(ready: string): void {
  writeSync(READY_FD, `${ready}\n`);
  closeSync(READY_FD);
}

/** Undefined when the stream ends without a whole line. */
async function firstLine(stream: Readable): Promise<{ ready: string } | undefined> {
  let text = "";
  for await (const chunk of stream) {
    text += String(chunk);
    if (text.includes("\n")) return { ready: text.slice(0, text.indexOf("\n")) };
  }
  return undefined;
}
