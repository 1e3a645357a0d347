/** What a source is told when it is made, and what it tells of itself. */
import type { BlockDevice } from "../block/device.ts";
import type { Env } from "../env/env.ts";
import type { Channel } from "../link/channel.ts";
import type { LinkLimits } from "../link/limits.ts";
import type { LinkStatus } from "../link/link-options.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import type { MigrationEvent } from "./phase-book.ts";
import type { Shown, SourcePhase } from "./phases.ts";

export interface SourceDisk {
  /** As `DiskName`: letters, digits, ".", "_" and "-", at most 48. The name of its exports on both sides. */
  readonly name: string;
  /** Where the image is, beside which its owner's record lies; of a device, what its records are named after. */
  readonly image: string;
  /** Open and locked; stays the caller's. Nobody else may write to it while the migration has it. */
  readonly device: BlockDevice;
}

export interface SourceLimits {
  /** How long a switchover waits for the destination, before anything is given away. */
  readonly prepareMsMax: number;
  /** How long requests that were accepted may take to finish, and the flush after them. */
  readonly drainMsMax: number;
  /** How finely is told what guests have changed; a power of two. Default: 16 KiB, more for disks above 1 TiB. */
  readonly grainBytes?: number;
  /** How finely is noted what guests use. Default: 1 MiB. */
  readonly heatRegionBytes?: number;
}

export const SOURCE_LIMITS: SourceLimits = { prepareMsMax: 5000, drainMsMax: 30_000 };

export interface SourceMigrationOptions {
  readonly env: Env;
  readonly disks: readonly SourceDisk[];
  /** Exists, and is this migration's alone. */
  readonly stateDirectory: string;
  readonly log: ServerLog;
  /** The devices cannot be read yet: a destination pulls nothing before it has the disks. */
  readonly late?: boolean;
  /** What a destination may pull in the background, in bytes a second for each disk; undefined: as much as it likes. */
  readonly rate?: number | undefined;
  readonly limits?: Partial<SourceLimits>;
  readonly linkLimits?: Partial<LinkLimits>;
  /**
   * The destination's operator wants a switchover: in place of `switchover`, which it may call, or reject. `force`: although
   * the guest is writing.
   */
  readonly onSwitchRequest?: (force: boolean) => Promise<void>;
  /** The destination has opened a tunnel here: attach a sink, or destroy it. Without this, none is accepted. */
  readonly onTunnel?: (name: string, channel: Channel) => void;
}

/** As guests use it, and as plain NBD clients of the link port may read it. */
export interface SourceExport {
  readonly name: string;
  /** For the guest's NBD server. Its `close` does nothing. */
  readonly guest: BlockDevice;
  /** For exports of the link port: read-only. */
  readonly plain: BlockDevice;
}

export interface SourceDiskStatus {
  readonly name: string;
  readonly sizeBytes: number;
  /** Writes, zeroes and discards that were accepted and are not done. */
  readonly writesUnderWay: number;
  readonly writesHeld: number;
  /** Bytes that the destination has pulled and that have not changed since. */
  readonly cleanBytes: number;
}

/** As JSON; times are durations. */
export interface SourceStatus {
  readonly role: "source";
  readonly phase: SourcePhase;
  readonly shown: Shown<SourcePhase>;
  readonly forMs: number;
  readonly migrationId: string;
  readonly destinationId: string | undefined;
  readonly term: number;
  /** Who may write: "nobody" between the fence and the destination's word. */
  readonly owner: "source" | "destination" | "nobody";
  /** The destination's guest has written: the disks cannot come back. */
  readonly destinationWrote: boolean;
  readonly mode: "hybrid" | "postcopy" | "precopy" | undefined;
  readonly disks: readonly SourceDiskStatus[];
  readonly link: LinkStatus;
  /** What became of the last attempt, or went wrong last. */
  readonly lastError: string | undefined;
}

export type SourceEvent = MigrationEvent<SourcePhase>;
