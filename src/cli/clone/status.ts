/** What a running clone tells: `status`, progress, and the line that SIGUSR1 asks for. Pure, from what the parts say. */

import { ERRORS_LISTED_MAX } from "../../control/limits.ts";
import type { DiskStatus, Hydration, SourceStatus, Status } from "../../control/status.ts";
import type { HydrationProgress } from "../../stream/progress.ts";
import type { SourceStatus as SessionStatus, SourceState } from "../../stream/source-session.ts";
import type { StallTimes } from "../../stream/stall-times.ts";
import { type Progress, progressLine } from "../progress/format.ts";

const REASONS = {
  operator: "paused by the operator",
  connecting: "connecting to the source",
  source: "the source is away",
  "no-space": "the local disk is full",
  "source-errors": "the source cannot read what is left",
  "local-disk": "the local disk has failed",
  "rate-limit": "the rate limit lets nothing more pass for now",
  "slow-disk": "the local disk takes long to store",
  "slow-source": "the source answers, but its reads take long",
  line: "the source does not answer: it is stuck, or the line to it",
} as const;

/** Of the hydration, in the words of the control socket. */
export function hydrationState(progress: HydrationProgress): Hydration["state"] {
  switch (progress.state) {
    case "running":
    case "completing":
      return "hydrating";
    case "paused":
      return "paused";
    case "complete":
      return "hydrated";
    case "failed":
      return "failed";
    case "disconnected":
    case "no-space":
    case "incomplete":
    case "closed":
      return "stalled";
  }
}

export function hydrationStatus(progress: HydrationProgress): Hydration {
  const { failed, stalledBy } = progress;
  return {
    state: hydrationState(progress),
    rateBytesPerSecond: progress.bytesPerSecond,
    rateLimitBytesPerSecond: progress.rateLimit ?? null,
    etaSeconds: progress.etaMs === undefined ? null : progress.etaMs / 1000,
    elapsedSeconds: progress.elapsedMs / 1000,
    stalledReason: stalledBy === undefined ? null : (progress.error ?? REASONS[stalledBy]),
    fetchedBytes: progress.fetchedBytes,
    zeroBytes: progress.zeroBytes,
    ...windowStatus(progress),
    errors: failed.ranges.slice(0, ERRORS_LISTED_MAX).map(({ offset, length, code, attempts }) => ({
      ...{ offset, length, count: attempts },
      code: code === "no-space" ? "ENOSPC" : code === "permission" ? "EPERM" : "EIO",
    })),
    errorsTotal: failed.ranges.length + failed.unlisted,
  };
}

function windowStatus({ window }: HydrationProgress): Pick<Hydration, "windowBytes" | "rttSeconds" | "minRttSeconds"> {
  if (window === undefined) return {};
  const { windowBytes, rttMs, minRttMs } = window;
  return {
    windowBytes: Math.round(windowBytes),
    ...(rttMs !== undefined && { rttSeconds: rttMs / 1000 }),
    ...(minRttMs !== undefined && { minRttSeconds: minRttMs / 1000 }),
  };
}

/** How long clients waited for what was missing. */
export function stallStatus({ count, totalMs, p50Ms, p99Ms, maxMs }: StallTimes): NonNullable<DiskStatus["stalls"]> {
  return {
    count,
    totalSeconds: totalMs / 1000,
    p50Seconds: p50Ms / 1000,
    p99Seconds: p99Ms / 1000,
    maxSeconds: maxMs / 1000,
  };
}

const SOURCE_STATES: Readonly<Record<SourceState, SourceStatus["state"]>> = {
  connecting: "connecting",
  connected: "connected",
  disconnected: "disconnected",
  mismatch: "refused",
  closed: "released",
};

export function sourceStatus(uri: string, session: SessionStatus, wallMs: number): SourceStatus {
  return {
    uri,
    state: SOURCE_STATES[session.state],
    since: new Date(wallMs - session.forMs).toISOString(),
    reconnects: session.reconnects,
    lastError: session.lastError?.slice(0, 1000) ?? null,
  };
}

/** A disk whose hydration is as `progress` says. */
export function diskState(progress: HydrationProgress): DiskStatus["state"] {
  if (progress.state === "complete") return "concluded";
  if (progress.state === "failed") return "aborting";
  if (progress.state === "completing") return "pending";
  return progress.state === "paused" ? "paused" : "running";
}

export function overallState(progress: HydrationProgress): Status["state"] {
  if (progress.stalledBy === "connecting") return "starting";
  const state = hydrationState(progress);
  if (state === "hydrated") return "complete";
  return state === "hydrating" ? "running" : state;
}

/** What the operator should do now. */
export function nextStep(progress: HydrationProgress, source: SourceState): string | null {
  if (progress.state === "complete") return "the image stands alone: the source may go";
  if (source === "mismatch") return "bring back the source that the copy was begun from: another disk answers there";
  if (progress.state === "failed") return "check the local disk and the kernel log, then run the same command again";
  if (progress.state === "paused") return "blockferry resume";
  if (progress.state === "no-space") return "make room on the image's file system; it goes on by itself";
  if (progress.stalledBy === "source") return "bring the source back; it reconnects by itself";
  if (progress.state === "incomplete") return "see `blockferry missing`: the source cannot read these blocks";
  return null;
}

export function progressOf(progress: HydrationProgress): Progress {
  const { rateBytesPerSecond, etaSeconds, state, stalledReason } = hydrationStatus(progress);
  const { localBytes, totalBytes: sizeBytes } = progress;
  return { localBytes, sizeBytes, rateBytesPerSecond, etaSeconds, state, stalledReason };
}

export function statusLine(image: string, progress: HydrationProgress): string {
  return `${image}: ${progressLine(progressOf(progress))}`;
}
