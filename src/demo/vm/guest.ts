/**
 * A Linux guest of `scripts/guest-image` in a QEMU of its own. It writes files to its disks, syncs them, reads older ones back,
 * and says so: `GuestLog`.
 */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { statSync } from "node:fs";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { realClock } from "../../os/clock.ts";
import { realLinks } from "../../os/dial.ts";
import { QmpClient } from "../../qmp/client.ts";
import { GuestLog } from "./guest-log.ts";

const QMP_MS_MAX = 20_000;
const PROBE_MS_MAX = 10_000;

export type GuestDisk =
  | {
      /** An image, or a block device, that QEMU opens itself. */
      readonly file: string;
      /** As QEMU calls it; default: raw. */
      readonly format?: "raw" | "qcow2" | "qed";
    }
  | {
      /** The unix socket of an NBD server. */
      readonly socket: string;
      readonly exportName?: string;
      /** How long requests wait for a server that went away; default: they fail at once. */
      readonly reconnectSeconds?: number;
      /** `stop`: an I/O error stops the guest instead of being told to it. */
      readonly onError?: "stop" | "report";
    };

/** "tcg" takes no privileges and no hardware. */
export type Accelerator = "kvm" | "tcg";

export interface QemuOptions {
  /** The folder with kernel and initramfs. */
  readonly image: string;
  /** Of its monitor; it must not exist. */
  readonly qmpSocket: string;
  /** As QEMU's `-accel`. */
  readonly accelerator: Accelerator;
  /** vda, vdb. */
  readonly disks: readonly GuestDisk[];
  /** Wait for a guest that comes in at this URI, and let it stand. */
  readonly incoming?: string | undefined;
  /** With `incoming`: without -S. */
  readonly autostart?: boolean | undefined;
  /** The log of the QEMU that the guest comes from. */
  readonly log?: GuestLog | undefined;
  /** For the kernel's command line: "bf.kib=64". Both QEMUs of a migration need the same. */
  readonly append?: string | undefined;
  readonly memoryMib?: number | undefined;
  /** More devices, as `-device` names them. */
  readonly devices?: readonly string[] | undefined;
}

type Child = ChildProcessByStdio<Writable, Readable, Readable>;

export class Guest implements AsyncDisposable {
  readonly log: GuestLog;
  readonly qmpSocket: string;
  readonly #child: Child;
  readonly #ended: Promise<void>;
  #errors = "";

  /** @internal `startQemu` makes these. */
  constructor(child: Child, qmpSocket: string, log: GuestLog) {
    this.log = log;
    this.qmpSocket = qmpSocket;
    this.#child = child;
    this.#ended = new Promise((resolve) => child.once("close", () => resolve()));
    child.stdout.setEncoding("utf8").on("data", (text: string) => log.push(text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#errors += text;
    });
    child.once("error", (error) => {
      this.#errors += error.message;
    });
    // It may be gone before it has read what it was told.
    child.stdin.on("error", () => undefined);
  }

  /** Resolves when QEMU is gone. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
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

  /**
   * The guest reads back all that is on its disks, past its caches. Resolves to how many files were good; what it finds wrong is
   * among the log's complaints. Rejects when fewer are good than it has said to be on them to stay.
   */
  async verifyAll(disks: readonly string[], timeoutMs?: number): Promise<number> {
    const before = new Map(disks.map((disk) => [disk, [...this.log.syncedOn(disk).keys()]]));
    const results = disks.map((disk) =>
      this.log.next(
        `all of ${disk} verified`,
        (event) => event.kind === "verified-all" && event.disk === disk,
        timeoutMs,
      ),
    );
    this.#child.stdin.write("verify\n");
    let good = 0;
    for (const result of await Promise.all(results)) {
      if (result.kind !== "verified-all") continue;
      const left = this.log.syncedOn(result.disk);
      const expected = before.get(result.disk)?.filter((number) => left.has(number)).length ?? 0;
      if (result.files < expected)
        throw new Error(`${result.files} files are good, not ${expected}\n${this.log.tail()}`);
      good += result.files;
    }
    return good;
  }

  /** The guest unmounts its disks and switches itself off. */
  async finish(timeoutMs?: number): Promise<void> {
    const unmounted = this.log.next("unmounted", ({ kind }) => kind === "unmounted", timeoutMs);
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

/** Starts QEMU; returns at once, while the guest boots (2 to 4 seconds without KVM). */
export function startQemu(options: QemuOptions): Guest {
  const { image, qmpSocket, disks, incoming, log = new GuestLog(), append = "bf.kib=96", memoryMib = 160 } = options;
  const { devices = [], autostart = false, accelerator } = options;
  const kernel = ["-kernel", join(image, "vmlinuz"), "-initrd", join(image, "initramfs")];
  // A busy host gives the timer's interrupts late; the kernel would take that for a broken timer, and panic.
  const commandLine = `console=ttyS0 loglevel=3 panic=-1 no_timer_check ${append}`;
  // Whatever becomes of us, our QEMUs do not outlive us.
  const child = spawn("setpriv", [
    ...["--pdeathsig", "KILL", "qemu-system-x86_64", ...machine(accelerator)],
    ...["-m", String(memoryMib), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...["-qmp", `unix:${qmpSocket},server=on,wait=off`, "-serial", "stdio"],
    ...[...kernel, "-append", commandLine],
    ...disks.flatMap(diskArguments),
    ...devices.flatMap((device) => ["-device", device]),
    ...(incoming === undefined ? [] : [...(autostart ? [] : ["-S"]), "-incoming", incoming]),
  ]);
  return new Guest(child, qmpSocket, log);
}

function machine(accelerator: Accelerator): string[] {
  return ["-accel", accelerator, "-machine", "q35", "-cpu", "max"];
}

/** Whether KVM is there, and this machine's is good enough for QEMU. */
export async function kvmWorks(): Promise<boolean> {
  const args = [...machine("kvm"), "-S", "-display", "none", "-nodefaults", "-no-user-config", "-qmp", "stdio"];
  const child = spawn("qemu-system-x86_64", args, { stdio: ["pipe", "ignore", "ignore"], timeout: PROBE_MS_MAX });
  child.stdin.on("error", () => undefined);
  child.stdin.end('{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n');
  return await new Promise((resolve) => {
    child.once("error", () => resolve(false));
    child.once("close", (exitCode) => resolve(exitCode === 0));
  });
}

function diskArguments(disk: GuestDisk, index: number): string[] {
  const node = `disk${index}`;
  const onError = "socket" in disk ? (disk.onError ?? "report") : "report";
  const device = { driver: "virtio-blk-pci", id: `vd${"ab"[index]}`, drive: node, rerror: onError, werror: onError };
  return ["-blockdev", JSON.stringify(blockdev(disk, node)), "-device", JSON.stringify(device)];
}

function blockdev(disk: GuestDisk, node: string): object {
  const common = { "node-name": node, discard: "unmap" };
  if ("file" in disk) {
    const { file: filename, format: driver = "raw" } = disk;
    const protocol = statSync(filename).isBlockDevice() ? "host_device" : "file";
    return { ...common, driver, file: { driver: protocol, filename, discard: "unmap" } };
  }
  const server = { type: "unix", path: disk.socket };
  const reconnect = disk.reconnectSeconds === undefined ? {} : { "reconnect-delay": disk.reconnectSeconds };
  return { ...common, ...reconnect, driver: "nbd", server, export: disk.exportName ?? "" };
}
