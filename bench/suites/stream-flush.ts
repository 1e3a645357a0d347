/**
 * One sample of `flush-while-hydrating`: a guest that writes 4 KiB and flushes, fifty times a second, on the local export
 * of a disk that is being brought over at full speed; and the same afterwards, when it is all there, as its own yardstick.
 */
import { mkdtemp, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { holdPages, NOT_HELD } from "../lib/held-pages.ts";
import { NbdProbe } from "../lib/nbd-probe.ts";
import { Pattern } from "../lib/pattern.ts";
import { BUILT, LAUNCHER, NBDKIT, type ServedPort, serveTcp } from "../lib/peers.ts";
import { settle, touchMemory, warm } from "../lib/prepare.ts";
import { ServerProcess } from "../lib/process.ts";
import { percentile, withOmittedWaits } from "../lib/stats.ts";
import type { Measurement } from "../lib/suite.ts";
import { verifyFile, WRITTEN_BYTES } from "../lib/verify.ts";
import type { SourceDisk } from "./stream-copy.ts";

const EVERY_MS = 20;
/** Both phases are about warm code; while hydrating, there is no time for more. */
const RUN_IN_MS = 300;
const HYDRATION_TIMEOUT_MS = 120_000;
/** After the last block has arrived: the commits that make it durable. */
const SETTLE_MS = 2000;
const BLOCKS_BETWEEN_WRITES = 7919;
const STAT_BLOCK_BYTES = 512;
/** Between the 99th percentile and the median of flushes that nothing disturbs there is less than this. */
const DISTURBED_RATIO = 8;
const PHASE_MS_MIN = 400;

export interface FlushTimes {
  readonly idleMs: number;
}

export async function measureFlushes(disk: SourceDisk, pattern: Pattern, times: FlushTimes): Promise<Measurement> {
  const folder = await mkdtemp(join(disk.directory, "flush-"));
  try {
    await settle(folder);
    for (const range of disk.data) await warm(disk.path, range);
    using held = await holdPages(disk.path, disk.data);
    await using source = await serveTcp(NBDKIT, { image: disk.path, readOnly: true, directory: folder });
    await touchMemory(folder, disk.dataBytes * 1.25);
    const measurement = await flushBothWays(source, { disk, pattern, folder }, times);
    return held === undefined ? { ...measurement, notes: [...(measurement.notes ?? []), NOT_HELD] } : measurement;
  } finally {
    await rm(folder, { recursive: true });
  }
}

interface Scene {
  readonly disk: SourceDisk;
  readonly pattern: Pattern;
  readonly folder: string;
}

async function flushBothWays(source: ServedPort, scene: Scene, { idleMs }: FlushTimes): Promise<Measurement> {
  const { disk, folder, pattern } = scene;
  const [image, socketPath] = [join(folder, "overlay.raw"), join(folder, "nbd.sock")];
  const listen = ["-U", socketPath, "-C", join(folder, "control.sock")];
  await using clone = await ServerProcess.start({
    name: "blockferry clone",
    argv: [LAUNCHER, "clone", ...listen, source.uri, image],
    environment: { ...BUILT, XDG_RUNTIME_DIR: folder },
    ready: async () => (await NbdProbe.connect(socketPath))[Symbol.asyncDispose](),
  });
  const hydrating = async (): Promise<boolean> => {
    clone.assertRunning();
    return (await stat(image)).blocks * STAT_BLOCK_BYTES < disk.sizeBytes;
  };
  const guest = new Guest(await NbdProbe.connect(socketPath), disk.sizeBytes);
  await using _guest = guest;
  const startedMs = performance.now();
  const loaded = await guest.flushWhile(async () => {
    if (performance.now() - startedMs > HYDRATION_TIMEOUT_MS) throw new Error("it is not hydrated after two minutes");
    return await hydrating();
  });
  const loadedMs = performance.now() - startedMs;
  await delay(SETTLE_MS);
  const endMs = performance.now() + RUN_IN_MS + idleMs;
  const idle = await guest.flushWhile(() => Promise.resolve(performance.now() < endMs));
  const { peakRssBytes } = clone.usage();
  await guest[Symbol.asyncDispose]();
  await clone.stop();
  await source.stop();
  await verifyFile(image, { offset: 0, length: disk.sizeBytes }, pattern, guest.written);
  const values = { ...valuesOf(loaded, idle), peakRssBytes, bytesPerSecond: (disk.dataBytes / loadedMs) * 1000 };
  return { values, notes: notesOn(values) };
}

/** Whatever disturbs the quiet phase makes the other one look better than it was. */
function notesOn({ idleFlushP99Us, idleFlushP50Us }: ReturnType<typeof valuesOf>): string[] {
  const disturbed = idleFlushP99Us > DISTURBED_RATIO * idleFlushP50Us;
  return disturbed ? ["the quiet phase was disturbed: the slowdown is larger than it seems"] : [];
}

function valuesOf(loaded: Latencies, idle: Latencies) {
  const [flushes, idleFlushes] = [asScheduled(loaded.flushUs), asScheduled(idle.flushUs)];
  const [flushP99Us, idleFlushP99Us] = [percentile(flushes, 0.99), percentile(idleFlushes, 0.99)];
  return {
    flushP99Us,
    idleFlushP99Us,
    slowdown: flushP99Us / idleFlushP99Us,
    flushP50Us: percentile(flushes, 0.5),
    idleFlushP50Us: percentile(idleFlushes, 0.5),
    flushMaxUs: percentile(flushes, 1),
    idleFlushMaxUs: percentile(idleFlushes, 1),
    writeP99Us: percentile(asScheduled(loaded.writeUs), 0.99),
    idleWriteP99Us: percentile(asScheduled(idle.writeUs), 0.99),
    flushes: loaded.flushUs.length,
  };
}

function asScheduled(latenciesUs: readonly number[]): number[] {
  return withOmittedWaits(latenciesUs, EVERY_MS * 1000);
}

interface Latencies {
  readonly writeUs: readonly number[];
  readonly flushUs: readonly number[];
}

/** Writes every block at most once, spread over the whole disk, on a schedule. */
class Guest implements AsyncDisposable {
  readonly written = { pattern: new Pattern("guest write", WRITTEN_BYTES), offsets: new Set<number>() };
  readonly #probe: NbdProbe;
  readonly #blocks: number;

  constructor(probe: NbdProbe, sizeBytes: number) {
    this.#probe = probe;
    this.#blocks = sizeBytes / WRITTEN_BYTES;
  }

  /** What came in the first moments, with code that was not compiled yet, is left out. */
  async flushWhile(goOn: () => Promise<boolean>): Promise<Latencies> {
    const [writeUs, flushUs]: [number[], number[]] = [[], []];
    const startedMs = performance.now();
    for (let dueMs = startedMs; await goOn(); dueMs = Math.max(dueMs + EVERY_MS, performance.now())) {
      await delay(Math.max(0, dueMs - performance.now()));
      const [begunMs, wroteMs, flushedMs] = await this.#writeAndFlush();
      if (begunMs - startedMs < RUN_IN_MS) continue;
      writeUs.push((wroteMs - begunMs) * 1000);
      flushUs.push((flushedMs - wroteMs) * 1000);
    }
    const phaseMs = performance.now() - startedMs - RUN_IN_MS;
    if (phaseMs < PHASE_MS_MIN) throw new Error(`over in ${phaseMs.toFixed(0)} ms: take a larger --size`);
    return { writeUs, flushUs };
  }

  async #writeAndFlush(): Promise<[number, number, number]> {
    const offset = ((this.written.offsets.size * BLOCKS_BETWEEN_WRITES) % this.#blocks) * WRITTEN_BYTES;
    if (this.written.offsets.has(offset)) throw new Error("the disk is too small for so many writes");
    this.written.offsets.add(offset);
    const begunMs = performance.now();
    await this.#probe.write(offset, Buffer.from(this.written.pattern.expected(offset, WRITTEN_BYTES)));
    const wroteMs = performance.now();
    await this.#probe.flush();
    return [begunMs, wroteMs, performance.now()];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#probe[Symbol.asyncDispose]();
  }
}
