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
  /** What the operator should do now; null: nothing. */
  next: z.string().max(4096).nullable(),
});
export type Status = z.output<typeof Status>;
