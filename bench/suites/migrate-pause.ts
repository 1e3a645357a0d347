/**
 * One sample of a switchover's pause, as a client sees it: from the last write that the source has accepted, on any disk,
 * to the first that the destination has accepted on each of them.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { NbdProbe } from "../lib/nbd-probe.ts";
import type { Pattern } from "../lib/pattern.ts";
import type { Measurement } from "../lib/suite.ts";
import { DiskGuest } from "./migrate-guest.ts";
import { Rig, type Sidecar } from "./migrate-rig.ts";

const EVERY_MS = 5;
const POLL_MS = 20;
const PULLED_TIMEOUT_MS = 60_000;
/** PREPARE, GRANT and what answers them. */
export const ROUND_TRIPS = 3;
/** Nearly all is there: the guest writes on, and what it writes has to be brought again. */
const PULLED_PART = 0.9;

/**
 * `stopped`: the guest has stopped before the switchover is asked for, as the documentation has it. `held`: it writes on,
 * and the switchover is forced; the pause begins when its first write is held.
 */
export type PauseWay = "stopped" | "held";

export interface PauseOptions {
  readonly disks: readonly string[];
  readonly sizeBytes: number;
  readonly rttMs: number;
  readonly pattern: Pattern;
}

export async function measurePause(way: PauseWay, options: PauseOptions): Promise<Measurement> {
  const { rttMs, sizeBytes, disks } = options;
  await using rig = await Rig.create({ ...options, ...(rttMs > 0 && { distance: { rttMs } }) });
  const source = await rig.source();
  const { address } = await rig.reach(source);
  const dest = await rig.dest(address);
  const guests = new Map(disks.map((disk) => [disk, new DiskGuest(sizeBytes)]));
  const stop = new AbortController();
  const probes = await probesOf(rig, source);
  const writing = eachOf(guests, (guest, disk) => guest.writeUntil(stop.signal, probes(disk), EVERY_MS));
  // In one of the ways it ends with a write that is never accepted.
  writing.catch(() => undefined);
  await dest.reached("ready");
  await pulled(dest);
  const later = await probesOf(rig, dest);
  if (way === "stopped") {
    stop.abort();
    await writing;
  }
  const asked = source.call("switchover", { force: way === "held" });
  const arrive = async (guest: DiskGuest, disk: string): Promise<{ lastMs: number; firstMs: number }> => {
    const lastMs = await guest.firstWrite(later(disk));
    return { lastMs, firstMs: guest.acceptedMs };
  };
  // All disks come at once. One client that tries is enough to see it: to refuse several would be work for the destination.
  const [first, ...others] = [...guests].map(
    ([disk, guest]) =>
      () =>
        arrive(guest, disk),
  );
  const seen = [await first?.(), ...(await Promise.all(others.map((it) => it())))].filter((it) => it !== undefined);
  stop.abort();
  const { pauseSeconds, syncSeconds } = await asked;
  const pauseMs = Math.max(...seen.map((it) => it.firstMs)) - Math.max(...seen.map((it) => it.lastMs));
  await dest.reached("complete");
  await dest.server.stop();
  await rig.verify((disk) => guests.get(disk) ?? new DiskGuest(sizeBytes));
  const reportedMs = (pauseSeconds ?? Number.NaN) * 1000;
  const syncMs = (syncSeconds ?? Number.NaN) * 1000;
  return { values: { pauseMs, syncMs, beyondMs: pauseMs - syncMs - ROUND_TRIPS * rttMs, reportedMs } };
}

function eachOf<T>(
  guests: ReadonlyMap<string, DiskGuest>,
  ask: (guest: DiskGuest, disk: string) => Promise<T>,
): Promise<T[]> {
  return Promise.all([...guests].map(([disk, guest]) => ask(guest, disk)));
}

async function probesOf(rig: Rig, side: Sidecar): Promise<(disk: string) => NbdProbe> {
  const probes = new Map<string, NbdProbe>();
  for (const disk of rig.options.disks) probes.set(disk, rig.use(await side.probe(disk)));
  return (disk) => {
    const probe = probes.get(disk);
    if (probe === undefined) throw new Error(`no disk ${disk}`);
    return probe;
  };
}

async function pulled(dest: Sidecar): Promise<void> {
  const deadlineMs = performance.now() + PULLED_TIMEOUT_MS;
  for (;;) {
    const { disks } = await dest.call("status", {});
    if (disks.every((it) => it.localBytes >= PULLED_PART * it.sizeBytes)) return;
    if (performance.now() > deadlineMs) throw new Error("the destination does not pull");
    await delay(POLL_MS);
  }
}
