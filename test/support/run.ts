/** Programs that tests call: run to their end, with a deadline, everything they print kept. */
import { spawn } from "node:child_process";
import { text } from "node:stream/consumers";

export interface RunOptions {
  /** What the program reads. Without it, its standard input is empty. */
  readonly input?: string;
  /** Added to our own environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
}

export interface RunResult {
  /** The exit status; 128 + n after signal n, as in a shell. */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

const SIGNAL_STATUS = 128;
const SIGKILL = 9;
const SHOWN_CHARACTERS_MAX = 4000;

/** Runs `command` and says how it went. Rejects when it cannot be started. */
export async function run(command: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const [program = "", ...args] = command;
  const { input = "", env = {}, timeoutMs = 25_000 } = options;
  const child = spawn(program, args, {
    env: { ...process.env, LC_ALL: "C.UTF-8", ...env },
    timeout: timeoutMs,
    killSignal: "SIGKILL",
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve(code ?? SIGNAL_STATUS + SIGKILL));
  });
  // A program that does not read what it is given is no failure of ours.
  child.stdin.on("error", () => undefined);
  child.stdin.end(input);
  const [status, stdout, stderr] = await Promise.all([ended, text(child.stdout), text(child.stderr)]);
  return { status, stdout, stderr };
}

/** As `run`, for what must succeed: the standard output, or an error that shows what was printed. */
export async function runOk(command: readonly string[], options: RunOptions = {}): Promise<string> {
  const result = await run(command, options);
  if (result.status === 0) return result.stdout;
  const said = `${result.stderr}${result.stdout}`.slice(0, SHOWN_CHARACTERS_MAX);
  throw new Error(`${command.join(" ")}\nended with ${result.status}\n${said}`);
}
