/** What a source tells of itself. Pure. */
import type { DiskStatus, MigrationStatus, Status } from "../../control/status.ts";
import type { SourcePhase } from "../../migrate/phases.ts";
import type { SourceStatus } from "../../migrate/source-options.ts";
import { cut, linkStatus } from "../migration/link-status.ts";
import type { GuestMoveStatus } from "./guest-moved.ts";
import type { OpenedDisk } from "./images.ts";

export function migrationStatus(status: SourceStatus, address: string, guest?: GuestMoveStatus): MigrationStatus {
  const { phase, shown, forMs, owner, term, mode, migrationId, destinationId, destinationWrote } = status;
  return {
    ...{ phase, shown, owner, term, migrationId, destinationWrote },
    ...{ forSeconds: forMs / 1000, mode: mode ?? null, destinationId: destinationId ?? null },
    link: linkStatus(address, status.link),
    lastError: cut(status.lastError),
    ...(guest !== undefined && { guest: { ...guest, lastError: cut(guest.lastError) } }),
  };
}

export function overallState({ phase, shown }: SourceStatus): Status["state"] {
  if (phase === "failed") return "failed";
  if (phase === "released") return "complete";
  return shown === "disconnected" ? "stalled" : "running";
}

const DISK_STATES: Readonly<Record<SourcePhase, DiskStatus["state"]>> = {
  setup: "created",
  precopy: "running",
  ready: "ready",
  frozen: "pending",
  granted: "pending",
  serving: "running",
  released: "concluded",
  cancelled: "created",
  failed: "aborting",
};

/** All of it is here, whoever owns it. */
export function diskStatus({ name, image, format }: OpenedDisk, status: SourceStatus): DiskStatus {
  const disk = status.disks.find((it) => it.name === name);
  const sizeBytes = disk?.sizeBytes ?? 0;
  return {
    ...{ name, image, format, readOnly: false, sizeBytes, clusterBytes: null },
    ...{ localBytes: sizeBytes, missingBytes: 0, state: DISK_STATES[status.phase], hydration: null, source: null },
    cleanBytes: Math.min(sizeBytes, disk?.cleanBytes ?? 0),
    writesHeld: disk?.writesHeld ?? 0,
  };
}

const RECONNECTS = "bring the link back; it reconnects by itself";

/** What the operator should do now. docs/RUNBOOK.md says more about each. */
export function nextStep({ phase, shown, destinationWrote }: SourceStatus, destLine: string): string | null {
  const away = shown === "disconnected";
  switch (phase) {
    case "setup":
    case "cancelled":
      return `on the other host: ${destLine}`;
    case "precopy":
      return away ? RECONNECTS : "blockferry wait --for=ready, then blockferry switchover";
    case "ready":
      return "blockferry switchover";
    case "frozen":
      return null;
    case "granted":
      if (!away) return null;
      return `${RECONNECTS}, and the destination then says whether it has the disks; if it is gone for good: blockferry reclaim`;
    case "serving":
      if (away) return `${RECONNECTS}; until then the destination lacks what it has not fetched`;
      return destinationWrote
        ? "keep this running until blockferry wait --for=complete"
        : "keep this running until blockferry wait --for=complete; blockferry cancel would bring the disks back";
    case "released":
      return "the destination has everything: blockferry quit, and the images here may be removed";
    case "failed":
      return "look at the log, and at the .owner files beside the images";
  }
}

export function statusLine(status: SourceStatus): string {
  const { phase, shown, disks, owner } = status;
  const clean = disks.reduce((sum, disk) => sum + disk.cleanBytes, 0);
  const all = disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
  const far = phase === "precopy" || phase === "ready" ? `, ${clean} of ${all} bytes pulled` : "";
  const whose = owner === "nobody" ? "nobody's" : `the ${owner}'s`;
  return `source: ${phase}${shown === phase ? "" : ` (${shown})`}, the disks are ${whose}${far}`;
}
