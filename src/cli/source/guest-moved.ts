/** How a guest's move is going and what comes of it, as it is told; and what to do then. */
import type { MigrationInfo } from "../../qmp/messages.ts";
import type { SourcePhase } from "../../qmp/source-states.ts";

export interface GuestMoved {
  /** It runs over there, or did when it came; false: it was paused here. */
  readonly running: boolean;
  /** From the instant when it stopped here until it could go on there; undefined: not known. */
  readonly stoodStillMs: number | undefined;
}

/** As JSON. */
export interface GuestMoveStatus {
  readonly phase: SourcePhase | "starting" | "returning" | "started" | "failed";
  readonly sentBytes: number;
  readonly restBytes: number;
  readonly lastError: string | undefined;
}

export const LEFT_STANDING =
  "end the QEMU over there; then `cont` in the monitor of this one, while `blockferry status` says that the disks are here";
export const TWO_OF_THEM =
  "end one of them: QEMU here, if the guest is to go on over there; or QEMU over there, and then `blockferry cancel`";
export const LEFT_BEHIND =
  "the guest was on its way when an earlier process ended: `blockferry switchover` goes on with it, or brings it back";
export const AGAIN = "start the QEMU over there again, then `blockferry switchover`";

export function bytesOf(info: MigrationInfo | undefined): Partial<GuestMoveStatus> {
  if (info?.ram === undefined) return {};
  return { sentBytes: info.ram.transferred, restBytes: info.ram.remaining };
}
