/** One sample of copying a disk over a line: by `blockferry clone`, with readers who wait meanwhile, and by others. */
import { open, stat } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import type { Pattern } from "../lib/pattern.ts";
import { BUILT, LAUNCHER } from "../lib/peers.ts";
import { runTool } from "../lib/process.ts";
import type { Measurement } from "../lib/suite.ts";
import { verifyCopy } from "../lib/verify.ts";
import { type Copier, finalSync } from "./stream-copiers.ts";
import type { SourceDisk } from "./stream-copy.ts";
import { DemandReader, type DemandReads } from "./wan-reader.ts";
import { latenessMs, type Scene, withScene } from "./wan-scene.ts";

const TIMEOUT_MS = 120_000;
const GIB = 2 ** 30;

export interface WanCopy {
  readonly disk: SourceDisk;
  readonly pattern: Pattern;
  readonly rttMs: number;
}

/** `flags`: for `clone`, besides those that it needs. */
export function measureClone({ disk, pattern, rttMs }: WanCopy, flags: readonly string[] = []): Promise<Measurement> {
  return withScene({ disk, rttMs, source: "nbd" }, async ({ line, folder, uri }) => {
    const [path, socketPath] = [join(folder, "overlay.raw"), join(folder, "nbd.sock")];
    const argv = [LAUNCHER, "clone", "--exit-when-hydrated", ...flags] as const;
    const places = ["-U", socketPath, "-C", join(folder, "control.sock"), uri, path];
    const reader = new DemandReader({ listen: socketPath, pattern, sizeBytes: disk.sizeBytes, rttMs });
    const environment = { ...BUILT, XDG_RUNTIME_DIR: folder };
    const run = await runTool({ argv: [...argv, ...places], environment, timeoutMs: TIMEOUT_MS }).catch(
      async (error: unknown) => {
        await reader.stop().catch(() => undefined);
        throw error;
      },
    );
    const stats = await line.stats();
    const reads = await reader.stop();
    await verify(disk, path);
    const values = {
      ...copyValues(disk, run.wallMs),
      destinationCpuPerGib: (run.cpuSeconds * GIB) / disk.dataBytes,
      peakRssBytes: run.peakRssBytes,
      ...lineValues(stats, run.wallMs),
    };
    if (reads === undefined) return { values, notes: ["no read had to wait: too short to tell"] };
    return { values: { ...values, ...readValues(reads, rttMs, latenessMs(stats)) } };
  });
}

/** The same, by one of those who copy over loopback in the suite `stream`. */
export function measureOther(copier: Copier, { disk, rttMs }: WanCopy): Promise<Measurement> {
  return withScene({ disk, rttMs, source: "nbd" }, async ({ line, folder, uri, port }) => {
    const { path: file, sizeBytes } = disk;
    const copied = await copier.copy({ uri, port, file, sizeBytes, folder, timeoutMs: TIMEOUT_MS });
    const wallMs = copied.wallMs + (await finalSync(copied.path));
    const stats = await line.stats();
    if (copied.format === "raw") await verify(disk, copied.path);
    else await compareImages(disk.path, copied.path, copied.format);
    return { values: { ...copyValues(disk, wallMs), peakRssBytes: copied.peakRssBytes, ...lineValues(stats, wallMs) } };
  });
}

/** What one TCP connection and no protocol gets: the measure of all others. */
export function measurePlain({ disk, rttMs }: WanCopy): Promise<Measurement> {
  return withScene({ disk, rttMs, source: "bytes" }, async (scene) => {
    const path = join(scene.folder, "copy.raw");
    const startedMs = performance.now();
    await receive(scene, path);
    const wallMs = performance.now() - startedMs;
    const stats = await scene.line.stats();
    await verify(disk, path);
    return { values: { ...copyValues(disk, wallMs), ...lineValues(stats, wallMs) } };
  });
}

const PIECE_BYTES = 1 << 20;

/** In whole, aligned pieces, which cost the kernel half of what odd ones do; synced. */
async function receive({ port }: Scene, path: string): Promise<void> {
  const socket = connect(port, "127.0.0.1");
  await using file = await open(path, "wx");
  const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
  let [filled, offset] = [0, 0];
  const store = async (): Promise<void> => {
    await file.write(piece, 0, filled, offset);
    offset += filled;
    filled = 0;
  };
  for await (const bytes of socket as AsyncIterable<Buffer>) {
    for (let used = 0; used < bytes.length; ) {
      const taken = bytes.copy(piece, filled, used);
      used += taken;
      filled += taken;
      if (filled === PIECE_BYTES) await store();
    }
  }
  if (filled > 0) await store();
  await file.datasync();
}

function copyValues({ dataBytes }: SourceDisk, wallMs: number) {
  return { bytesPerSecond: (dataBytes * 1000) / wallMs, seconds: wallMs / 1000 };
}

function lineValues(stats: Awaited<ReturnType<Scene["line"]["stats"]>>, wallMs: number) {
  return {
    lineCores: stats.cpuMs / wallMs,
    lineLatenessP99Ms: latenessMs(stats),
    lineResidenceP99Ms: stats.up.residenceMs.p99 + stats.down.residenceMs.p99,
  };
}

/** `beyondMs`: what the 99th percentile is longer than a round trip on this line at this moment. */
function readValues({ p50Ms, p99Ms, maxMs, count }: DemandReads, rttMs: number, lateMs: number) {
  const beyondP99Ms = Math.max(0, p99Ms - rttMs - lateMs);
  return { readP50Ms: p50Ms, readP99Ms: p99Ms, readMaxMs: maxMs, reads: count, beyondP99Ms };
}

async function verify(disk: SourceDisk, path: string): Promise<void> {
  const { size } = await stat(path);
  if (size !== disk.sizeBytes) throw new Error(`${path} has ${size} bytes, the source ${disk.sizeBytes}`);
  await verifyCopy(disk.path, path, disk.sizeBytes);
}

async function compareImages(original: string, copy: string, format: string): Promise<void> {
  const argv = ["qemu-img", "compare", "-f", "raw", "-F", format, original, copy] as const;
  await runTool({ argv, timeoutMs: TIMEOUT_MS });
}
