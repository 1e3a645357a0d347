/** One sample of a guest that reads what is still at the source: from one end to the other, or here and there. */
import { join } from "node:path";
import { runFio } from "../lib/fio.ts";
import { NbdProbe } from "../lib/nbd-probe.ts";
import type { Measurement } from "../lib/suite.ts";
import type { SourceDisk } from "./stream-copy.ts";
import type { LazyServer } from "./wan-lazy.ts";
import { LINE_BYTES_PER_SECOND, latenessMs, patternMismatch, type Scene, withScene } from "./wan-scene.ts";

const READ_BYTES = 128 * 1024;
const BLOCK_BYTES = 4096;
const SPOTS = 64;

export interface GuestRun {
  /** Without a file: its bytes are made up by the source. */
  readonly disk: SourceDisk;
  readonly rttMs: number;
}

/** `lengthBytes` from the middle of the disk on, 128 KiB at a time, as `dd` reads. */
export function measureSequential(
  server: LazyServer,
  { disk, rttMs, lengthBytes }: GuestRun & { readonly lengthBytes: number },
): Promise<Measurement> {
  return withGuest(server, { disk, rttMs }, async (scene, socketPath) => {
    await using guest = await NbdProbe.connect(socketPath);
    await scene.line.resetStats();
    const first = disk.sizeBytes / 2;
    const startedMs = performance.now();
    for (let offset = first; offset < first + lengthBytes; offset += READ_BYTES) {
      const wrong = patternMismatch(await guest.read(offset, READ_BYTES), offset);
      if (wrong >= 0) throw new Error(`${server.name}: the bytes at ${wrong} are not the source's`);
    }
    const seconds = (performance.now() - startedMs) / 1000;
    const bytesPerSecond = lengthBytes / seconds;
    const stats = await scene.line.stats();
    return {
      bytesPerSecond,
      lineShare: bytesPerSecond / LINE_BYTES_PER_SECOND,
      lineUse: stats.down.deliveredBytes / seconds / LINE_BYTES_PER_SECOND,
      fetchedFactor: stats.down.deliveredBytes / lengthBytes,
      lineLatenessP99Ms: latenessMs(stats),
    };
  });
}

/** Reads of 4 KiB all over a disk that is far larger than what is brought meanwhile, `depth` at a time. */
export function measureRandom(
  server: LazyServer,
  { disk, rttMs, depth, measureMs }: GuestRun & { readonly depth: number; readonly measureMs: number },
): Promise<Measurement> {
  return withGuest(server, { disk, rttMs }, async (scene, socketPath) => {
    const job = {
      name: "random",
      rw: "randread",
      blockBytes: BLOCK_BYTES,
      depth,
      options: { norandommap: 1 },
    } as const;
    // fio takes a time with a fraction for another one.
    const fio = {
      socketPath,
      directory: scene.folder,
      rampMs: Math.round(measureMs / 3),
      measureMs,
      jobs: [job],
    } as const;
    const [report] = await runFio(fio);
    if (report === undefined) throw new Error("fio reported nothing");
    await verifySpots(socketPath, disk);
    const stats = await scene.line.stats();
    return {
      perSecond: report.main.perSecond,
      // What a client at the far end of the line gets at this depth, were the source and everybody else infinitely fast.
      rttShare: report.main.perSecond / ((depth * 1000) / rttMs),
      p50Ms: report.main.latency.p50Us / 1000,
      p99Ms: report.main.latency.p99Us / 1000,
      lineLatenessP99Ms: latenessMs(stats),
    };
  });
}

function withGuest(
  server: LazyServer,
  { disk, rttMs }: GuestRun,
  body: (scene: Scene, socketPath: string) => Promise<Readonly<Record<string, number>>>,
): Promise<Measurement> {
  return withScene({ disk, rttMs, source: "pattern" }, async (scene) => {
    const socketPath = join(scene.folder, "guest.sock");
    await using running = await server.start(scene, socketPath);
    const values = await body(scene, socketPath);
    const { peakRssBytes } = running.usage();
    return { values: { ...values, peakRssBytes } };
  });
}

async function verifySpots(socketPath: string, { sizeBytes }: SourceDisk): Promise<void> {
  await using probe = await NbdProbe.connect(socketPath);
  const blocks = sizeBytes / BLOCK_BYTES;
  for (let spot = 0; spot < SPOTS; spot++) {
    const offset = Math.floor((spot * blocks) / SPOTS) * BLOCK_BYTES;
    const wrong = patternMismatch(await probe.read(offset, BLOCK_BYTES), offset);
    if (wrong >= 0) throw new Error(`the bytes at ${wrong} are not the source's`);
  }
}
