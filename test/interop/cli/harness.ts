/** Runs the real `bin/blockferry`, with its own environment and in a folder of its own. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempDisposableSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";

export const BLOCKFERRY = fileURLToPath(new URL("../../../bin/blockferry", import.meta.url));

/** No setting of whoever runs the tests, and no announcement of sockets, gets through. */
function cleanEnvironment(more: Readonly<Record<string, string>>): Record<string, string> {
  const inherited = Object.entries(process.env).filter(([name]) => !/^(BLOCKFERRY_|LISTEN_|NOTIFY_)/.test(name));
  const launcher = ["BLOCKFERRY_NODE", "BLOCKFERRY_DIST", "BLOCKFERRY_NO_NATIVE"].flatMap((name) => {
    const value = process.env[name];
    return value === undefined ? [] : [[name, value]];
  });
  return Object.fromEntries([...inherited, ...launcher, ...Object.entries(more)]) as Record<string, string>;
}

export interface Folder extends Disposable {
  readonly path: string;
  at(name: string): string;
}

export function makeFolder(): Folder {
  const folder = mkdtempDisposableSync(join(tmpdir(), "blockferry-test-"));
  return { path: folder.path, at: (name) => join(folder.path, name), [Symbol.dispose]: () => folder.remove() };
}

/** A raw image whose first MiB says at every 16 bytes where that is, followed by a hole. */
export function makeImage(folder: Folder, name = "disk.raw", sizeBytes = 4 * 1024 * 1024): string {
  const path = folder.at(name);
  const lines = Array.from({ length: 65_536 }, (_, i) => `${(i * 16).toString(16).padStart(15, "@")}\n`);
  writeFileSync(path, lines.join("").slice(0, sizeBytes));
  truncateSync(path, sizeBytes);
  return path;
}

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end. */
export function run(
  command: string,
  args: readonly string[],
  options: { env?: Record<string, string>; cwd?: string } = {},
): Outcome {
  const { env = {}, cwd } = options;
  const child = spawnSync(command, args, {
    encoding: "utf8",
    env: cleanEnvironment(env),
    timeout: 60_000,
    ...(cwd !== undefined && { cwd }),
  });
  return { code: child.status, stdout: child.stdout, stderr: child.stderr };
}

export function blockferry(
  args: readonly string[],
  options: { env?: Record<string, string>; cwd?: string } = {},
): Outcome {
  return run(BLOCKFERRY, args, options);
}

/** Exit code, and three lines: what, why, what to do. */
export function expectError(outcome: Outcome, code: number, text: RegExp): void {
  expect(outcome.stderr).toMatch(/^blockferry: .+\n {2}why: .+\n {2}do: {2}.+\n$/);
  expect(outcome.stderr).toMatch(text);
  expect(outcome.stdout).toBe("");
  expect(outcome.code).toBe(code);
}

export class Running implements AsyncDisposable {
  readonly child: ChildProcess;
  /** What it has written so far. */
  stdout = "";
  stderr = "";
  /** Settles when the process is gone and all it wrote has arrived. */
  readonly ended: Promise<Outcome>;

  constructor(command: string, args: readonly string[], env: Record<string, string> = {}) {
    this.child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: cleanEnvironment(env) });
    this.child.stdout?.on("data", (bytes) => (this.stdout += String(bytes)));
    this.child.stderr?.on("data", (bytes) => (this.stderr += String(bytes)));
    this.ended = new Promise((resolve, reject) => {
      this.child.once("error", reject);
      this.child.once("close", (code) => resolve({ code, stdout: this.stdout, stderr: this.stderr }));
    });
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** The first line on standard output. */
  async ready(): Promise<string> {
    const silent = this.ended.then(({ code, stderr }) => {
      throw new Error(`it ended with ${code} before it was ready: ${stderr}`);
    });
    const line = waitFor(() => /^(.*)\n/.exec(this.stdout)?.[1]);
    return await Promise.race([line, silent]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill("SIGKILL");
    await this.ended;
  }
}

export function start(args: readonly string[], env: Record<string, string> = {}): Running {
  return new Running(BLOCKFERRY, args, env);
}

/** Asks again until there is an answer. */
export async function waitFor<T>(ask: () => T | undefined): Promise<T> {
  let answer: T | undefined;
  const again = (): T | undefined => {
    answer = ask();
    return answer;
  };
  await expect.poll(again, { timeout: 20_000, interval: 10 }).toBeDefined();
  return answer as T;
}

export function isAlive(pid: number): boolean {
  try {
    // A zombie that nobody has waited for yet is dead.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "latin1"));
  } catch {
    return false;
  }
}
