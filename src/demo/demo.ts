/**
 * Shows that it works, on this machine and with real processes: a disk moves from a `blockferry source` to a
 * `blockferry dest` while a guest reads and writes it, the source is killed when it is not needed any more, and every byte is
 * compared with what the guest has left.
 */
import { join } from "node:path";
import type { Env } from "../env/env.ts";
import { inFolder } from "./folder.ts";
import { type GuestCounts, LiveGuest } from "./live-guest.ts";
import { makeSampleDisk, type SampleDisk } from "./sample-disk.ts";
import { LiveLine, readableBytes, readableTime, renderTable, type Screen } from "./show.ts";
import { SideProcess } from "./side-process.ts";
import { verifyImage } from "./verify.ts";

const DISK = "vda";
const LOOK_EVERY_MS = 100;
/** How long the guest works before anything moves, and goes on at the end. */
const ACT_MS = 500;
/** What is pulled before the switchover, so that there is something to do before it and after it. */
const PULLED_BEFORE = 0.25;

export interface DemoOptions {
  readonly env: Env;
  readonly screen: Screen;
  /** How to start this very program. */
  readonly command: readonly string[];
  /** A multiple of 1 MiB. */
  readonly sizeBytes: number;
  /** A folder for the images; they are removed. */
  readonly directory: string;
}

/** Bytes and milliseconds. */
export interface DemoReport {
  readonly sizeBytes: number;
  readonly dataBytes: number;
  /** From the instant when the guest stands still until it goes on over there. */
  readonly switchoverPauseMs: number;
  /** Of these, for as long as writes were held. */
  readonly writesHeldMs: number | undefined;
  readonly longestWaitBeforeMs: number;
  readonly longestWaitAfterMs: number;
  /** From the first contact until it has everything, durably. */
  readonly moveMs: number;
  readonly receivedBytes: number;
  readonly bytesPerSecond: number;
  readonly savedBytes: number;
  readonly guestReads: number;
  readonly guestWrites: number;
}

/** Resolves when everything was as it should be; otherwise rejects, mostly with `DemoFailure`. */
export async function runDemo(options: DemoOptions): Promise<DemoReport> {
  const { env, screen } = options;
  return await inFolder(options.directory, async (folder) => {
    screen.write(`Making a disk of ${readableBytes(options.sizeBytes)}, with files and holes in it …\n`);
    const disk = await makeSampleDisk(join(folder, "a", "disk.raw"), options.sizeBytes, env.random);
    const report = await new Move(options, folder, disk).run();
    screen.write(`\n${renderReport(report)}\nEvery byte is where it belongs.\n`);
    return report;
  });
}

class Move {
  readonly #options: DemoOptions;
  readonly #folder: string;
  readonly #disk: SampleDisk;
  readonly #line: LiveLine;
  #receivedBytes = 0;
  /** Of the guest, when it was looked at last. */
  #operations = 0;

  constructor(options: DemoOptions, folder: string, disk: SampleDisk) {
    this.#options = options;
    this.#folder = folder;
    this.#disk = disk;
    this.#line = new LiveLine(options.screen, options.env.clock);
  }

  async run(): Promise<DemoReport> {
    const { env, screen, sizeBytes } = this.#options;
    const { clock } = env;
    const { model, dataBytes } = this.#disk;
    await using source = await this.#start("source", [
      "--link",
      `unix:${this.#folder}/link`,
      `${DISK}=${this.#disk.path}`,
    ]);
    screen.write(`Host A: blockferry source (process ${source.pid}) has the disk, and a guest reads and writes it.\n`);
    await using guest = new LiveGuest(source.socket, { env, model, exportName: DISK });
    await this.#later(ACT_MS);
    guest.counts();

    const image = join(this.#folder, "b", "disk.raw");
    await using dest = await this.#start("dest", ["--progress=none", `unix:${this.#folder}/link`, `${DISK}=${image}`]);
    const startMs = clock.nowMs();
    screen.write(`Host B: blockferry dest (process ${dest.pid}) pulls it meanwhile, over one connection.\n`);
    const longestWaitBeforeMs = await this.#watch(
      dest,
      guest,
      "pulling",
      (local, phase) => phase === "ready" && local >= PULLED_BEFORE * sizeBytes,
    );

    const pauseMs = clock.nowMs();
    await guest.pause();
    // Nobody has to be watched for writes: it stands still.
    const { pauseSeconds } = await source.control.call("switchover", { wait: true, force: true }, { timeoutMs: null });
    await guest.resumeAt(dest.socket);
    const switchoverPauseMs = clock.nowMs() - pauseMs;
    this.#line.end();
    screen.write(
      `Switchover: the guest stood still for ${readableTime(switchoverPauseMs)}, and works on host B now.\n`,
    );
    const longestWaitAfterMs = await this.#watch(dest, guest, "fetching", (_, phase) => phase === "complete");
    const moveMs = clock.nowMs() - startMs;

    screen.write("Host B has everything. Killing the source; the guest goes on …\n");
    await source.kill();
    await this.#later(ACT_MS);
    await guest.stop();
    const { reads: guestReads, writes: guestWrites } = guest.counts();
    await dest.stop();
    screen.write("Comparing every byte with what the guest has left …\n");
    await verifyImage(image, model);
    return {
      ...{
        sizeBytes,
        dataBytes,
        switchoverPauseMs,
        longestWaitBeforeMs,
        longestWaitAfterMs,
        moveMs,
        guestReads,
        guestWrites,
      },
      writesHeldMs: pauseSeconds === null ? undefined : pauseSeconds * 1000,
      receivedBytes: this.#receivedBytes,
      bytesPerSecond: this.#receivedBytes / (moveMs / 1000),
      savedBytes: Math.max(0, sizeBytes - this.#receivedBytes),
    };
  }

  #start(role: "source" | "dest", args: readonly string[]): Promise<SideProcess> {
    const { env, command } = this.#options;
    return SideProcess.start({ env, command, role, args, folder: join(this.#folder, role === "source" ? "a" : "b") });
  }

  /** Shows how it goes until `over`. Resolves to the longest that the guest waited meanwhile. */
  async #watch(
    dest: SideProcess,
    guest: LiveGuest,
    label: string,
    over: (localBytes: number, phase: string | undefined) => boolean,
  ): Promise<number> {
    const { sizeBytes } = this.#options;
    let longestWaitMs = 0;
    for (;;) {
      const { disks, migration } = await dest.status();
      const counts = guest.counts();
      longestWaitMs = Math.max(longestWaitMs, counts.longestWaitMs);
      this.#receivedBytes = Math.max(this.#receivedBytes, migration?.link.receivedBytes ?? 0);
      const localBytes = disks[0]?.localBytes ?? 0;
      this.#line.update(label, localBytes / sizeBytes, this.#guestText(counts));
      if (over(localBytes, migration?.phase)) {
        this.#line.end();
        return longestWaitMs;
      }
      await this.#later(LOOK_EVERY_MS);
    }
  }

  #guestText({ reads, writes, longestWaitMs }: GuestCounts): string {
    const done = reads + writes - this.#operations;
    this.#operations = reads + writes;
    return `guest: ${done} requests, the slowest ${readableTime(longestWaitMs)}`;
  }

  #later(ms: number): Promise<void> {
    return new Promise((resolve) => void this.#options.env.clock.setTimer(ms, resolve));
  }
}

function renderReport(report: DemoReport): string {
  const { switchoverPauseMs, writesHeldMs, longestWaitBeforeMs, longestWaitAfterMs, receivedBytes, moveMs } = report;
  const held = writesHeldMs === undefined ? "" : ` (writes held ${readableTime(writesHeldMs)})`;
  return renderTable([
    ["switchover pause", `${readableTime(switchoverPauseMs)}${held}`],
    [
      "longest guest stall",
      `${readableTime(longestWaitAfterMs)} with the switchover in it, ${readableTime(longestWaitBeforeMs)} before`,
    ],
    ["brought over", `${readableBytes(receivedBytes)} in ${readableTime(moveMs)}`],
    ["throughput", `${readableBytes(report.bytesPerSecond)}/s`],
    ["saved", `${readableBytes(report.savedBytes)} of ${readableBytes(report.sizeBytes)} were never sent: holes`],
    ["guest's work", `${report.guestReads} reads, each of them right; ${report.guestWrites} writes`],
    ["verified", `all ${readableBytes(report.sizeBytes)}, read from the image`],
  ]);
}
