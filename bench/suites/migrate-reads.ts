/**
 * Samples of a guest that reads, over a line, what is still at the source after the switchover: a guest with a working
 * set, whose reads at the source were seen or were not; and readers while everything else keeps the line busy.
 */
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { NbdProbe } from "../lib/nbd-probe.ts";
import { percentile, withOmittedWaits } from "../lib/stats.ts";
import type { Measurement } from "../lib/suite.ts";
import { DISK, type MoveOptions } from "./migrate-modes.ts";
import { Rig, type Sidecar } from "./migrate-rig.ts";

const MIB = 2 ** 20;
const BLOCK_BYTES = 4096;
/** Of a round trip: what took longer has been to the source. */
const REMOTE_PART = 0.9;
const WORKING_SET = 0.05;
const READS_SEEN_A_REGION = 16;
const THINK_MS = 1;
const READERS = 4;
const READ_EVERY_MS = 10;
const TUNNEL_PIECE_BYTES = 1 << 18;
/** Odd: they visit each of a power of two of places once. */
const [REGION_STRIDE, BLOCK_STRIDE] = [0x9e5, 7919 * 104_729];

export interface ReadOptions extends MoveOptions {
  readonly measureMs: number;
}

/** `seen`: the guest has used its working set at the source. */
export async function measureWorkingSet(seen: boolean, options: ReadOptions): Promise<Measurement> {
  const { distance, measureMs, sizeBytes } = options;
  await using rig = await Rig.create({ ...options, disks: [DISK] });
  const source = await rig.source();
  const places = workingSet(sizeBytes);
  if (seen) await useAll(rig.use(await source.probe(DISK)), places);
  const { address } = await rig.reach(source);
  const dest = await rig.dest(address, ["--mode", "postcopy"]);
  const guest = rig.use(await dest.probe(DISK));
  await switchOver(source);
  const endMs = performance.now() + measureMs;
  const tookMs: number[] = [];
  const blocks = (places.length * MIB) / BLOCK_BYTES;
  for (let step = 1; performance.now() < endMs; step++) {
    const block = (step * BLOCK_STRIDE) % blocks;
    const offset = (places[Math.floor((block * BLOCK_BYTES) / MIB)] ?? 0) + ((block * BLOCK_BYTES) % MIB);
    tookMs.push(await timedRead(guest, offset, options));
    await delay(THINK_MS);
  }
  await finish(rig, dest);
  const stalls = tookMs.filter((ms) => ms >= REMOTE_PART * distance.rttMs);
  const stallMs = stalls.reduce((sum, ms) => sum + ms, 0);
  return { values: { stallMs, stalls: stalls.length, reads: tookMs.length, maxMs: Math.max(...tookMs) } };
}

/** `tunnel`: a guest's memory, say, goes over the same link as fast as it can. */
export async function measureDemand(tunnel: boolean, options: ReadOptions): Promise<Measurement> {
  const { distance, measureMs, sizeBytes } = options;
  await using rig = await Rig.create({ ...options, disks: [DISK] });
  const [entry, exit] = [join(rig.folder, "source", "ram.sock"), join(rig.folder, "dest", "ram.sock")];
  const source = await rig.source(["--tunnel", `ram=unix:${entry}`]);
  const { address, line } = await rig.reach(source);
  if (line === undefined) throw new Error("no line");
  const dest = await rig.dest(address, ["--mode", "postcopy", "--tunnel", `ram=unix:${exit}`]);
  const probes = await Promise.all(Array.from({ length: READERS }, () => dest.probe(DISK)));
  for (const probe of probes) rig.use(probe);
  await switchOver(source);
  const flood = tunnel ? await startFlood(entry, exit) : undefined;
  await using _flood = flood;
  await delay(measureMs / 4);
  await line.resetStats();
  const tunnelBefore = flood?.receivedBytes() ?? 0;
  const endMs = performance.now() + measureMs;
  const all = await Promise.all(
    probes.map(async (probe, index) => {
      const tookMs: number[] = [];
      const blocks = sizeBytes / BLOCK_BYTES;
      for (let block = index + 1; performance.now() < endMs; block = (block + BLOCK_STRIDE) % blocks) {
        const ms = await timedRead(probe, block * BLOCK_BYTES, options);
        if (ms >= REMOTE_PART * distance.rttMs) tookMs.push(ms);
        await delay(Math.max(0, READ_EVERY_MS - ms));
      }
      return withOmittedWaits(tookMs, READ_EVERY_MS + distance.rttMs);
    }),
  );
  const { up, down } = await line.stats();
  const tunnelBytes = (flood?.receivedBytes() ?? 0) - tunnelBefore;
  await flood?.[Symbol.asyncDispose]();
  await finish(rig, dest);
  const waits = all.flat();
  const [p99Ms, residenceP99Ms] = [percentile(waits, 0.99), up.residenceMs.p99 + down.residenceMs.p99];
  const bytesPerSecond = (Math.max(up.deliveredBytes, down.deliveredBytes) / measureMs) * 1000;
  return {
    values: {
      ...{ p99Ms, p50Ms: percentile(waits, 0.5), residenceP99Ms, reads: waits.length },
      beyondP99Ms: p99Ms - distance.rttMs - residenceP99Ms,
      lineLatenessP99Ms: up.latenessMs.p99 + down.latenessMs.p99,
      lineUse: (bytesPerSecond * 8) / (distance.bitsPerSecond ?? Number.POSITIVE_INFINITY),
      tunnelBytesPerSecond: (tunnelBytes / measureMs) * 1000,
    },
  };
}

/** The guest does not write, so that nothing is in the way. */
async function switchOver(source: Sidecar): Promise<void> {
  const { done } = await source.call("switchover", { wait: true });
  if (!done) throw new Error("the switchover did not take place");
}

/** All that the guest has read was right; now all of it has to be there, and right. */
async function finish(rig: Rig, dest: Sidecar): Promise<void> {
  await dest.reached("complete");
  await dest.server.stop();
  const { pattern } = rig.options;
  await rig.verify(() => ({ pattern, offsets: new Set() }));
}

async function timedRead(probe: NbdProbe, offset: number, { pattern }: ReadOptions): Promise<number> {
  const begunMs = performance.now();
  const bytes = await probe.read(offset, BLOCK_BYTES);
  const tookMs = performance.now() - begunMs;
  const wrong = pattern.mismatch(bytes, offset);
  if (wrong >= 0) throw new Error(`the guest: the byte at ${wrong} is not that of "${pattern.tag}"`);
  return tookMs;
}

/** Offsets of whole MiB, all over the disk. */
function workingSet(sizeBytes: number): number[] {
  const regions = sizeBytes / MIB;
  const count = Math.round(regions * WORKING_SET);
  return Array.from({ length: count }, (_, index) => (((index + 1) * REGION_STRIDE) % regions) * MIB);
}

async function useAll(probe: NbdProbe, places: readonly number[]): Promise<void> {
  const step = MIB / READS_SEEN_A_REGION;
  for (const place of places) for (let at = 0; at < MIB; at += step) await probe.read(place + at, BLOCK_BYTES);
}

interface Flood extends AsyncDisposable {
  receivedBytes(): number;
}

/** Sends into one end of the tunnel and takes out of the other, as much as passes. */
async function startFlood(entry: string, exit: string): Promise<Flood> {
  let received = 0;
  const server = createServer((socket) => {
    socket.on("data", (bytes: Buffer) => {
      received += bytes.length;
    });
    socket.on("error", () => socket.destroy());
  }).listen(exit);
  await once(server, "listening");
  const sender = connect(entry);
  sender.on("error", () => sender.destroy());
  await once(sender, "connect");
  const piece = Buffer.alloc(TUNNEL_PIECE_BYTES, "memory of a guest ");
  const more = (): void => {
    while (!sender.destroyed && sender.writable && sender.write(piece));
  };
  sender.on("drain", more);
  more();
  return {
    receivedBytes: () => received,
    [Symbol.asyncDispose]: async () => {
      if (sender.destroyed) return;
      sender.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
