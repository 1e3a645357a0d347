/** Other people's NBD servers, each in a folder of its own that goes away with it. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import type { Address } from "../../src/env/links.ts";
import type { NbdClient } from "../../src/nbd/client/client.ts";
import { connectNbd, type OpenOptions } from "../../src/nbd/client/connect.ts";
import { realClock } from "../../src/os/clock.ts";
import { realLinks } from "../../src/os/dial.ts";
import { type TempDir, tempDir } from "./temp-dir.ts";

export const realWorld = { clock: realClock, links: realLinks };

const START_MS_MAX = 60_000;
const LOOK_AGAIN_MS = 5;

export class Peer implements AsyncDisposable {
  readonly folder: TempDir;
  readonly address: Address;
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  /** A server that goes into the background says here who it is then. */
  readonly #pidFile: string | undefined;
  #output = "";

  constructor(folder: TempDir, child: ChildProcess, pidFile?: string) {
    const socket = folder.file("nbd");
    this.#pidFile = pidFile;
    this.folder = folder;
    this.address = { kind: "unix", path: socket };
    this.#child = child;
    this.#ended = new Promise((resolve) => child.once("exit", () => resolve()));
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.#output += text;
      });
    }
  }

  /** What it has printed. */
  get output(): string {
    return this.#output;
  }

  /** Opens an export of it with our client. */
  open(options: Partial<OpenOptions> = {}): Promise<NbdClient> {
    return connectNbd(realWorld, { address: this.address, exportName: "", ...options });
  }

  async kill(): Promise<void> {
    if (this.#pidFile === undefined) {
      this.#child.kill("SIGKILL");
    } else if (existsSync(this.#pidFile)) {
      const pid = Number(readFileSync(this.#pidFile, "latin1"));
      if (pid > 1) process.kill(pid, "SIGKILL");
    }
    await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    this.folder[Symbol.dispose]();
  }

  /** @internal Resolves once connections are accepted. */
  async ready(): Promise<void> {
    const path = (this.address as { path: string }).path;
    const lastMs = performance.now() + START_MS_MAX;
    while (!(existsSync(path) && (await accepts(path)))) {
      const gone = this.#child.exitCode !== null && (this.#pidFile === undefined || this.#child.exitCode !== 0);
      if (gone) throw new Error(`the server ended at once\n${this.#output}`);
      if (performance.now() > lastMs) throw new Error(`the server did not start\n${this.#output}`);
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    }
  }
}

function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

async function start(folder: TempDir, command: readonly string[], pidFile?: string): Promise<Peer> {
  const [program = "", ...args] = command;
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, LC_ALL: "C.UTF-8" } });
  const peer = new Peer(folder, child, pidFile);
  try {
    await peer.ready();
  } catch (error) {
    await peer[Symbol.asyncDispose]();
    throw error;
  }
  return peer;
}

/** `nbdkit ARGS`, on a unix socket. */
export function nbdkit(...args: string[]): Promise<Peer> {
  const folder = tempDir();
  return start(folder, ["nbdkit", "--foreground", "--exit-with-parent", "-U", folder.file("nbd"), ...args]);
}

/** As `nbdkit`, in a folder that stays the caller's: one that was there before can come back at its address. */
export function nbdkitIn(folder: TempDir, ...args: string[]): Promise<Peer> {
  // One that was killed leaves its socket behind.
  rmSync(folder.file("nbd"), { force: true });
  const lent: TempDir = { path: folder.path, file: (name) => folder.file(name), [Symbol.dispose]: () => undefined };
  return start(lent, ["nbdkit", "--foreground", "--exit-with-parent", "-U", folder.file("nbd"), ...args]);
}

/** `qemu-nbd ARGS IMAGE`; `prepare` makes the image, raw unless the arguments say otherwise. */
export async function qemuNbd(prepare: (image: string) => unknown, ...args: string[]): Promise<Peer> {
  const folder = tempDir();
  const image = folder.file("disk.img");
  await prepare(image);
  const format = args.includes("-f") ? [] : ["-f", "raw"];
  return await start(folder, ["qemu-nbd", "-t", "-e", "8", "-k", folder.file("nbd"), ...format, ...args, image]);
}

/** nbd-server with one export named "disk" and whatever `lines` its section has besides; it may be listed, or not. */
export function nbdServer(
  prepare: (image: string) => unknown,
  lines: readonly string[] = [],
  listable = true,
): Promise<Peer> {
  const folder = tempDir();
  const image = folder.file("disk.img");
  prepare(image);
  const config = [
    "[generic]",
    `unixsock = ${folder.file("nbd")}`,
    `allowlist = ${listable}`,
    "[disk]",
    `exportname = ${image}`,
    ...lines,
    "",
  ];
  writeFileSync(folder.file("config"), config.join("\n"));
  const pidFile = folder.file("pid");
  return start(folder, ["nbd-server", "-C", folder.file("config"), "-p", pidFile], pidFile);
}
