/** The phases of a migration on the source QEMU, as a table, and how it can end. */
import type { StatusInfo } from "./messages.ts";

/**
 * - `moving-memory`: the guest runs. `handing-over`: it stands still, and its disks go to the destination.
 * - `finishing`: they are there; QEMU sends the last of the memory.
 */
export type SourcePhase = "idle" | "preparing" | "moving-memory" | "handing-over" | "finishing" | "ended";

export const SOURCE_EDGES: Readonly<Record<SourcePhase, readonly SourcePhase[]>> = {
  // Someone who was restarted takes up a migration in any phase.
  idle: ["preparing", "moving-memory"],
  preparing: ["idle", "moving-memory"],
  "moving-memory": ["handing-over", "finishing", "ended"],
  "handing-over": ["finishing", "ended"],
  finishing: ["ended"],
  ended: ["preparing", "moving-memory"],
};

/** Instants on `Clock.nowMs`; undefined for what did not come to pass. */
export interface SourceTimes {
  readonly startedMs: number;
  /** QEMU said that the guest has stopped. */
  readonly stoppedMs?: number;
  /** QEMU said that everything waits for the hand-over. */
  readonly pausedMs?: number;
  /** The disks were the destination's. */
  readonly givenMs?: number;
  readonly endedMs: number;
}

/**
 * - `completed`: the destination QEMU has all of the guest, and may be continued if `guestWasRunning`; undefined: nobody
 *   has said.
 * - `kept`: the disks were not given away, and the guest is here; whoever froze the disks may thaw them. It runs again if
 *   it ran before, as far as `guest` says.
 * - `stranded`: QEMU's migration failed after the disks were given away, or somebody has let the guest go on here since it
 *   had completed. **The guest is here and runs**, as far as `guest` says: it must get its disks back.
 * - `undecided`: the hand-over broke off without saying who has the disks. The guest stands still, and
 *   QEMU waits: `adopt`, with what has been found out since, ends it.
 * - `lost`: the monitor is gone, and QEMU may be too; or what is there has never migrated, and is another QEMU than before.
 *   `adopt` takes the migration up over a new connection.
 */
export type SourceOutcome = { readonly times: SourceTimes } & (
  | { readonly kind: "completed"; readonly guestWasRunning: boolean | undefined }
  | { readonly kind: "kept" | "stranded"; readonly guest: StatusInfo; readonly reason: Error }
  | { readonly kind: "undecided"; readonly reason: Error }
  | { readonly kind: "lost"; readonly given: boolean; readonly reason: Error }
);
