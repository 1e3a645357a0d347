/**
 * What `status` tells, as one schema. Keys are a contract with scripts: they may be added, never renamed. Sizes are bytes,
 * rates bytes a second, durations seconds, instants ISO 8601 in UTC.
 *
 * Words: a disk's `state` is that of a QMP job; `hydration` speaks as dm-clone does.
 */
import * as z from "zod";
import { ERRORS_LISTED_MAX } from "./limits.ts";

const bytes = z.int().min(0);
const count = z.int().min(0);
const name = z.string().max(4096);
const instant = z.string().max(64);
const seconds = z.number().min(0);

export const ReadError = z.object({
  offset: bytes,
  length: bytes,
  /** POSIX name, as in "EIO". */
  code: z.string().max(32),
  /** How often it was tried. */
  count,
});
export type ReadError = z.output<typeof ReadError>;

export const Hydration = z.object({
  /** `stalled`: it would go on, but cannot; `stalledReason` says why. `hydrated`: nothing is missing, and that is durable. */
  state: z.enum(["hydrating", "paused", "stalled", "hydrated", "failed"]),
  rateBytesPerSecond: z.number().min(0),
  /** What the operator allows; null: no limit. */
  rateLimitBytesPerSecond: z.number().min(0).nullable(),
  etaSeconds: seconds.nullable(),
  elapsedSeconds: seconds,
  stalledReason: z.string().max(1024).nullable(),
  /** Received from the source, demand reads included. */
  fetchedBytes: bytes,
  /** Known to be zero without having been received. */
  zeroBytes: bytes,
  /** Background bytes that may be asked for and not here yet, and how long an answer takes: lately, and without a queue. */
  windowBytes: bytes.optional(),
  rttSeconds: seconds.optional(),
  minRttSeconds: seconds.optional(),
  /** Ranges that the source cannot give us; the first ones. */
  errors: z.array(ReadError).max(ERRORS_LISTED_MAX),
  errorsTotal: count,
});
export type Hydration = z.output<typeof Hydration>;

export const StallTimes = z.object({
  count,
  totalSeconds: seconds,
  p50Seconds: seconds,
  p99Seconds: seconds,
  maxSeconds: seconds,
});
export type StallTimes = z.output<typeof StallTimes>;

export const SourceStatus = z.object({
  uri: name,
  state: z.enum(["connecting", "connected", "disconnected", "refused", "released"]),
  /** When it came into that state. */
  since: instant,
  reconnects: count,
  lastError: z.string().max(1024).nullable(),
});
export type SourceStatus = z.output<typeof SourceStatus>;

/** Of an image that was not closed cleanly: its tables are checked beside the guest's work. */
export const TableCheck = z.object({
  /** pending: nothing has been read or written yet · clean: done, and nothing is wrong · failed: nothing is allocated */
  state: z.enum(["pending", "running", "clean", "failed"]),
  clustersChecked: count,
  clustersTotal: count,
  /** Requests that wait at the barrier now: writes that need new space in the image. */
  waiting: count,
  /** The longest that any has waited. */
  longestWaitSeconds: seconds,
  /** Entries that a crash had left, and that were taken out. */
  entriesCleared: count,
  failure: z.string().max(1024).nullable(),
});
export type TableCheck = z.output<typeof TableCheck>;

/** With `--qmp`: how far the guest is on its way. */
export const GuestStatus = z.object({
  /** As docs/RUNBOOK.md lists them. */
  phase: z.string().max(64),
  /** Of a source: memory that QEMU has sent, and what it believes to be left. */
  sentBytes: bytes.nullable(),
  restBytes: bytes.nullable(),
  lastError: z.string().max(1024).nullable(),
});
export type GuestStatus = z.output<typeof GuestStatus>;

/** Of a source or destination. */
export const MigrationStatus = z.object({
  /** As docs/RUNBOOK.md lists them. */
  phase: z.string().max(64),
  /** The phase, or "disconnected" while the link is down in a phase that needs it. */
  shown: z.string().max(64),
  forSeconds: seconds,
  /** Who may write. `nobody`: the destination has not said yet that it has the disks. `not here`: all a destination knows. */
  owner: z.enum(["source", "destination", "nobody", "not here"]),
  term: count,
  mode: z.enum(["hybrid", "postcopy", "precopy"]).nullable(),
  migrationId: z.string().max(64).nullable(),
  destinationId: z.string().max(64).nullable(),
  /** The destination's guest has written: the disks cannot come back. Null: not known here. */
  destinationWrote: z.boolean().nullable(),
  link: z.object({
    /** Where the source listens. */
    address: name,
    state: z.enum(["connecting", "connected", "disconnected", "closed", "refused"]),
    forSeconds: seconds,
    /** So far; one at a time. */
    connections: count,
    rttSeconds: seconds.nullable(),
    /** On the present connection. */
    sentBytes: bytes,
    receivedBytes: bytes,
  }),
  lastError: z.string().max(1024).nullable(),
  guest: GuestStatus.optional(),
});
export type MigrationStatus = z.output<typeof MigrationStatus>;

/** What a switchover has done, or with `dryRun` would do. */
export const SwitchoverReport = z.object({
  done: z.boolean(),
  phase: z.string().max(64),
  /** Why it would not be done now; null: nothing is in the way. */
  obstacle: z.string().max(1024).nullable(),
  /** Changes that clients began while they were watched for a moment; null: this side does not know. */
  writes: count.nullable(),
  /** What the destination has still to fetch afterwards, as far as is known. */
  restBytes: bytes,
  rttSeconds: seconds.nullable(),
  /** How long a flush of all disks takes now; null: this side does not know. */
  flushSeconds: seconds.nullable(),
  /** From the instant when writes are held until the destination has the disks: expected, or as it was. */
  pauseSeconds: seconds.nullable(),
  /** Of these, what was spent on making things durable: flushes, fences, the destination's maps and record; null: not known. */
  syncSeconds: seconds.nullable(),
  /** With `--qmp`: whether the guest runs over there now, and how long it stood still; null: not known. */
  guest: z.object({ running: z.boolean(), stoodStillSeconds: seconds.nullable() }).optional(),
});
export type SwitchoverReport = z.output<typeof SwitchoverReport>;

export const DiskStatus = z.object({
  name: name,
  image: name,
  format: z.string().max(64),
  readOnly: z.boolean().default(false),
  sizeBytes: bytes,
  /** The unit of presence; null where everything is local. */
  clusterBytes: bytes.nullable(),
  localBytes: bytes,
  missingBytes: bytes,
  /**
   * created: opening · running: the rest is on its way · paused: by the operator · ready: a switchover would succeed ·
   * pending: everything is here, and being made durable · concluded: the image stands alone · aborting: it failed
   */
  state: z.enum(["created", "running", "paused", "ready", "pending", "concluded", "aborting"]),
  hydration: Hydration.nullable(),
  /** How long reads waited for what was missing. */
  stalls: StallTimes.optional(),
  source: SourceStatus.nullable(),
  tableCheck: TableCheck.optional(),
  /** Of a source: what the destination has pulled and has not changed since. */
  cleanBytes: bytes.optional(),
  /** Of a source: clients' changes that wait for the end of a switchover. */
  writesHeld: count.optional(),
  /** Of a destination: what was pulled in vain, because the guest changed it before the switchover. */
  pulledAgainBytes: bytes.optional(),
  /** Of a destination, once the source has told what its guest used most: regions, and of them those whose turn has come. */
  heat: z.object({ regionBytes: bytes, regions: count, taken: count }).optional(),
});
export type DiskStatus = z.output<typeof DiskStatus>;

export const Status = z.object({
  program: z.string().max(64),
  version: z.string().max(64),
  pid: z.int().min(1),
  role: z.enum(["serve", "clone", "source", "dest"]),
  state: z.enum(["starting", "running", "paused", "stalled", "complete", "stopping", "failed"]),
  startedAt: instant,
  uptimeSeconds: seconds,
  /** What `wait` would not wait for any more. */
  reached: z.array(z.string().max(64)).max(16),
  disks: z.array(DiskStatus).max(64),
  /** NBD clients in transmission. */
  clients: count,
  /** Where clients reach the disks. */
  uris: z.array(name).max(64),
  migration: MigrationStatus.optional(),
  /** What the operator should do now; null: nothing. */
  next: z.string().max(4096).nullable(),
});
export type Status = z.output<typeof Status>;
