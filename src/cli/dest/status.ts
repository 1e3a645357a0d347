/** What a destination tells of itself. Pure. */
import type { DiskStatus, MigrationStatus, Status } from "../../control/status.ts";
import type { DestinationDiskStatus, DestinationStatus } from "../../migrate/destination-options.ts";
import type { DestinationPhase } from "../../migrate/phases.ts";
import { diskState, hydrationState, hydrationStatus, stallStatus } from "../clone/status.ts";
import { cut, linkStatus, sourceOverLink } from "../migration/link-status.ts";
import { type Progress, progressLine } from "../progress/format.ts";
import type { GuestArrivalStatus } from "./guest-arrival.ts";
import type { DestDiskPlan } from "./plan.ts";

export function migrationStatus(
  status: DestinationStatus,
  address: string,
  guest?: GuestArrivalStatus,
): MigrationStatus {
  const { phase, shown, forMs, owner, term, mode, migrationId, destinationId, disks } = status;
  return {
    ...{ phase, shown, owner, term, mode, destinationId },
    ...{ forSeconds: forMs / 1000, migrationId: migrationId ?? null },
    destinationWrote: disks.some((disk) => disk.guestWrote),
    link: linkStatus(address, status.link),
    lastError: cut(status.lastError),
    ...(guest !== undefined && {
      guest: { phase: guest.phase, sentBytes: null, restBytes: null, lastError: cut(guest.lastError) },
    }),
  };
}

export function overallState(status: DestinationStatus): Status["state"] {
  const { phase, shown, paused } = status;
  if (phase === "failed") return "failed";
  if (phase === "complete" || phase === "cancelled") return "complete";
  if (phase === "setup") return "starting";
  if (paused) return "paused";
  if (status.disks.some(({ hydration }) => hydration !== undefined && hydrationState(hydration) === "failed"))
    return "failed";
  const stalled = status.disks.some(
    ({ hydration }) => hydration !== undefined && hydrationState(hydration) === "stalled",
  );
  return shown === "disconnected" || stalled ? "stalled" : "running";
}

export interface DiskStatusOptions {
  readonly disk: DestDiskPlan;
  readonly status: DestinationStatus;
  /** Where the source is. */
  readonly address: string;
  readonly clusterBytes: number | null;
  readonly wallMs: number;
}

export function diskStatus({ disk, status, address, clusterBytes, wallMs }: DiskStatusOptions): DiskStatus {
  const found = status.disks.find(({ name }) => name === disk.name);
  const sizeBytes = found?.sizeBytes ?? 0;
  const localBytes = localBytesOf(found);
  const { hydration, stalls } = found ?? {};
  return {
    ...{ name: disk.name, image: disk.image, format: disk.format.name, readOnly: false, sizeBytes, clusterBytes },
    ...{ localBytes, missingBytes: sizeBytes - localBytes },
    state: hydration === undefined ? EARLY_STATES[status.phase] : diskState(hydration),
    hydration: hydration === undefined ? null : hydrationStatus(hydration),
    ...(stalls !== undefined && { stalls: stallStatus(stalls) }),
    source: sourceOverLink(address, status.link, wallMs),
    ...(found !== undefined && { pulledAgainBytes: found.pulledAgainBytes }),
    ...(found?.heat !== undefined && { heat: found.heat }),
  };
}

/** Before there is hydration. */
const EARLY_STATES: Readonly<Record<DestinationPhase, DiskStatus["state"]>> = {
  setup: "created",
  precopy: "running",
  ready: "ready",
  active: "running",
  hydrated: "pending",
  complete: "concluded",
  returning: "pending",
  cancelled: "aborting",
  failed: "aborting",
};

/** Before activation, what was pulled: it may turn out not to count. */
function localBytesOf(disk: DestinationDiskStatus | undefined): number {
  if (disk === undefined) return 0;
  return Math.min(disk.sizeBytes, disk.hydration?.localBytes ?? disk.pulledBytes);
}

const RECONNECTS = "bring the link back; it reconnects by itself";

/** What the operator should do now. docs/RUNBOOK.md says more about each. */
export function nextStep(status: DestinationStatus): string | null {
  const { phase, shown } = status;
  const away = shown === "disconnected";
  switch (phase) {
    case "setup":
      return "start the source, or correct its address";
    case "precopy":
      return away ? RECONNECTS : "blockferry switchover --wait";
    case "ready":
      return away ? RECONNECTS : "blockferry switchover";
    case "active":
      return activeStep(status);
    case "hydrated":
      return away ? `${RECONNECTS}; the source is not needed for the disks, and has only to be told` : null;
    case "complete":
      return "the images stand alone: the source may go";
    case "returning":
      if (status.owner === "destination")
        return "see the last error, and put it right: it then lets go of the disks by itself";
      return away ? `${RECONNECTS}; the source then has its disks back` : null;
    case "cancelled":
      return "the source has the disks; begin a new migration";
    case "failed":
      return "see the last error and the log; start it again when that is put right";
  }
}

function activeStep({ shown, paused, disks }: DestinationStatus): string | null {
  if (paused) return "blockferry resume";
  if (shown === "disconnected") return `${RECONNECTS}; blockferry missing lists what is not here`;
  const states = disks.map(({ hydration }) => hydration?.state);
  if (states.includes("failed")) return "check the local disk and the kernel log, then start it again";
  if (states.includes("no-space")) return "make room on the images' file system; it goes on by itself";
  if (states.includes("incomplete")) return "see blockferry missing: the source cannot read these blocks";
  return "blockferry wait --for=complete; then the source may go";
}

/** All disks together. Undefined: nothing is known of them yet. */
export function progressOf(status: DestinationStatus): Progress | undefined {
  const { disks } = status;
  if (disks.length === 0) return undefined;
  const sum = (of: (disk: DestinationDiskStatus) => number): number => disks.reduce((all, disk) => all + of(disk), 0);
  const etas = disks.map(({ hydration }) => hydration?.etaMs);
  const slowest = etas.includes(undefined) ? null : Math.max(...etas.map((eta) => eta ?? 0)) / 1000;
  const state = overallState(status);
  return {
    localBytes: sum(localBytesOf),
    sizeBytes: sum(({ sizeBytes }) => sizeBytes),
    rateBytesPerSecond: sum(({ hydration }) => hydration?.bytesPerSecond ?? 0),
    etaSeconds: slowest,
    state: PROGRESS_STATES[state] ?? (status.phase === "hydrated" ? "hydrated" : "hydrating"),
    stalledReason: state === "stalled" ? (status.shown === "disconnected" ? "the link is down" : null) : null,
  };
}

const PROGRESS_STATES: Readonly<Partial<Record<Status["state"], Progress["state"]>>> = {
  complete: "hydrated",
  paused: "paused",
  stalled: "stalled",
  failed: "failed",
};

export function statusLine(status: DestinationStatus): string {
  const { phase, shown } = status;
  const progress = progressOf(status);
  const far = progress === undefined ? "" : `, ${progressLine(progress)}`;
  return `dest: ${phase}${shown === phase ? "" : ` (${shown})`}${far}`;
}
