/**
 * One sample of a whole migration under a writing client, over a line: each of our modes, and QEMU's own way. The guest
 * stops when the destination is ready, goes on over there, and all that it has written is looked for at the end.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { LineProcess } from "../../tools/line/client.ts";
import type { Pattern } from "../lib/pattern.ts";
import type { Measurement } from "../lib/suite.ts";
import { DiskGuest } from "./migrate-guest.ts";
import { type Distance, Rig } from "./migrate-rig.ts";

export const DISK = "vda";
export const EVERY_MS = 10;
/** The guest writes for so long before anything is begun, so that it has been seen. */
const BEFORE_MS = 300;

export interface MoveOptions {
  readonly sizeBytes: number;
  readonly distance: Distance;
  readonly pattern: Pattern;
}

/** Instants of one migration, from its beginning. */
export interface Moved {
  /** The guest goes on over there. */
  readonly switchedMs: number;
  /** The source is not needed any more. */
  readonly releasedMs: number;
}

export async function measureMode(
  mode: "hybrid" | "postcopy" | "precopy",
  { sizeBytes, distance, pattern }: MoveOptions,
): Promise<Measurement> {
  await using rig = await Rig.create({ disks: [DISK], sizeBytes, distance, pattern });
  const source = await rig.source();
  const { address, line } = await rig.reach(source);
  if (line === undefined) throw new Error("no line");
  const guest = new DiskGuest(sizeBytes);
  const before = new AbortController();
  const writing = guest.writeUntil(before.signal, rig.use(await source.probe(DISK)), EVERY_MS);
  writing.catch(() => undefined);
  await delay(BEFORE_MS);

  const startedMs = performance.now();
  const dest = await rig.dest(address, ["--mode", mode]);
  await dest.reached("ready");
  const there = rig.use(await dest.probe(DISK));
  before.abort();
  await writing;
  const stoppedMs = guest.acceptedMs;
  const asked = source.call("switchover", { force: false });
  await guest.firstWrite(there);
  const switchedMs = guest.acceptedMs;
  await asked;
  const afterwards = new AbortController();
  const after = guest.writeUntil(afterwards.signal, there, EVERY_MS);
  after.catch(() => undefined);
  await dest.reached("hydrated");
  const releasedMs = performance.now() - startedMs;
  afterwards.abort();
  await after;
  await dest.reached("complete");
  const totalMs = performance.now() - startedMs;
  const moved = await movedBytes(line);
  await dest.server.stop();
  await rig.verify(() => guest);
  return {
    values: {
      ...valuesOf({ switchedMs: switchedMs - startedMs, releasedMs }, guest, switchedMs - stoppedMs),
      ...moved,
      totalMs,
    },
  };
}

export function valuesOf({ switchedMs, releasedMs }: Moved, guest: DiskGuest, pauseMs: number) {
  return { switchedMs, releasedMs, pauseMs, stallMs: guest.longestGapMs, writes: guest.offsets.size };
}

/** Both ways, as the line has counted them. */
export async function movedBytes(line: LineProcess): Promise<{ movedBytes: number; lineLatenessP99Ms: number }> {
  const { up, down } = await line.stats();
  return {
    movedBytes: up.deliveredBytes + down.deliveredBytes,
    lineLatenessP99Ms: up.latenessMs.p99 + down.latenessMs.p99,
  };
}
