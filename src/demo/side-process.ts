/** `blockferry source` and `blockferry dest` as processes of their own, as operators start them. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { ControlClient } from "../control/client.ts";
import type { Status } from "../control/status.ts";
import type { Env } from "../env/env.ts";
import { DemoFailure } from "./failure.ts";

export interface SideOptions {
  readonly env: Env;
  /** How to start this very program. */
  readonly command: readonly string[];
  readonly role: "source" | "dest";
  /** A folder of its own. */
  readonly folder: string;
  readonly args: readonly string[];
}

export class SideProcess implements AsyncDisposable {
  /** Where its guest's disks are. */
  readonly socket: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;
  readonly control: ControlClient;

  /** Resolves when a guest can connect. It ends with us, whatever happens to us. */
  static async start({ env, command, role, folder, args }: SideOptions): Promise<SideProcess> {
    const [program = "", ...before] = command;
    const socket = `${folder}/${role}.sock`;
    const controlPath = `${folder}/${role}.ctl`;
    const own = ["--exit-with-parent", "--json", "-U", socket, "-C", controlPath, "--state-dir", `${folder}/${role}`];
    const child = spawn(program, [...before, role, ...own, ...args], { stdio: ["ignore", "pipe", "inherit"] });
    const ended = new Promise<number | null>((resolve) => {
      child.once("error", () => resolve(null));
      child.once("close", resolve);
    });
    try {
      await firstLineOf(child, role);
      const control = await ControlClient.connect(await env.links.dial({ kind: "unix", path: controlPath }), env.clock);
      return new SideProcess({ child, ended, socket, control });
    } catch (error) {
      child.kill("SIGKILL");
      await ended;
      throw error;
    }
  }

  private constructor(parts: {
    child: ChildProcess;
    ended: Promise<number | null>;
    socket: string;
    control: ControlClient;
  }) {
    this.#child = parts.child;
    this.#ended = parts.ended;
    this.socket = parts.socket;
    this.control = parts.control;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  status(): Promise<Status> {
    return this.control.call("status", {});
  }

  /** As a crash of its host ends it. */
  async kill(): Promise<void> {
    this.control.close();
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  /** As an operator or service manager ends it. Rejects unless it ends in order. */
  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    const exitCode = await this.#ended;
    this.control.close();
    if (exitCode === 0) return;
    throw new DemoFailure("a process did not stop in order", `its exit code is ${exitCode}`, "see its own lines above");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

async function firstLineOf(child: ChildProcess & { stdout: Readable }, role: string): Promise<string> {
  for await (const line of createInterface({ input: child.stdout })) return line;
  const why = "it ended without telling where it listens";
  throw new DemoFailure(`the ${role} did not start`, why, "see its own lines above");
}
