/**
 * Shows that it works, on this machine and with real processes: makes a disk, serves it with `blockferry serve`, lets a
 * client that is not ours (when there is one) read all of it, writes to it as a virtual machine would, stops the server,
 * and compares every byte.
 */
import { rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";
import type { Env } from "../env/env.ts";
import type { ClientName } from "./client-names.ts";
import { chooseClient } from "./copy-clients.ts";
import { DemoFailure } from "./failure.ts";
import { chooseBlocks, verifyBlocks, writeBlocks } from "./guest-writes.ts";
import { BLOCK_BYTES, hashOf, makeSampleDisk, type SampleDisk } from "./sample-disk.ts";
import { type ServeProcess, startServing } from "./serve-process.ts";
import { ProgressLine, readableBytes, readableSeconds, renderTable, type Screen } from "./show.ts";

const EXPORT = "demo";
const WRITES = 2000;

export interface DemoOptions {
  readonly env: Env;
  readonly screen: Screen;
  /** How to start this very program. */
  readonly command: readonly string[];
  /** A multiple of 1 MiB. */
  readonly sizeBytes: number;
  /** A folder for the disk and its copy; both are removed. */
  readonly directory: string;
  readonly client?: ClientName;
}

export interface DemoStep {
  readonly step: string;
  readonly by: string;
  readonly bytes: number;
  readonly milliseconds: number;
  readonly verified: string;
}

/** Resolves when everything was as it should be; otherwise rejects with `DemoFailure`. */
export async function runDemo(options: DemoOptions): Promise<DemoStep[]> {
  const { env, screen } = options;
  const folder = await mkdtemp(join(options.directory, "blockferry-demo-"));
  const leaveNothing = (): void => {
    rmSync(folder, { recursive: true, force: true });
    process.exit(128 + constants.signals.SIGINT);
  };
  process.once("SIGINT", leaveNothing);
  try {
    screen.write(`Making a disk of ${readableBytes(options.sizeBytes)}, with holes in it …\n`);
    const disk = await makeSampleDisk(join(folder, "disk.raw"), options.sizeBytes, env.random);
    const steps = await useDisk(options, disk, join(folder, "copy.raw"));
    screen.write(`\n${renderSteps(steps)}\nEvery byte is where it belongs.\n`);
    return steps;
  } finally {
    process.off("SIGINT", leaveNothing);
    await rm(folder, { recursive: true, force: true });
  }
}

async function useDisk(options: DemoOptions, disk: SampleDisk, copy: string): Promise<DemoStep[]> {
  const { env, screen } = options;
  await using server = await startServing(options.command, disk.path, EXPORT);
  screen.write(`Serving it: process ${server.pid}, ${server.uri}\n`);
  const read = await readEverything(options, { server, disk, copy });
  const blocks = chooseBlocks(env, WRITES, disk.sizeBytes / BLOCK_BYTES);
  screen.write(`Writing ${blocks.length} blocks of 4 KiB all over it, as a virtual machine would …\n`);
  const startMs = env.clock.nowMs();
  await writeBlocks(env, server.uri, blocks);
  const milliseconds = env.clock.nowMs() - startMs;
  screen.write("Stopping the server …\n");
  const exitCode = await server.stop();
  if (exitCode !== 0)
    throw new DemoFailure(
      "the server did not stop in order",
      `its exit code is ${exitCode}`,
      "see its own lines above",
    );
  await verifyBlocks(disk.path, blocks);
  const verified = "all found in the image file";
  return [
    read,
    { step: "write and flush", by: "blockferry", bytes: blocks.length * BLOCK_BYTES, milliseconds, verified },
  ];
}

async function readEverything(
  options: DemoOptions,
  { server, disk, copy }: { server: ServeProcess; disk: SampleDisk; copy: string },
): Promise<DemoStep> {
  const { env, screen } = options;
  const client = chooseClient(env, options.client);
  screen.write(`Reading all of it with ${client.name} …\n`);
  const progress = new ProgressLine(screen, env.clock, client.name);
  const startMs = env.clock.nowMs();
  await client.copy(server.uri, copy, (done) => progress.update(done));
  const milliseconds = env.clock.nowMs() - startMs;
  progress.end();
  screen.write("Comparing …\n");
  const [original, arrived] = await Promise.all([hashOf(disk.path), hashOf(copy)]);
  if (original !== arrived) {
    const hint = "this is a defect, here or in the client; please report it";
    throw new DemoFailure("the copy differs from the disk", `SHA-256 ${arrived} instead of ${original}`, hint);
  }
  const verified = `SHA-256 equal (${original.slice(0, 16)}…)`;
  return { step: "read everything", by: client.name, bytes: disk.dataBytes, milliseconds, verified };
}

function renderSteps(steps: readonly DemoStep[]): string {
  const rows = steps.map(({ step, by, bytes, milliseconds, verified }) => {
    const rate = `${readableBytes(bytes / Math.max(milliseconds / 1000, 0.001))}/s`;
    return [step, by, readableBytes(bytes), readableSeconds(milliseconds), rate, verified];
  });
  return renderTable([["step", "client", "data", "time", "rate", "result"], ...rows]);
}
