/** A QEMU with one disk and nothing to boot: what its monitor does is real, and it is there at once. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, rmSync } from "node:fs";
import { expect } from "vitest";
import { realClock } from "../../../src/os/clock.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { QmpClient } from "../../../src/qmp/client.ts";

const WAIT = { timeout: 60_000, interval: 20 };

export interface BareQemuOptions {
  /** Of its monitor; the test has one of its own beside it. */
  readonly monitor: string;
  /** As `-blockdev` has it, with the node's name "disk". */
  readonly disk: object;
  /** Waits for a guest, and lets it stand. */
  readonly incoming?: boolean;
}

export class BareQemu implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #own: string;
  readonly #ended: Promise<unknown>;

  /** Resolves when both monitors are there. */
  static async start({ monitor, disk, incoming = false }: BareQemuOptions): Promise<BareQemu> {
    const own = `${monitor}.test`;
    const monitors = [monitor, own];
    for (const path of monitors) rmSync(path, { force: true });
    const child = spawn(
      "qemu-system-x86_64",
      [
        ...["-S", "-display", "none", "-nodefaults", "-m", "32", "-accel", "tcg"],
        ...monitors.flatMap((path) => ["-qmp", `unix:${path},server=on,wait=off`]),
        ...["-blockdev", JSON.stringify({ "node-name": "disk", ...disk }), "-device", "virtio-blk-pci,drive=disk"],
        ...(incoming ? ["-incoming", "defer"] : []),
      ],
      { stdio: ["ignore", "inherit", "inherit"] },
    );
    const qemu = new BareQemu(child, own);
    await expect.poll(() => monitors.every((path) => existsSync(path)), WAIT).toBe(true);
    await expect.poll(() => qemu.status().catch(() => "none"), WAIT).not.toBe("none");
    return qemu;
  }

  private constructor(child: ChildProcess, own: string) {
    this.#child = child;
    this.#own = own;
    this.#ended = once(child, "close");
  }

  /** Resolves when it is gone. */
  get ended(): Promise<unknown> {
    return this.#ended;
  }

  /** QEMU's RunState. */
  async status(): Promise<string> {
    using client = await this.#dial();
    return (await client.execute("query-status")).status;
  }

  async execute(command: "cont" | "stop"): Promise<void> {
    using client = await this.#dial();
    await client.execute(command);
  }

  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  #dial(): Promise<QmpClient> {
    return QmpClient.dial({ clock: realClock, links: realLinks }, { kind: "unix", path: this.#own });
  }
}
