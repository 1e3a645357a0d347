/** How one sample of copying is taken. */
import { mkdtemp, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { holdPages, NOT_HELD } from "../lib/held-pages.ts";
import { type NbdPeer, type ServedPort, serveTcp } from "../lib/peers.ts";
import { settle, touchMemory, warm } from "../lib/prepare.ts";
import { runTool } from "../lib/process.ts";
import type { Measurement } from "../lib/suite.ts";
import { verifyCopy } from "../lib/verify.ts";
import { type Copied, type Copier, finalSync } from "./stream-copiers.ts";

export interface SourceDisk {
  readonly path: string;
  readonly sizeBytes: number;
  /** What is not a hole. All of it is in the page cache when a sample begins. */
  readonly data: readonly { readonly offset: number; readonly length: number }[];
  readonly dataBytes: number;
  /** Where destinations are made: the file system matters. */
  readonly directory: string;
}

const COPY_TIMEOUT_MS = 120_000;
const COMPARE_TIMEOUT_MS = 120_000;
const GIB = 2 ** 30;
/** More than this share from the disk, and it is the disk that is measured. */
const FROM_DISK_MAX = 0.01;
/** Pages besides the copy's own: those of heaps and socket buffers. */
const MEMORY_FACTOR = 1.25;

/** `server` serves the source to every contender but those that need none. */
export async function measureCopy(copier: Copier, server: NbdPeer, disk: SourceDisk): Promise<Measurement> {
  const folder = await mkdtemp(join(disk.directory, `${copier.name}-`));
  try {
    await settle(folder);
    for (const range of disk.data) await warm(disk.path, range);
    using held = await holdPages(disk.path, disk.data);
    await using source = await serveTcp(server, { image: disk.path, readOnly: true, directory: folder });
    await touchMemory(folder, disk.dataBytes * MEMORY_FACTOR);
    const measurement = await copyOnce(copier, source, { disk, folder });
    await source.stop();
    return held === undefined ? { ...measurement, notes: [NOT_HELD] } : measurement;
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function copyOnce(
  copier: Copier,
  source: ServedPort,
  { disk, folder }: { disk: SourceDisk; folder: string },
): Promise<Measurement> {
  const before = source.usage();
  const { uri, port } = source;
  const { path: file, sizeBytes, dataBytes } = disk;
  const copied = await copier.copy({ uri, port, file, sizeBytes, folder, timeoutMs: COPY_TIMEOUT_MS });
  const finalSyncMs = await finalSync(copied.path);
  const after = source.usage();
  const fromDisk = (after.diskReadBytes - before.diskReadBytes) / dataBytes;
  if (fromDisk > FROM_DISK_MAX) {
    throw new Error(`${(fromDisk * 100).toFixed(1)} % of the bytes came from the disk, not from the page cache`);
  }
  await verify(disk, copied);

  const seconds = (copied.wallMs + finalSyncMs) / 1000;
  const sourceCpuSeconds = copied.sourceCpuSeconds ?? after.cpuSeconds - before.cpuSeconds;
  return {
    values: {
      bytesPerSecond: dataBytes / seconds,
      seconds,
      finalSyncMs,
      cpuPerGib: ((sourceCpuSeconds + copied.cpuSeconds) * GIB) / dataBytes,
      sourceCpuPerGib: (sourceCpuSeconds * GIB) / dataBytes,
      destinationCpuPerGib: (copied.cpuSeconds * GIB) / dataBytes,
      sourceCpuSeconds,
      destinationCpuSeconds: copied.cpuSeconds,
      sourcePeakRssBytes: after.peakRssBytes,
      peakRssBytes: copied.peakRssBytes,
    },
  };
}

/** In full: byte by byte, or, where holes or another format are involved, by QEMU's own comparison. */
async function verify(disk: SourceDisk, { path, format }: Copied): Promise<void> {
  if (format === "raw") {
    const { size } = await stat(path);
    if (size !== disk.sizeBytes) throw new Error(`${path} has ${size} bytes, the source ${disk.sizeBytes}`);
  }
  if (format === "raw" && disk.dataBytes === disk.sizeBytes) return await verifyCopy(disk.path, path, disk.sizeBytes);
  const argv = ["qemu-img", "compare", "-f", "raw", "-F", format, disk.path, path] as const;
  await runTool({ argv: [...argv], timeoutMs: COMPARE_TIMEOUT_MS });
}
