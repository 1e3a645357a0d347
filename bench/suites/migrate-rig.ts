/**
 * Two sidecars on this machine, as processes of the built program: `blockferry source` over disks in memory, and
 * `blockferry dest`, which reaches it through `tools/line` where a distance is wanted. Started anew for each sample.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ControlClient } from "../../src/control/client.ts";
import type { ParamsOf, ResultOf, VerbName } from "../../src/control/verbs.ts";
import { realClock } from "../../src/os/clock.ts";
import { realLinks } from "../../src/os/dial.ts";
import { type LineProcess, startLine } from "../../tools/line/client.ts";
import { parseAddress } from "../../tools/line/options.ts";
import { NbdProbe } from "../lib/nbd-probe.ts";
import type { Pattern } from "../lib/pattern.ts";
import { BUILT, LAUNCHER } from "../lib/peers.ts";
import { createPatternFile } from "../lib/prepare.ts";
import { ServerProcess, temporaryFolder } from "../lib/process.ts";
import { verifyFile, type Written } from "../lib/verify.ts";

const WAIT_MS = 120_000;
/** A file system whose syncs cost next to nothing, so that what is left is the program and the line. */
const MEMORY = "/dev/shm";

export interface Distance {
  readonly rttMs: number;
  /** Each way; unlimited unless given. */
  readonly bitsPerSecond?: number;
}

export interface RigOptions {
  readonly pattern: Pattern;
  readonly disks: readonly string[];
  readonly sizeBytes: number;
  /** No line where it is left out. */
  readonly distance?: Distance;
}

export type Side = "source" | "dest";

/** One of the two programs, and what belongs to it. */
export class Sidecar {
  readonly server: ServerProcess;
  readonly socketPath: string;
  readonly #control: ControlClient;

  private constructor(server: ServerProcess, socketPath: string, control: ControlClient) {
    this.server = server;
    this.socketPath = socketPath;
    this.#control = control;
  }

  static async start(side: Side, folder: string, words: readonly string[]): Promise<Sidecar> {
    const socketPath = join(folder, "nbd.sock");
    const controlPath = join(folder, "control.sock");
    const own = ["-U", socketPath, "-C", controlPath, "--state-dir", join(folder, "state")];
    let control: ControlClient | undefined;
    const server = await ServerProcess.start({
      name: `blockferry ${side}`,
      argv: [LAUNCHER, side, ...own, ...words],
      environment: { ...BUILT, XDG_RUNTIME_DIR: folder },
      ready: async () => {
        control ??= await ControlClient.connect(await realLinks.dial({ kind: "unix", path: controlPath }), realClock);
        const { reached } = await control.call("status", {});
        if (!reached.includes("listening")) throw new Error("it does not listen yet");
      },
    });
    if (control === undefined) throw new Error("no control socket");
    return new Sidecar(server, socketPath, control);
  }

  call<V extends VerbName>(verb: V, params: ParamsOf<V>): Promise<ResultOf<V>> {
    return this.#control.call(verb, params, { timeoutMs: WAIT_MS });
  }

  async reached(milestone: "ready" | "active" | "hydrated" | "complete"): Promise<void> {
    const { reached } = await this.call("wait", { for: milestone, timeoutMs: WAIT_MS });
    if (!reached) throw new Error(`the migration is not ${milestone} after ${WAIT_MS / 1000} s`);
  }

  probe(disk: string): Promise<NbdProbe> {
    return NbdProbe.connect(this.socketPath, disk);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#control[Symbol.dispose]();
    await this.server[Symbol.asyncDispose]();
  }
}

/** The disks and folders of both hosts. Everything goes with it. */
export class Rig implements AsyncDisposable {
  readonly folder: string;
  readonly options: RigOptions;
  readonly #open = new AsyncDisposableStack();

  private constructor(folder: ReturnType<typeof temporaryFolder>, options: RigOptions) {
    this.folder = folder.path;
    this.options = options;
    this.#open.defer(() => folder.remove());
  }

  static async create(options: RigOptions): Promise<Rig> {
    const rig = new Rig(temporaryFolder(await memoryFolder()), options);
    for (const side of ["source", "dest"]) await mkdir(join(rig.folder, side), { mode: 0o700 });
    for (const disk of options.disks) {
      await createPatternFile(rig.image("source", disk), options.sizeBytes, options.pattern);
    }
    return rig;
  }

  image(side: Side, disk: string): string {
    return join(this.folder, side, `${disk}.raw`);
  }

  async source(flags: readonly string[] = []): Promise<Sidecar> {
    return await this.#start("source", ["--link", "127.0.0.1:0", ...flags]);
  }

  /** Where a destination reaches the source: the line, or the source itself where there is none. */
  async reach(source: Sidecar): Promise<{ address: string; line: LineProcess | undefined }> {
    const { migration } = await source.call("status", {});
    if (migration === undefined) throw new Error("the source has no migration");
    const { address } = migration.link;
    const line = await this.line(address);
    return { address: line === undefined ? address : portOf(line), line };
  }

  /** To a TCP address of this machine; undefined without a distance. */
  async line(target: string): Promise<LineProcess | undefined> {
    const { distance } = this.options;
    if (distance === undefined) return undefined;
    return this.#open.use(await startLine({ target: parseAddress(target), ...distance }));
  }

  async dest(address: string, flags: readonly string[] = []): Promise<Sidecar> {
    return await this.#start("dest", ["--progress=none", ...flags, address]);
  }

  /** Compares the destination's images, byte by byte, with what was there and what was written since. */
  async verify(writtenOf: (disk: string) => Written): Promise<void> {
    const { disks, sizeBytes, pattern } = this.options;
    for (const disk of disks) {
      await verifyFile(this.image("dest", disk), { offset: 0, length: sizeBytes }, pattern, writtenOf(disk));
    }
  }

  /** Ended with the rig. */
  use<T extends AsyncDisposable>(part: T): T {
    return this.#open.use(part);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#open.disposeAsync();
  }

  async #start(side: Side, words: readonly string[]): Promise<Sidecar> {
    const disks = this.options.disks.map((disk) => `${disk}=${this.image(side, disk)}`);
    return this.#open.use(await Sidecar.start(side, join(this.folder, side), [...words, ...disks]));
  }
}

function portOf({ address }: LineProcess): string {
  if (address.kind !== "tcp") throw new Error("the line listens on a port");
  return `127.0.0.1:${address.port}`;
}

async function memoryFolder(): Promise<string> {
  try {
    await rm(await mkdtemp(join(MEMORY, "blockferry-")), { recursive: true });
    return MEMORY;
  } catch {
    return tmpdir();
  }
}
