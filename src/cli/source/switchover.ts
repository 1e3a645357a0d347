/** The switchover as an operator asks for it: who is in the way, what it would take, and how long it took. */
import { ControlError } from "../../control/errors.ts";
import type { SwitchoverReport } from "../../control/status.ts";
import type { ParamsOf } from "../../control/verbs.ts";
import type { Clock } from "../../env/clock.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import type { SourceStatus } from "../../migrate/source-options.ts";
import type { WriteMeter } from "../migration/metered-device.ts";
import { whenShown } from "../migration/when-shown.ts";
import type { GuestMove } from "./guest-move.ts";
import type { GuestMoved } from "./guest-moved.ts";
import type { OpenedDisk } from "./images.ts";

export interface Switching {
  readonly clock: Clock;
  readonly migration: SourceMigration;
  readonly disks: readonly OpenedDisk[];
  readonly meter: WriteMeter;
  readonly guest: GuestMove | undefined;
}

/** A guest that has changed nothing for so long has stopped: one that is busy writes more often. */
const WATCH_MS = 10;
/** PREPARE, GRANT and what answers them. */
const ROUND_TRIPS = 3;

export async function switchover(
  source: Switching,
  { dryRun = false, wait = false, force = false }: ParamsOf<"switchover">,
  signal: AbortSignal,
): Promise<SwitchoverReport> {
  const { migration, clock, guest } = source;
  if (dryRun) return await rehearse(source);
  if (guest === undefined && (migration.phase === "serving" || migration.phase === "released")) {
    return report(migration.status(), {});
  }
  if (wait) await whenShown(migration, ["ready", "granted", "serving", "released"], signal);
  let frozenMs: number | undefined;
  let servingMs: number | undefined;
  const unsubscribe = migration.onEvent((event) => {
    if (event.kind === "phase" && event.phase === "frozen") frozenMs = clock.nowMs();
    if (event.kind === "phase" && event.phase === "serving") servingMs = clock.nowMs();
  });
  let moved: GuestMoved | undefined;
  try {
    if (guest === undefined) await give(source, force);
    else moved = await guest.move();
  } finally {
    unsubscribe();
  }
  const pauseMs = frozenMs !== undefined && servingMs !== undefined ? servingMs - frozenMs : undefined;
  return report(migration.status(), {
    ...(pauseMs !== undefined && { pauseSeconds: pauseMs / 1000, syncSeconds: migration.syncMs / 1000 }),
    ...(moved !== undefined && { guest: told(moved) }),
  });
}

function told({ running, stoodStillMs }: GuestMoved): SwitchoverReport["guest"] {
  return { running, stoodStillSeconds: stoodStillMs === undefined ? null : stoodStillMs / 1000 };
}

/** The destination's operator has asked for it. Rejects as `switchover` does. */
export async function switchOnRequest(source: Switching, force: boolean): Promise<void> {
  if (source.guest !== undefined) return void (await source.guest.move());
  await give(source, force);
}

/** Rejects with `ControlError("writers")` while clients write. What they wrote would be theirs here and nobody's there. */
async function give({ clock, meter, migration }: Switching, force: boolean): Promise<void> {
  // Once the disks are given away it is too late for doubts.
  if (force || migration.phase === "granted") return await migration.switchover();
  const writes = watchWrites({ clock, meter }, WATCH_MS - meter.quietMs);
  if (meter.underWay > 0) throw writersError(meter.underWay);
  const confirm = async (): Promise<void> => {
    const count = await writes();
    if (count > 0) throw writersError(count);
  };
  await migration.switchover({ confirm });
}

function writersError(writes: number): ControlError {
  return new ControlError(
    "writers",
    `the guest is writing (${writes} ${writes === 1 ? "change" : "changes"} meanwhile), and would lose its disk here`,
    "pause the guest (QMP stop, virsh suspend), switch over, let it go on over there; or --force, which holds its writes",
  );
}

/** Begins to watch. What is returned resolves, after `ms` at the least, to the changes begun since, or under way then. */
function watchWrites({ clock, meter }: Pick<Switching, "clock" | "meter">, ms: number): () => Promise<number> {
  const { begun, underWay } = meter;
  const watched = ms > 0 && new Promise<void>((resolve) => clock.setTimer(ms, resolve));
  return async () => {
    await watched;
    return meter.begun - begun + underWay;
  };
}

async function rehearse(source: Switching): Promise<SwitchoverReport> {
  const { migration, clock, disks, guest } = source;
  const writes = await watchWrites(source, WATCH_MS)();
  const startMs = clock.nowMs();
  await Promise.all(disks.map(({ device }) => device.flush()));
  const flushSeconds = (clock.nowMs() - startMs) / 1000;
  const status = migration.status();
  const obstacle = guest === undefined ? obstacleOf(status, writes) : await guestObstacle(status, guest);
  const rttSeconds = status.link.rttMs === undefined ? null : status.link.rttMs / 1000;
  // The fences, and over there the map and the record, each cost about what a flush costs.
  const pauseSeconds = rttSeconds === null ? null : ROUND_TRIPS * rttSeconds + 4 * flushSeconds;
  return report(status, { writes, flushSeconds, pauseSeconds, obstacle });
}

/** QEMU stops the guest by itself: that it writes is in nobody's way. */
async function guestObstacle(status: SourceStatus, guest: GuestMove): Promise<string | null> {
  return obstacleOf(status, 0) ?? ((await guest.problems()).join("; ").slice(0, 1000) || null);
}

function obstacleOf({ phase, shown }: SourceStatus, writes: number): string | null {
  if (phase === "serving" || phase === "released") return "the destination has the disks already";
  if (shown === "disconnected") return "the link is down";
  if (phase !== "ready" && phase !== "granted") return `the migration is in phase ${phase}, not ready`;
  return writes > 0 && phase === "ready" ? "the guest is writing: pause it first, or use --force" : null;
}

function report(status: SourceStatus, more: Partial<SwitchoverReport>): SwitchoverReport {
  const { phase, disks, link } = status;
  return {
    done: phase === "serving" || phase === "released",
    ...{ phase, obstacle: null, writes: null, flushSeconds: null, pauseSeconds: null, syncSeconds: null },
    restBytes: phase === "released" ? 0 : disks.reduce((sum, it) => sum + Math.max(0, it.sizeBytes - it.cleanBytes), 0),
    rttSeconds: link.rttMs === undefined ? null : link.rttMs / 1000,
    ...more,
  };
}
