/** `blockferry clone` as a process of its own, on a unix socket: the product as operators meet it. */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { ControlClient } from "../../src/control/client.ts";
import type { ParamsOf, ResultOf, VerbName } from "../../src/control/verbs.ts";
import type { NbdClient } from "../../src/nbd/client/client.ts";
import { connectNbd, type OpenOptions } from "../../src/nbd/client/connect.ts";
import { realClock } from "../../src/os/clock.ts";
import { realLinks } from "../../src/os/dial.ts";
import { type RunResult, run, runOk } from "./run.ts";
import { BLOCKFERRY, ServeProcess } from "./serve-process.ts";

export interface CloneOptions {
  /** URI of the source. */
  readonly source: string;
  /** The overlay's image; made when it is not there. */
  readonly image: string;
  /** Where the overlay is served. The control socket is beside it, `SOCKET.ctl`. */
  readonly socket: string;
  readonly flags?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Instead of `bin/blockferry`: `["strace", "-f", …, ...WITHOUT_LAUNCHER]`. */
  readonly program?: readonly string[];
}

/** The program without its launcher, for whoever counts system calls. */
export const WITHOUT_LAUNCHER = [process.execPath, join(import.meta.dirname, "../../dist/blockferry.cjs")];

/** For whoever counts system calls: Node neither reads nor writes what it has compiled earlier. */
const SAME_CALLS = { NODE_DISABLE_COMPILE_CACHE: "1" };

export class CloneProcess extends ServeProcess {
  readonly control: string;

  constructor(child: ConstructorParameters<typeof ServeProcess>[0], socket: string) {
    super(child, socket);
    this.control = `${socket}.ctl`;
  }

  /** A session of ours with the local export. */
  open(options: Partial<OpenOptions> = {}): Promise<NbdClient> {
    const address = { kind: "unix", path: this.socket } as const;
    return connectNbd({ clock: realClock, links: realLinks }, { address, exportName: "", ...options });
  }

  /** `blockferry VERB -C …`, which must succeed: what it prints. */
  ask(verb: string, ...args: string[]): Promise<string> {
    return runOk([BLOCKFERRY, verb, "-C", this.control, ...args], { timeoutMs: 120_000 });
  }

  /** As `ask`, however it ends. */
  tryAsk(verb: string, ...args: string[]): Promise<RunResult> {
    return run([BLOCKFERRY, verb, "-C", this.control, ...args], { timeoutMs: 120_000 });
  }

  /** The same without a process of its own. */
  async call<V extends VerbName>(verb: V, params: ParamsOf<V>): Promise<ResultOf<V>> {
    using client = await ControlClient.connect(await realLinks.dial({ kind: "unix", path: this.control }), realClock);
    return await client.call(verb, params, { timeoutMs: null });
  }

  status(): Promise<ResultOf<"status">> {
    return this.call("status", {});
  }

  /** Resolves when every cluster is local and durable, and the image stands alone. */
  async hydrated(timeoutMs = 110_000): Promise<void> {
    const { reached } = await this.call("wait", { for: "complete", timeoutMs });
    if (!reached) throw new Error(`not complete: ${JSON.stringify(await this.status())}\n${this.output}`);
  }
}

/** `blockferry ARGS`, to its end. */
export function blockferry(...args: string[]): Promise<RunResult> {
  return run([BLOCKFERRY, ...args]);
}

/** Resolves when clients can connect. */
export async function startClone(options: CloneOptions): Promise<CloneProcess> {
  const { source, image, socket, flags = [], program: start = [BLOCKFERRY] } = options;
  const env = { ...(options.program !== undefined && SAME_CALLS), ...options.env };
  const clone = ["clone", "--exit-with-parent", "-U", socket, "-C", `${socket}.ctl`, "--progress=none"];
  const [program = "", ...args] = [...start, ...clone, ...flags, source, image];
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const process_ = new CloneProcess(child, socket);
  try {
    await process_.ready();
  } catch (error) {
    await process_[Symbol.asyncDispose]();
    throw error;
  }
  return process_;
}

/** As `startClone`, for one that is expected to end by itself. */
export function runClone({ source, image, socket, flags = [], env = {} }: CloneOptions): Promise<RunResult> {
  const own = ["-U", socket, "-C", `${socket}.ctl`, "--progress=none"];
  return run([BLOCKFERRY, "clone", ...own, ...flags, source, image], {
    env,
    timeoutMs: 120_000,
  });
}
