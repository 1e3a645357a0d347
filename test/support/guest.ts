/**
 * A Linux guest of `scripts/guest-image` in a QEMU of its own (`-accel tcg`: no privileges, no hardware). It writes files
 * to its disks, syncs them, reads older ones back, and says so: `GuestLog`.
 */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import type { TestContext } from "vitest";
import { realClock } from "../../src/os/clock.ts";
import { realLinks } from "../../src/os/dial.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { DISK_TOOLS } from "./guest-disk.ts";
import { GuestLog } from "./guest-log.ts";
import { run } from "./run.ts";
import type { TempDir } from "./temp-dir.ts";
import { itWith, requireAsked, requireHost } from "./tools.ts";

const GUEST_TOOLS = ["qemu-system-x86_64", "busybox", "cpio", "setpriv", ...DISK_TOOLS];
const BUILD = join(import.meta.dirname, "../../scripts/guest-image");
const BUILD_MS_MAX = 100_000;
const QMP_MS_MAX = 20_000;
const TEST_MS_MAX = 120_000;

export type GuestDisk =
  | { readonly file: string }
  | {
      /** The unix socket of an NBD server. */
      readonly socket: string;
      readonly exportName?: string;
      /** How long requests wait for a server that went away; default: they fail at once. */
      readonly reconnectSeconds?: number;
      /** `stop`: an I/O error stops the guest instead of being told to it. */
      readonly onError?: "stop" | "report";
    };

export interface GuestOptions {
  /** For its sockets. */
  readonly folder: TempDir;
  /** In the folder; each QEMU has its own. */
  readonly name?: string;
  /** vda, vdb. */
  readonly disks: readonly GuestDisk[];
  /** Wait for a guest that comes in at this URI, and let it stand. */
  readonly incoming?: string;
  /** The log of the QEMU that the guest comes from. */
  readonly log?: GuestLog;
  /** For the kernel's command line: "bf.kib=64". Both QEMUs of a migration need the same. */
  readonly append?: string;
  readonly memoryMib?: number;
  /** More devices, as `-device` names them. */
  readonly devices?: readonly string[];
}

type Child = ChildProcessByStdio<Writable, Readable, Readable>;

export class Guest implements AsyncDisposable {
  readonly log: GuestLog;
  readonly qmpSocket: string;
  readonly #child: Child;
  readonly #ended: Promise<void>;
  #errors = "";

  /** @internal `startGuest` makes these. */
  constructor(child: Child, qmpSocket: string, log: GuestLog) {
    this.log = log;
    this.qmpSocket = qmpSocket;
    this.#child = child;
    this.#ended = new Promise((resolve) => child.once("close", () => resolve()));
    child.stdout.setEncoding("utf8").on("data", (text: string) => log.push(text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#errors += text;
    });
    // It may be gone before it has read what it was told.
    child.stdin.on("error", () => undefined);
  }

  /** Resolves when QEMU is gone. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /** What QEMU itself has printed. */
  get errors(): string {
    return this.#errors;
  }

  /** Dials QEMU's monitor. It takes one client at a time. */
  async qmp(): Promise<QmpClient> {
    const lastMs = performance.now() + QMP_MS_MAX;
    for (;;) {
      try {
        return await QmpClient.dial({ clock: realClock, links: realLinks }, { kind: "unix", path: this.qmpSocket });
      } catch (error) {
        // The socket is there a moment before QEMU listens on it.
        const { code } = ((error as Error).cause ?? {}) as { code?: string };
        if (code !== "ENOENT" && code !== "ECONNREFUSED") throw error;
      }
      if (this.#child.exitCode !== null) throw new Error(`QEMU ended at once\n${this.#errors}`);
      if (performance.now() > lastMs) throw new Error(`QEMU made no monitor\n${this.#errors}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** The guest reads back all that is on its disks, past its caches. What it finds wrong is among the log's complaints. */
  async verifyAll(disks: readonly string[]): Promise<void> {
    const before = new Map(disks.map((disk) => [disk, [...this.log.syncedOn(disk).keys()]]));
    const results = disks.map((disk) =>
      this.log.next(`all of ${disk} verified`, (event) => event.kind === "verified-all" && event.disk === disk),
    );
    this.#child.stdin.write("verify\n");
    for (const result of await Promise.all(results)) {
      if (result.kind !== "verified-all") continue;
      const left = this.log.syncedOn(result.disk);
      const expected = before.get(result.disk)?.filter((number) => left.has(number)).length ?? 0;
      if (result.files < expected)
        throw new Error(`${result.files} files are good, not ${expected}\n${this.log.tail()}`);
    }
  }

  /** The guest unmounts its disks and switches itself off. */
  async finish(): Promise<void> {
    const unmounted = this.log.next("unmounted", ({ kind }) => kind === "unmounted");
    this.#child.stdin.write("finish\n");
    await unmounted;
    await this.#ended;
  }

  /** SIGKILL: the host's power cut, as far as the guest's own caches go. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** Starts QEMU; resolves at once, while the guest boots (2 to 4 seconds). */
export async function startGuest(options: GuestOptions): Promise<Guest> {
  const { folder, name = "g", disks, incoming, log = new GuestLog(), append = "bf.kib=96", memoryMib = 160 } = options;
  const { devices = [] } = options;
  const image = await guestImage();
  const qmpSocket = folder.file(`${name}.qmp`);
  const kernel = ["-kernel", join(image, "vmlinuz"), "-initrd", join(image, "initramfs")];
  const commandLine = `console=ttyS0 loglevel=3 panic=-1 ${append}`;
  // Whatever becomes of the test, its QEMUs do not outlive it.
  const child = spawn("setpriv", [
    ...["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", "max"],
    ...["-m", String(memoryMib), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...["-qmp", `unix:${qmpSocket},server=on,wait=off`, "-serial", "stdio"],
    ...[...kernel, "-append", commandLine],
    ...disks.flatMap(diskArguments),
    ...devices.flatMap((device) => ["-device", device]),
    ...(incoming === undefined ? [] : ["-S", "-incoming", incoming]),
  ]);
  return new Guest(child, qmpSocket, log);
}

function diskArguments(disk: GuestDisk, index: number): string[] {
  const node = `disk${index}`;
  const onError = "socket" in disk ? (disk.onError ?? "report") : "report";
  const device = { driver: "virtio-blk-pci", id: `vd${"ab"[index]}`, drive: node, rerror: onError, werror: onError };
  return ["-blockdev", JSON.stringify(blockdev(disk, node)), "-device", JSON.stringify(device)];
}

function blockdev(disk: GuestDisk, node: string): object {
  const common = { "node-name": node, discard: "unmap" };
  if ("file" in disk)
    return { ...common, driver: "raw", file: { driver: "file", filename: disk.file, discard: "unmap" } };
  const server = { type: "unix", path: disk.socket };
  const reconnect = disk.reconnectSeconds === undefined ? {} : { "reconnect-delay": disk.reconnectSeconds };
  return { ...common, ...reconnect, driver: "nbd", server, export: disk.exportName ?? "" };
}

let building: Promise<string> | undefined;

/** The folder with kernel and initramfs, built once. */
function guestImage(): Promise<string> {
  building ??= run([BUILD], { timeoutMs: BUILD_MS_MAX }).then(({ status, stdout, stderr }) => {
    if (status === 0) return stdout.trim();
    throw new Error(`scripts/guest-image ended with ${status}\n${stderr}`);
  });
  return building;
}

/**
 * `itWith`, for tests that need a guest: with what it takes to build and boot one, and `tools` besides. They take a minute
 * together: in CI, and elsewhere when asked for.
 */
export function itBoots(tools: readonly string[], title: string, body: (context: TestContext) => Promise<void>): void {
  const test = async (context: TestContext): Promise<void> => {
    requireAsked(context, "BLOCKFERRY_GUESTS", "a real guest");
    await guestImage().catch((error: unknown) => requireHost(context, `no guest: ${(error as Error).message}`));
    await body(context);
  };
  itWith([...GUEST_TOOLS, ...tools], title, test, TEST_MS_MAX);
}
