/**
 * Programs that take part: servers, which run until they are stopped, and tools, which run until they are done.
 * Both are told apart from their surroundings by a process group of their own, both give an account of the CPU time and
 * the memory they used, and none outlives the benchmark, whichever way it ends.
 */
import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { cpuFields, TICKS_PER_SECOND } from "./machine.ts";

const READY_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 10_000;
const POLL_MS = 5;
const RSS_POLL_MS = 20;
/** As much of a program's complaints as is worth quoting. */
const OUTPUT_KEPT_BYTES = 8192;

export interface Usage {
  /** User and system time of all threads. */
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
}

export interface ServerUsage extends Usage {
  /** What the kernel had to fetch from disks on the server's behalf: 0 when all came from the page cache. */
  readonly diskReadBytes: number;
}

const groups = new Set<number>();
const folders = new Set<string>();

process.once("exit", () => {
  for (const group of groups) signalGroup(group, "SIGKILL");
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** A new folder, removed with everything in it by `remove`, or else when this process ends. */
export function temporaryFolder(parent = tmpdir()): { path: string; remove(): void } {
  const path = mkdtempSync(join(parent, "blockferry-bench-"));
  folders.add(path);
  const remove = (): void => {
    rmSync(path, { recursive: true, force: true });
    folders.delete(path);
  };
  return { path, remove };
}

/** This environment, with the folders that servers live in on PATH (a plain user's often lacks them). */
export function toolEnvironment(extra: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const path = [process.env["PATH"] ?? "", "/usr/local/sbin", "/usr/sbin", "/sbin"].join(delimiter);
  return { ...process.env, PATH: path, ...extra };
}

export interface StartOptions {
  readonly name: string;
  readonly argv: readonly [string, ...string[]];
  readonly environment?: Readonly<Record<string, string>>;
  /** Tries the server once and rejects while it is not there yet; called until it resolves. */
  ready(): Promise<unknown>;
}

export class ServerProcess implements AsyncDisposable {
  readonly name: string;
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #complaints: () => string;
  readonly #exited: Promise<string>;
  #exit: string | undefined;

  private constructor(name: string, child: ChildProcess) {
    this.name = name;
    this.pid = child.pid ?? -1;
    this.#child = child;
    this.#complaints = collect(child);
    this.#exited = exitOf(child);
    void this.#exited.then((how) => {
      this.#exit = how;
    });
  }

  /** Resolves when `ready` has succeeded once; rejects, with the process gone, when it ends or does not get ready. */
  static async start(options: StartOptions): Promise<ServerProcess> {
    const server = new ServerProcess(options.name, launch(options.argv, options.environment));
    try {
      await server.#untilReady(options);
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Throws when the server is no longer running, with what it said. */
  assertRunning(): void {
    if (this.#exit !== undefined) throw new Error(`${this.name} ended (${this.#exit}): ${this.#complaints()}`);
  }

  usage(): ServerUsage {
    this.assertRunning();
    const usage = usageOf(this.pid);
    if (usage === undefined) throw new Error(`${this.name} is gone`);
    return usage;
  }

  /** SIGTERM, and waits. Rejects when that was not enough: the server was then killed. */
  async stop(): Promise<void> {
    this.assertRunning();
    signalGroup(this.pid, "SIGTERM");
    const exit = await Promise.race([this.#exited, delay(STOP_TIMEOUT_MS, undefined, { ref: false })]);
    if (exit !== undefined) return;
    await this[Symbol.asyncDispose]();
    throw new Error(`${this.name} did not end within ${STOP_TIMEOUT_MS / 1000} s of SIGTERM: ${this.#complaints()}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#exit === undefined) signalGroup(this.pid, "SIGKILL");
    await this.#exited;
    this.#child.removeAllListeners();
  }

  async #untilReady({ ready }: StartOptions): Promise<void> {
    const deadline = performance.now() + READY_TIMEOUT_MS;
    for (;;) {
      this.assertRunning();
      try {
        await ready();
        this.assertRunning();
        return;
      } catch (error) {
        if (performance.now() > deadline) {
          const seconds = READY_TIMEOUT_MS / 1000;
          throw new Error(`${this.name} is not ready after ${seconds} s: ${this.#complaints()}`, { cause: error });
        }
      }
      await delay(POLL_MS);
    }
  }
}

export interface ToolRun extends Usage {
  readonly wallMs: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ToolOptions {
  readonly argv: readonly [string, ...string[]];
  readonly environment?: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
}

/**
 * Runs a program to its end. Rejects when it cannot be started, fails, or takes longer than `timeoutMs`.
 * The CPU time is exact (the shell's `times`), the peak of the memory is that of the last look at it.
 */
export async function runTool({ argv, environment, timeoutMs }: ToolOptions): Promise<ToolRun> {
  const script = '"$@" 3>&-; status=$?; times >&3; exit "$status"';
  const startedMs = performance.now();
  const child = launch(["/bin/sh", "-c", script, "sh", ...argv], environment, ["ignore", "pipe", "pipe", "pipe"]);
  const [stdout, stderr, times] = [gather(child.stdout), gather(child.stderr), gather(child.stdio[3])];
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    signalGroup(child.pid ?? -1, "SIGKILL");
  }, timeoutMs);
  let peakRssBytes = 0;
  const poll = setInterval(() => {
    peakRssBytes = Math.max(peakRssBytes, childRss(child.pid ?? -1));
  }, RSS_POLL_MS);
  try {
    const how = await exitOf(child);
    const wallMs = performance.now() - startedMs;
    if (timedOut) throw new Error(`${argv[0]} was not done after ${timeoutMs / 1000} s`);
    const output = { stdout: await stdout, stderr: await stderr };
    if (how !== "status 0") throw new Error(`${argv[0]} failed (${how}): ${lastOf(output.stderr || output.stdout)}`);
    return { wallMs, ...output, cpuSeconds: timesSeconds(await times), peakRssBytes };
  } finally {
    clearTimeout(timer);
    clearInterval(poll);
  }
}

/** The second line of the shell's `times`: user and system time of its children, "0m0.13s 0m0.02s". */
export function timesSeconds(text: string): number {
  const fields = [...(text.split("\n")[1] ?? "").matchAll(/(\d+)m([\d.]+)s/g)];
  if (fields.length !== 2) throw new Error(`not the output of times: ${JSON.stringify(text)}`);
  return fields.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0);
}

function launch(
  argv: readonly [string, ...string[]],
  environment: Readonly<Record<string, string>> = {},
  stdio: StdioOptions = ["ignore", "pipe", "pipe"],
): ChildProcess {
  const [program, ...args] = argv;
  const child = spawn(program, args, { stdio, detached: true, env: toolEnvironment(environment) });
  const { pid } = child;
  if (pid !== undefined) {
    groups.add(pid);
    child.once("exit", () => groups.delete(pid));
  }
  return child;
}

/** "status 0", "SIGKILL", "ENOENT …": never rejects. Resolves when the output has been read to its end, too. */
async function exitOf(child: ChildProcess): Promise<string> {
  try {
    const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
    return signal ?? `status ${code}`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Reads both outputs, so that the program never blocks on them, and remembers the end of what was said. */
function collect(child: ChildProcess): () => string {
  let kept = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding("utf8").on("data", (text: string) => {
      kept = (kept + text).slice(-OUTPUT_KEPT_BYTES);
    });
  }
  return () => lastOf(kept) || "it said nothing";
}

async function gather(stream: unknown): Promise<string> {
  const readable = stream as NodeJS.ReadableStream | null | undefined;
  let text = "";
  for await (const piece of readable ?? []) text += String(piece);
  return text;
}

/** What matters most of what a program said: the line that names an error, as of an exception, or else the last few. */
function lastOf(text: string): string {
  const lines = text.trim().split("\n");
  return lines.find((line) => /^\w*Error\b/.test(line)) ?? lines.slice(-5).join(" | ");
}

/** Undefined when there is no such process any more. */
function usageOf(pid: number): ServerUsage | undefined {
  try {
    const [user, system] = cpuFields(readFileSync(`/proc/${pid}/stat`, "utf8"));
    const diskRead = /^read_bytes: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, "utf8"))?.[1];
    return {
      cpuSeconds: (user + system) / TICKS_PER_SECOND,
      peakRssBytes: peakRss(pid),
      diskReadBytes: Number(diskRead ?? 0),
    };
  } catch {
    return undefined;
  }
}

function peakRss(pid: number): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Number(match?.[1] ?? 0) * 1024;
}

/** Of the one program that the shell runs; 0 when it is gone, or when this kernel does not list children. */
function childRss(shell: number): number {
  try {
    const [child] = readFileSync(`/proc/${shell}/task/${shell}/children`, "utf8").trim().split(" ");
    return child ? peakRss(Number(child)) : 0;
  } catch {
    return 0;
  }
}

function signalGroup(group: number, signal: NodeJS.Signals): void {
  if (group <= 1) return;
  try {
    process.kill(-group, signal);
  } catch {
    // It has ended by itself.
  }
}
