/**
 * A libnbd handle that a test holds: a Python process does the calls, one after the other (`libnbd_driver.py`, where the
 * wrapped methods are described). Tests that use it need "python3-libnbd".
 */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { PYTHON } from "./tools.ts";

const DRIVER = join(import.meta.dirname, "libnbd_driver.py");

/** `block_status`: context, offset, [length, flags, length, flags, …], error. */
export type StatusCall = [string, number, number[], number];

/** `block_status_64`: context, offset, [length, flags] each, error. */
export type StatusCall64 = [string, number, [number, number][], number];

/** What `pread_structured` was told: offset, length, kind, error. */
export type ReadChunk = [number, number, "data" | "hole" | "error", number];

export interface NbdOutcome {
  /** "OK", the name of the error ("EINVAL"), or "NONE" for one without a number. */
  readonly errno: string;
  readonly message: string;
  readonly value: unknown;
  /** Calendar time before and after the call. */
  readonly startMs: number;
  readonly endMs: number;
}

export interface ConnectOptions {
  /** Have libnbd check what it sends; normally it does not, so that tests can send what must be refused. */
  readonly strict?: boolean;
  /** Calls to make before connecting: `[["set_opt_mode", true]]`. */
  readonly before?: readonly (readonly [string, ...unknown[]])[];
}

interface Answer {
  readonly value?: unknown;
  readonly errno?: string;
  readonly message?: string;
  readonly startMs: number;
  readonly endMs: number;
}

export class NbdHandle implements AsyncDisposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #answers: ((line: string | undefined) => void)[] = [];
  readonly #ended: Promise<void>;
  #errors = "";

  constructor() {
    const child = spawn(PYTHON, [DRIVER], { stdio: ["pipe", "pipe", "pipe"] });
    this.#child = child;
    child.stdin.on("error", () => undefined);
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      this.#errors += chunk;
    });
    createInterface({ input: child.stdout }).on("line", (line) => this.#answers.shift()?.(line));
    this.#ended = new Promise((resolve) => {
      child.on("close", () => {
        for (const answer of this.#answers.splice(0)) answer(undefined);
        resolve();
      });
    });
  }

  /** A handle that is connected to `uri`. */
  static async connect(uri: string, options: ConnectOptions = {}): Promise<NbdHandle> {
    const { strict = false, before = [] } = options;
    const handle = new NbdHandle();
    try {
      if (!strict) await handle.call("set_strict_mode", 0);
      for (const [method, ...args] of before) await handle.call(method, ...args);
      await handle.call("connect_uri", uri);
    } catch (error) {
      await handle[Symbol.asyncDispose]();
      throw error;
    }
    return handle;
  }

  /** Calls `method` and tells how it went. Buffers go in and come out as such. */
  async attempt(method: string, ...args: readonly unknown[]): Promise<NbdOutcome> {
    const line = await new Promise<string | undefined>((resolve) => {
      this.#answers.push(resolve);
      this.#child.stdin.write(`${JSON.stringify([method, ...args.map(encode)])}\n`);
    });
    if (line === undefined) throw new Error(`${method}: the driver ended\n${this.#errors}`);
    const { errno = "OK", message = "", value, startMs, endMs } = JSON.parse(line, decode) as Answer;
    return { errno, message, value, startMs, endMs };
  }

  /** The value of a call that must succeed. */
  async call(method: string, ...args: readonly unknown[]): Promise<unknown> {
    const outcome = await this.attempt(method, ...args);
    if (outcome.errno !== "OK") throw new Error(`${method}: ${outcome.errno}: ${outcome.message}`);
    return outcome.value;
  }

  /** The name of the error that a call ends with, or "OK". */
  async errnoOf(method: string, ...args: readonly unknown[]): Promise<string> {
    return (await this.attempt(method, ...args)).errno;
  }

  async read(length: number, offset: number, flags = 0): Promise<Buffer> {
    return (await this.call("pread", length, offset, flags)) as Buffer;
  }

  async readStructured(length: number, offset: number, flags = 0): Promise<{ bytes: Buffer; chunks: ReadChunk[] }> {
    return (await this.call("pread_structured", length, offset, flags)) as { bytes: Buffer; chunks: ReadChunk[] };
  }

  async blockStatus(length: number, offset: number, flags = 0): Promise<StatusCall[]> {
    return (await this.call("block_status", length, offset, flags)) as StatusCall[];
  }

  /** With 64-bit extents, which libnbd has from 1.20 on. */
  async blockStatus64(length: number, offset: number, flags = 0): Promise<StatusCall64[]> {
    return (await this.call("block_status_64", length, offset, flags)) as StatusCall64[];
  }

  /** Ends the driver, and with it the connection. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }
}

function encode(value: unknown): unknown {
  return Buffer.isBuffer(value) ? { base64: value.toString("base64") } : value;
}

function decode(_key: string, value: unknown): unknown {
  if (typeof value !== "object" || value === null || !("base64" in value)) return value;
  return Buffer.from(String(value.base64), "base64");
}
