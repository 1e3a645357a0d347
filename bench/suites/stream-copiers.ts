/**
 * Who brings a disk from a source into a new local file, each the way its users do it. All write to a fresh, sparse
 * regular file in the page cache, and none is done before that file has been synced.
 */
import { open, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { BUILT, LAUNCHER } from "../lib/peers.ts";
import { runTool } from "../lib/process.ts";
import { SUBJECT } from "../lib/suite.ts";

export interface CopyJob {
  /** The source as an NBD export over TCP; the C loop, which speaks no NBD, reads the file itself. */
  readonly uri: string;
  readonly port: number;
  readonly file: string;
  readonly sizeBytes: number;
  /** New and empty, for the destination and for sockets. */
  readonly folder: string;
  readonly timeoutMs: number;
}

export type CopyFormat = "raw" | "qcow2" | "qed";

export interface Copied {
  readonly path: string;
  readonly format: CopyFormat;
  /** From the start of the copy to the end of the program that made it. */
  readonly wallMs: number;
  /** Of the program that copies, and its children. */
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
  /** Where the source is no server that can be asked. */
  readonly sourceCpuSeconds?: number;
}

export interface Copier {
  readonly name: string;
  copy(job: CopyJob): Promise<Copied>;
}

export const copyBlockferry = (format: CopyFormat): Copier => ({
  name: SUBJECT,
  copy: async ({ folder, uri, timeoutMs }) => {
    const path = join(folder, `overlay.${format}`);
    const listen = ["-U", join(folder, "nbd.sock"), "-C", join(folder, "control.sock")];
    const argv = [LAUNCHER, "clone", "--exit-when-hydrated", ...listen, uri, path] as const;
    const run = await runTool({ argv: [...argv], environment: { ...BUILT, XDG_RUNTIME_DIR: folder }, timeoutMs });
    return { ...run, path, format };
  },
});

export const COPY_BLOCKFERRY = copyBlockferry("raw");

/** nbdcopy makes its output anew, so that it, too, writes to a sparse file. By default it uses up to 4 connections. */
const nbdcopy = (name: string, flags: readonly string[]): Copier => ({
  name,
  copy: async ({ folder, uri, timeoutMs }) => {
    const path = join(folder, "copy.raw");
    const run = await runTool({ argv: ["nbdcopy", "--flush", ...flags, uri, path], timeoutMs });
    return { ...run, path, format: "raw" };
  },
});

export const COPY_NBDCOPY = nbdcopy("nbdcopy", []);
export const COPY_NBDCOPY_ONE = nbdcopy("nbdcopy-1conn", ["--connections=1"]);

/** Into an existing file that is known to be zero. Without -n and -t writeback it would sync nothing. */
export const COPY_QEMU_IMG: Copier = {
  name: "qemu-img",
  copy: async ({ folder, uri, sizeBytes, timeoutMs }) => {
    const path = join(folder, "copy.raw");
    await writeFile(path, "");
    await truncate(path, sizeBytes);
    const how = ["-n", "--target-is-zero", "-t", "writeback", "-f", "raw", "-O", "raw"];
    const run = await runTool({ argv: ["qemu-img", "convert", ...how, uri, path], timeoutMs });
    return { ...run, path, format: "raw" };
  },
};

/** `bench/limit/copy-loop.c`: what a socket and a file allow. */
export const copyLoop = (program: string): Copier => ({
  name: "c-loop",
  copy: async ({ folder, file, timeoutMs }) => {
    const path = join(folder, "copy.raw");
    const { stdout, ...run } = await runTool({ argv: [program, file, path], timeoutMs });
    const { sender, receiver } = JSON.parse(stdout) as { sender: number; receiver: number };
    return { ...run, path, format: "raw", cpuSeconds: receiver, sourceCpuSeconds: sender };
  },
});

/** What every copy ends with, within the time that counts: costs next to nothing after a program that has synced. */
export async function finalSync(path: string): Promise<number> {
  await using file = await open(path, "r+");
  const startedMs = performance.now();
  await file.datasync();
  return performance.now() - startedMs;
}
