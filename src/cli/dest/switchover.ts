/** The switchover as an operator asks for it at the destination. Who writes, the source knows, and refuses if it has to. */
import { ControlError } from "../../control/errors.ts";
import type { SwitchoverReport } from "../../control/status.ts";
import type { ParamsOf } from "../../control/verbs.ts";
import type { DestinationMigration } from "../../migrate/destination.ts";
import type { DestinationStatus } from "../../migrate/destination-options.ts";
import { whenShown } from "../migration/when-shown.ts";
import type { GuestArrival } from "./guest-arrival.ts";

export interface Switching {
  readonly migration: DestinationMigration;
  readonly guest: GuestArrival | undefined;
}

export async function switchover(
  { migration, guest }: Switching,
  { dryRun = false, wait = false, force = false }: ParamsOf<"switchover">,
  signal: AbortSignal,
): Promise<SwitchoverReport> {
  if (dryRun) return rehearsal(migration.status(), await guest?.problems());
  if (wait) {
    if (migration.status().owner === "destination") return report(migration.status());
    const shown = await whenShown(migration, ["ready", "active", "hydrated", "complete", ...OVER], signal);
    if (OVER.some((phase) => phase === shown)) throw over(migration.status());
  }
  await migration.switchover({ force });
  const { phase, lastError } = (await guest?.outcome()) ?? {};
  if (phase === "failed" || phase === "abandoned") {
    const why = `the guest has not come: ${lastError ?? "see the log"}`;
    throw new ControlError("cancelled", why, "see `blockferry status` on the source");
  }
  return report(migration.status());
}

const OVER = ["returning", "cancelled", "failed"] as const;

function over({ phase, lastError }: DestinationStatus): ControlError {
  return new ControlError("cancelled", `the migration is over (${phase}): ${lastError ?? "see the log"}`, "begin anew");
}

function rehearsal(status: DestinationStatus, problems: readonly string[] = []): SwitchoverReport {
  const { phase, shown, owner } = status;
  const early = phase === "ready" ? null : `the migration is in phase ${phase}, not ready`;
  const away = shown === "disconnected" ? "the link is down" : (early ?? problems[0] ?? null);
  return { ...report(status), obstacle: owner === "destination" ? "the disks are here already" : away };
}

function report(status: DestinationStatus): SwitchoverReport {
  const { phase, disks, link, owner } = status;
  const rest = disks.map(({ hydration, sizeBytes, pulledBytes }) => {
    return hydration?.missingBytes ?? Math.max(0, sizeBytes - pulledBytes);
  });
  return {
    done: owner === "destination",
    phase,
    ...{ obstacle: null, writes: null, flushSeconds: null, pauseSeconds: null, syncSeconds: null },
    restBytes: rest.reduce((sum, bytes) => sum + bytes, 0),
    rttSeconds: link?.rttMs === undefined ? null : link.rttMs / 1000,
  };
}
