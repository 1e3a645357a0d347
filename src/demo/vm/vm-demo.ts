/**
 * Moves a Linux guest on this machine, with real processes: its memory from one QEMU to the other, its disk from a `blockferry
 * source` to a `blockferry dest`, by one order and over one connection. Then the first host is killed, and the guest reads
 * back what it has written.
 */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import type { DemoOptions } from "../demo.ts";
import { DemoFailure } from "../failure.ts";
import { inFolder } from "../folder.ts";
import { LiveLine, readableBytes, readableTime } from "../show.ts";
import { SideProcess } from "../side-process.ts";
import { makeFilledDisk, WITH_SBIN } from "./filled-disk.ts";
import { type Accelerator, type Guest, type GuestDisk, kvmWorks, startQemu } from "./guest.ts";
import { findGuestImage } from "./guest-image.ts";
import { GuestLog } from "./guest-log.ts";
import { TickWatch } from "./tick-watch.ts";
import { renderVmReport, type VmDemoReport } from "./vm-report.ts";

const DISK = "vda";
const LOOK_EVERY_MS = 100;
const FILE_BYTES_MAX = 1024 * 1024;
/** Of the disk, in files that are there from the beginning. */
const FILLED = 0.25;
/** What is pulled before the switchover, so that there is something to do before it and after it. */
const PULLED_BEFORE = 0.25;
/** Files that the guest writes before anything moves, and again at the end. */
const FILES_TO_SEE = 5;
/** Whatever a slow machine takes: for what the guest is waited for, and for each stage of the move. */
const STAGE_MS_MAX = 180_000;

export interface VmDemoOptions extends DemoOptions {
  /** The program's own main file. */
  readonly main: string;
  readonly environment: NodeJS.ProcessEnv;
}

/** Resolves when everything was as it should be; otherwise rejects, mostly with `DemoFailure`. */
export async function runVmDemo(options: VmDemoOptions): Promise<VmDemoReport> {
  const { screen, sizeBytes, env, main, environment } = options;
  const write = (text: string): void => screen.write(text);
  const image = await findGuestImage({ main, environment, write });
  const accelerator = (await kvmWorks()) ? "kvm" : "tcg";
  return await inFolder(options.directory, async (folder) => {
    const files = Math.max(1, Math.floor((sizeBytes * FILLED) / (FILE_BYTES_MAX / 2)));
    write(`Making a disk of ${readableBytes(sizeBytes)}, with ${files} files in it …\n`);
    const contents = randomFiles(files, env.random);
    const scratch = join(folder, "files");
    await makeFilledDisk({ path: join(folder, "a", "disk.raw"), sizeBytes, contents, scratch });
    const report = await new VmMove(options, { folder, image, files, accelerator }).run();
    write(`\n${renderVmReport(report)}\nThe guest has found everything that it had written.\n`);
    return report;
  });
}

function* randomFiles(count: number, random: DemoOptions["env"]["random"]): Generator<Buffer> {
  for (let index = 0; index < count; index++) {
    const bytes = Buffer.alloc(1 + Math.floor(random.next() * FILE_BYTES_MAX));
    random.fill(bytes);
    yield bytes;
  }
}

interface VmPlace {
  readonly folder: string;
  readonly image: string;
  readonly accelerator: Accelerator;
  /** On the disk, from the beginning. */
  readonly files: number;
}

class VmMove {
  readonly #options: VmDemoOptions;
  readonly #place: VmPlace;
  readonly #line: LiveLine;
  readonly #ticks: TickWatch;
  readonly #log: GuestLog;
  #receivedBytes = 0;
  #shownBytes = 0;
  #shownMs: number;

  constructor(options: VmDemoOptions, place: VmPlace) {
    this.#options = options;
    this.#place = place;
    const { clock } = options.env;
    this.#shownMs = clock.nowMs();
    this.#line = new LiveLine(options.screen, clock);
    const ticks = new TickWatch(clock);
    this.#ticks = ticks;
    this.#log = new GuestLog((event) => ticks.onEvent(event));
  }

  async run(): Promise<VmDemoReport> {
    const { env, sizeBytes } = this.#options;
    const { folder } = this.#place;
    await using source = await this.#start("source", [`${DISK}=${join(folder, "a", "disk.raw")}`]);
    await using guestA = this.#boot("a", source);
    this.#say(
      `Host A: blockferry source (process ${source.pid}) has the disk; QEMU (${guestA.pid}, ${this.#place.accelerator}) boots Linux.`,
    );
    await this.#see(guestA, FILES_TO_SEE);
    this.#ticks.takeLongestMs();

    const image = join(folder, "b", "disk.raw");
    await using dest = await this.#start("dest", [`${DISK}=${image}`]);
    const startMs = env.clock.nowMs();
    await using guestB = this.#boot("b", dest, "defer");
    this.#say(
      `Host B: blockferry dest (process ${dest.pid}) pulls it meanwhile; QEMU (${guestB.pid}) waits for the guest.`,
    );
    const pulled = (local: number, phase?: string): boolean => phase === "ready" && local >= PULLED_BEFORE * sizeBytes;
    await this.#watch(dest, "pulling", pulled);
    const longestStallBeforeMs = this.#ticks.takeLongestMs();

    const { pauseMs, heldMs } = await this.#switchOver(source, dest);
    this.#say(`Switchover: the guest stood still for ${readableTime(pauseMs)}, and runs on host B now.`);
    const memoryBytes = (await source.status()).migration?.guest?.sentBytes ?? 0;
    await this.#watch(dest, "fetching", (_, phase) => phase === "complete");
    const moveMs = env.clock.nowMs() - startMs;

    this.#say("Host B has everything. Killing the source, and the QEMU beside it; the guest goes on …");
    await Promise.all([source.kill(), guestA.kill()]);
    await this.#see(guestB, FILES_TO_SEE);
    const longestStallAfterMs = this.#ticks.takeLongestMs();
    this.#say("The guest reads all its files back, past its caches, and compares their checksums …");
    const filesVerified = await this.#readBack(guestB, dest, image);
    const diskBytes = Math.max(0, this.#receivedBytes - memoryBytes);
    return {
      ...{ sizeBytes, longestStallBeforeMs, longestStallAfterMs, moveMs, memoryBytes, diskBytes, filesVerified },
      ...{ accelerator: this.#place.accelerator, switchoverPauseMs: pauseMs, writesHeldMs: heldMs },
      bytesPerSecond: this.#receivedBytes / (moveMs / 1000),
      savedBytes: Math.max(0, sizeBytes - diskBytes),
      filesWritten: this.#log.of("synced").length,
    };
  }

  #say(text: string): void {
    this.#line.end();
    this.#options.screen.write(`${text}\n`);
  }

  #qmp(host: "a" | "b"): string {
    return join(this.#place.folder, host, "qmp");
  }

  #start(role: "source" | "dest", args: readonly string[]): Promise<SideProcess> {
    const { env, command } = this.#options;
    const { folder } = this.#place;
    const host = role === "source" ? "a" : "b";
    const link = `unix:${folder}/link`;
    const where = role === "source" ? ["--link", link] : ["--progress=none", link];
    const all = ["--qmp", this.#qmp(host), ...where, ...args];
    return SideProcess.start({ env, command, role, args: all, folder: join(folder, host) });
  }

  #boot(host: "a" | "b", side: SideProcess, incoming?: string): Guest {
    const { image, files, accelerator } = this.#place;
    const disk: GuestDisk = { socket: side.socket, exportName: DISK };
    return startQemu({
      ...{ image, incoming, disks: [disk], log: this.#log, accelerator },
      qmpSocket: this.#qmp(host),
      // It removes none of those that are there from the beginning.
      append: `bf.kib=256 bf.files=${files + 1000}`,
    });
  }

  /** Resolves when the guest has written and synced some more files. Rejects when it does not, or complains. */
  async #see(guest: Guest, count: number): Promise<void> {
    const ended = guest.ended.then(() => {
      throw wrong(`QEMU (${guest.pid}) has ended: ${guest.errors.trim() || this.#log.tail()}`);
    });
    ended.catch(() => undefined);
    await Promise.race([this.#log.more("synced", count, DISK, STAGE_MS_MAX), ended]).catch(asFailure);
    const complaints = this.#log.complaints();
    if (complaints.length > 0) throw wrong(`the guest complains: ${complaints.join("; ")}`);
  }

  async #switchOver(source: SideProcess, dest: SideProcess): Promise<{ pauseMs: number; heldMs: number | undefined }> {
    let over = false;
    const timeoutMs = STAGE_MS_MAX;
    const switching = source.control.call("switchover", { wait: true }, { timeoutMs }).finally(() => (over = true));
    switching.catch(() => undefined);
    await this.#watch(dest, "switching", () => over);
    const { pauseSeconds, guest } = await switching.catch(asFailure);
    if (guest?.running !== true) throw wrong("the guest does not run on the destination");
    return {
      pauseMs: (guest.stoodStillSeconds ?? 0) * 1000,
      heldMs: pauseSeconds === null ? undefined : pauseSeconds * 1000,
    };
  }

  /** Resolves to how many files the guest has found as it had written them. */
  async #readBack(guest: Guest, dest: SideProcess, image: string): Promise<number> {
    const good = await guest.verifyAll([DISK], STAGE_MS_MAX).catch(asFailure);
    await guest.finish(STAGE_MS_MAX).catch(asFailure);
    const complaints = this.#log.complaints();
    if (complaints.length > 0) throw wrong(`the guest complains: ${complaints.join("; ")}`);
    await dest.stop();
    await promisify(execFile)("e2fsck", ["-fn", image], { env: WITH_SBIN }).catch(asFailure);
    return good;
  }

  /** Shows how it goes until `over`. */
  async #watch(
    dest: SideProcess,
    label: string,
    over: (localBytes: number, phase: string | undefined) => boolean,
  ): Promise<void> {
    const { sizeBytes, env } = this.#options;
    const lastMs = env.clock.nowMs() + STAGE_MS_MAX;
    for (;;) {
      const { disks, migration } = await dest.status();
      this.#receivedBytes = Math.max(this.#receivedBytes, migration?.link.receivedBytes ?? 0);
      const localBytes = disks[0]?.localBytes ?? 0;
      this.#line.update(label, localBytes / sizeBytes, this.#progressText());
      if (over(localBytes, migration?.phase)) return this.#line.end();
      if (env.clock.nowMs() > lastMs) throw wrong(`"${label}" takes longer than ${readableTime(STAGE_MS_MAX)}`);
      await new Promise<void>((resolve) => void env.clock.setTimer(LOOK_EVERY_MS, resolve));
    }
  }

  #progressText(): string {
    const now = this.#options.env.clock.nowMs();
    const rate = ((this.#receivedBytes - this.#shownBytes) / Math.max(1, now - this.#shownMs)) * 1000;
    [this.#shownBytes, this.#shownMs] = [this.#receivedBytes, now];
    const { length: written } = this.#log.of("synced");
    const { length: verified } = this.#log.of("verified");
    const guest = `guest: counter ${this.#ticks.count}, ${written} files written, ${verified} read back`;
    return `${readableBytes(rate)}/s  ${guest}`;
  }
}

function wrong(why: string): DemoFailure {
  return new DemoFailure("the guest has not moved as it should", why, "if it happens again, please report it");
}

function asFailure(error: unknown): never {
  throw error instanceof DemoFailure ? error : wrong(error instanceof Error ? error.message : String(error));
}
