/** Two hosts on this machine: `blockferry source` and `blockferry dest` as processes, with what belongs to each. */
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { expect } from "vitest";
import { CloneProcess } from "../../support/clone-process.ts";
import { makeImage, type Region } from "../../support/patterns.ts";
import { type RunResult, run } from "../../support/run.ts";
import { BLOCKFERRY } from "../../support/serve-process.ts";
import type { TempDir } from "../../support/temp-dir.ts";

const DEADLINE_MS = 110_000;

export type Side = "a" | "b" | "c";

export interface SideOptions {
  readonly flags?: readonly string[];
  /** Of images, with the dot. */
  readonly extension?: string;
  /** Of the guest; there is none with `--late-open`. */
  readonly ownSocket?: boolean;
  /** Added to our own environment. */
  readonly env?: Readonly<Record<string, string>>;
}

export class MigrationProcess extends CloneProcess {
  get phase(): Promise<string> {
    return this.status().then(({ migration }) => migration?.phase ?? "");
  }

  async reached(milestone: "ready" | "active" | "hydrated" | "complete"): Promise<void> {
    const { reached } = await this.call("wait", { for: milestone, timeoutMs: DEADLINE_MS });
    if (!reached) throw new Error(`not ${milestone}: ${JSON.stringify(await this.status())}\n${this.output}`);
  }

  switchover(options: { wait?: boolean; force?: boolean } = {}): ReturnType<typeof this.call<"switchover">> {
    return this.call("switchover", { wait: true, ...options });
  }

  async expectPhase(...phases: readonly string[]): Promise<void> {
    await expect.poll(() => this.phase, { timeout: DEADLINE_MS, interval: 20 }).toSatisfy((it) => phases.includes(it));
  }
}

/** The usual places of disks, sockets and state, by side. */
export class Rig {
  readonly folder: TempDir;
  readonly disks: readonly string[];

  constructor(folder: TempDir, disks: readonly string[] = ["vda"]) {
    this.folder = folder;
    this.disks = disks;
    for (const side of ["a", "b", "c"]) mkdirSync(folder.file(side), { mode: 0o700 });
  }

  image(side: Side, disk = "vda", extension = ".raw"): string {
    return this.folder.file(`${side}/${disk}${extension}`);
  }

  socket(side: Side): string {
    return this.folder.file(`${side}/s`);
  }

  makeDisks(sizeBytes: number, regions?: readonly Region[]): void {
    for (const disk of this.disks) makeImage(this.image("a", disk), sizeBytes, regions);
  }

  /** `link`: where an earlier one has listened. */
  async source(options: SideOptions & { link?: string } = {}): Promise<MigrationProcess> {
    const { flags = [], link = "127.0.0.1:0", ownSocket = true, env } = options;
    const disks = this.disks.map((disk) => `${disk}=${this.image("a", disk)}`);
    return await this.#spawn("a", ["source", ...this.#own("a", ownSocket), "--link", link, ...flags, ...disks], env);
  }

  destArguments(address: string, { flags = [], extension = ".raw" }: SideOptions = {}, side: Side = "b"): string[] {
    const disks = this.disks.map((disk) => `${disk}=${this.image(side, disk, extension)}`);
    return ["dest", "--progress=none", ...this.#own(side), ...flags, address, ...disks];
  }

  async dest(address: string, options: SideOptions = {}, side: Side = "b"): Promise<MigrationProcess> {
    return await this.#spawn(side, this.destArguments(address, options, side));
  }

  /** One that is expected to end by itself. */
  runDest(address: string, options: SideOptions = {}, side: Side = "b"): Promise<RunResult> {
    const args = this.destArguments(address, options, side);
    return run([BLOCKFERRY, ...args], { timeoutMs: DEADLINE_MS });
  }

  #own(side: Side, ownSocket = true): string[] {
    const socket = this.socket(side);
    const state = ["--state-dir", this.folder.file(`${side}/state`)];
    return ["--exit-with-parent", ...(ownSocket ? ["-U", socket] : []), "-C", `${socket}.ctl`, ...state];
  }

  async #spawn(side: Side, args: readonly string[], env: SideOptions["env"] = {}): Promise<MigrationProcess> {
    const child = spawn(BLOCKFERRY, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    const started = new MigrationProcess(child, this.socket(side));
    try {
      await started.ready();
    } catch (error) {
      await started[Symbol.asyncDispose]();
      throw error;
    }
    return started;
  }
}

/** Where a source's link listens. */
export async function linkOf(source: MigrationProcess): Promise<string> {
  const { migration } = await source.status();
  if (migration === undefined) throw new Error("it has no migration");
  return migration.link.address;
}

/** Established TCP connections of a process, as `ss` lists them. */
export async function tcpConnectionsOf(process_: MigrationProcess): Promise<string[]> {
  const { stdout } = await run(["ss", "-Htnp", "state", "established"]);
  return stdout.split("\n").filter((line) => line.includes(`pid=${process_.pid},`));
}
