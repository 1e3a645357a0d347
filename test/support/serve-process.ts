/**
 * `blockferry serve` as a process of its own, on a unix socket: the product as operators meet it. With `BLOCKFERRY_BIN`
 * set, another build of it (an installed package, say) is tested in place of the checkout's `bin/blockferry`.
 */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

export const BLOCKFERRY = process.env["BLOCKFERRY_BIN"] ?? join(import.meta.dirname, "../../bin/blockferry");

export interface ServeOptions {
  /** The image's path, with options appended if need be. */
  readonly image: string;
  readonly socket: string;
  /** More flags: `["-r"]`. */
  readonly flags?: readonly string[];
  /** Added to our own environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** A program that runs the server: `["strace", "-f", …]`. */
  readonly under?: readonly string[];
}

type Child = ChildProcessByStdio<null, Readable, Readable>;

export class ServeProcess implements AsyncDisposable {
  readonly socket: string;
  /** The default export's URI. */
  readonly uri: string;
  readonly #child: Child;
  readonly #ended: Promise<number>;
  #output = "";

  /** @internal `startServe` makes these. */
  constructor(child: Child, socket: string) {
    this.socket = socket;
    this.uri = `nbd+unix:///?socket=${socket}`;
    this.#child = child;
    this.#ended = new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (code, signal) => resolve(signal === "SIGKILL" ? 137 : (code ?? -1)));
    });
    this.#ended.catch(() => undefined);
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      this.#output += chunk;
    });
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Settles with the exit status; 137 after SIGKILL. */
  get ended(): Promise<number> {
    return this.#ended;
  }

  /** What it has printed on standard error so far. */
  get output(): string {
    return this.#output;
  }

  /** The URI of an export by its name. */
  uriOf(exportName: string): string {
    return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${this.socket}`;
  }

  /** Memory that it holds, and the most that it ever held, in bytes. */
  memory(): { residentBytes: number; peakBytes: number } {
    const status = readFileSync(`/proc/${this.pid}/status`, "latin1");
    const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) * 1024;
    return { residentBytes: field("VmRSS"), peakBytes: field("VmHWM") };
  }

  /** SIGTERM; resolves to the exit status. Idempotent. */
  stop(): Promise<number> {
    this.#child.kill("SIGTERM");
    return this.#ended;
  }

  /** SIGKILL; resolves when it is gone. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  /** @internal Resolves once it serves; rejects, with what it said, when it ends before that. */
  async ready(): Promise<void> {
    const lines = createInterface({ input: this.#child.stdout });
    const first = new Promise<"ready">((resolve) => lines.once("line", () => resolve("ready")));
    const outcome = await Promise.race([first, this.#ended]);
    if (outcome !== "ready") throw new Error(`blockferry serve ended with ${outcome}\n${this.#output}`);
  }
}

/** Resolves when clients can connect. */
export async function startServe(options: ServeOptions): Promise<ServeProcess> {
  const { image, socket, flags = [], env = {}, under = [] } = options;
  // Whatever becomes of the test, its servers do not outlive it.
  const serve = [BLOCKFERRY, "serve", "--exit-with-parent", "-U", socket];
  const [program = "", ...args] = [...under, ...serve, ...flags, image];
  const child = spawn(program, args, {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const server = new ServeProcess(child, socket);
  try {
    await server.ready();
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}
