/** A line for tests and benchmarks: starts the process and talks to it. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { type Address, formatAddress } from "../../src/env/links.ts";
import type { CutAt, CutHow, Direction } from "./faults.ts";
import type { Answer, Change, Command, Stats, Way } from "./messages.ts";
import { parseAddress } from "./options.ts";

const MAIN = join(import.meta.dirname, "main.ts");

export interface LineOptions {
  /** What the line dials, once for each connection that it accepts. */
  readonly target: Address;
  /** A free port of 127.0.0.1 unless said otherwise. */
  readonly listen?: Address;
  /** Half of it each way; 0 unless given. */
  readonly rttMs?: number;
  /** Of each direction, shared by all connections; unlimited unless given. */
  readonly bitsPerSecond?: number;
  /** What may wait before the bottleneck, in each direction; 256 KiB unless given. */
  readonly queueBytes?: number;
}

/** A cut to plan: its direction and byte, and what else is not as usual (from now on, by reset, only once). */
export type PlannedCut = Pick<CutAt, "direction" | "afterBytes"> & Partial<CutAt>;

/** A running line. Every method resolves when the line has obeyed, and rejects with its objection. */
export class LineProcess implements AsyncDisposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #waiting: PromiseWithResolvers<Answer>[] = [];
  readonly #closed: Promise<void>;
  #ended = false;
  #address: Address = { kind: "tcp", host: "127.0.0.1", port: 0 };

  /** @internal Use `startLine`. */
  constructor(flags: readonly string[]) {
    this.#child = spawn(process.execPath, [MAIN, "--control", ...flags], { stdio: ["pipe", "pipe", "inherit"] });
    this.#child.stdin.on("error", () => undefined);
    createInterface({ input: this.#child.stdout }).on("line", (text) => {
      this.#waiting.shift()?.resolve(JSON.parse(text) as Answer);
    });
    this.#closed = new Promise((resolve) => {
      const end = (): void => {
        this.#ended = true;
        for (const waiting of this.#waiting.splice(0)) waiting.reject(new Error("the line has ended"));
        resolve();
      };
      this.#child.once("error", end);
      this.#child.once("close", end);
    });
  }

  /** Where to dial. */
  get address(): Address {
    return this.#address;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** @internal */
  async ready(): Promise<this> {
    const answer = await this.#answer();
    if (!("ready" in answer)) throw new Error(`unexpected: ${JSON.stringify(answer)}`);
    this.#address = parseAddress(answer.ready);
    return this;
  }

  /** Holds for what reaches the bottleneck from now on. */
  async set(change: Change): Promise<void> {
    const { bitsPerSecond } = change;
    // JSON has no Infinity.
    await this.#ask({ set: bitsPerSecond === Number.POSITIVE_INFINITY ? { ...change, bitsPerSecond: null } : change });
  }

  /** Plans a cut, in the place of any other; undefined: none any more. */
  async cut(planned: PlannedCut | undefined): Promise<void> {
    await this.#ask({ cutAt: planned ? { from: "now", how: "rst", every: false, ...planned } : null });
  }

  /** Cuts every connection at once. */
  async cutNow(how: CutHow = "rst"): Promise<void> {
    await this.#ask({ cutNow: how });
  }

  /** A black hole that keeps everything: sockets stay open, nothing passes, `resume` continues without loss. */
  async stall(way: Way = "both"): Promise<void> {
    await this.#ask({ stall: way });
  }

  /** A black hole that keeps nothing: senders go on, receivers get nothing. See `Command` for what `resume` does then. */
  async lose(direction: Direction): Promise<void> {
    await this.#ask({ lose: direction });
  }

  async resume(): Promise<void> {
    await this.#ask({ resume: true });
  }

  /** Stops listening, so that dialling fails; `false` listens again, at the same address. */
  async refuse(refuse = true): Promise<void> {
    await this.#ask({ refuse });
  }

  async stats(): Promise<Stats> {
    return this.#askStats(false);
  }

  /** Counts and histograms begin anew. Resolves to what they were. */
  async resetStats(): Promise<Stats> {
    return this.#askStats(true);
  }

  /** Ends the process, and with it every connection. Idempotent. */
  async close(): Promise<void> {
    this.#child.stdin.end();
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #askStats(reset: boolean): Promise<Stats> {
    const answer = await this.#ask({ stats: true, reset });
    if (!("stats" in answer)) throw new Error(`no stats: ${JSON.stringify(answer)}`);
    return answer.stats;
  }

  async #ask(command: Command): Promise<Answer> {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`);
    const answer = await this.#answer();
    if ("error" in answer) throw new Error(`line: ${answer.error}`);
    return answer;
  }

  #answer(): Promise<Answer> {
    if (this.#ended) return Promise.reject(new Error("the line has ended"));
    const waiting = Promise.withResolvers<Answer>();
    this.#waiting.push(waiting);
    return waiting.promise;
  }
}

/** Starts a line and waits until it listens. It ends with `close`, or when this process does. */
export function startLine(options: LineOptions): Promise<LineProcess> {
  const { target, listen = { kind: "tcp", host: "127.0.0.1", port: 0 }, rttMs, bitsPerSecond, queueBytes } = options;
  const flags = ["--listen", formatAddress(listen), "--to", formatAddress(target)];
  if (rttMs !== undefined) flags.push("--rtt", `${rttMs}ms`);
  if (bitsPerSecond !== undefined && Number.isFinite(bitsPerSecond)) flags.push("--bandwidth", `${bitsPerSecond}bit`);
  if (queueBytes !== undefined) flags.push("--queue", `${queueBytes}B`);
  return new LineProcess(flags).ready();
}
