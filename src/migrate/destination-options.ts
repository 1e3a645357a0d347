/** What a destination is told when it is made, and what it tells of itself. */
import type { BlockDevice } from "../block/device.ts";
import type { MapState, OverlayStore } from "../block/overlay-store.ts";
import type { Overlay } from "../cor/overlay.ts";
import type { Env } from "../env/env.ts";
import type { Channel } from "../link/channel.ts";
import type { LinkLimits } from "../link/limits.ts";
import type { LinkStatus } from "../link/link-options.ts";
import type { Upgraded } from "../link/upgrade.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import type { HydrationProgress } from "../stream/progress.ts";
import type { StallTimes } from "../stream/stall-times.ts";
import type { HeatStatus } from "./late-order.ts";
import type { Mode } from "./messages.ts";
import type { MigrationEvent } from "./phase-book.ts";
import type { DestinationPhase, Shown } from "./phases.ts";

/** An image format, joined by whoever puts things together. */
export interface StoreFormat {
  /**
   * Makes a new image that carries the uuid, durable with its directory. `begun`: an earlier call with the same uuid may
   * have got anywhere; what it made is to be finished. Must refuse to touch any other image.
   */
  create(image: { readonly sizeBytes: number; readonly uuid: Uint8Array; readonly begun: boolean }): Promise<void>;
  /** Opens and locks it. Must refuse an image that does not carry the uuid, unless it is complete. */
  open(image: {
    readonly sizeBytes: number;
    readonly uuid: Uint8Array;
    readonly clusterBytes: number;
    readonly state: MapState;
  }): Promise<OverlayStore>;
}

export interface DestinationDisk {
  /** As on the source. */
  readonly name: string;
  /** There must be nothing at this path when a migration begins, unless `mayTake` says otherwise. */
  readonly image: string;
  /** What its records are named after. Default: the image. */
  readonly records?: string;
  /**
   * The image is a device: it is there before and after, and is never removed. Rejects unless what is on it may be written
   * over.
   */
  readonly mayTake?: () => Promise<void>;
  readonly format: StoreFormat;
  /** Default: 4096. At most the source's grain (16 KiB). */
  readonly clusterBytes?: number;
}

export interface DestinationMigrationOptions {
  readonly env: Env;
  readonly disks: readonly DestinationDisk[];
  /** Exists, and is this migration's alone. */
  readonly stateDirectory: string;
  readonly mode: Mode;
  readonly earlyReads: "passthrough" | "refuse";
  /** Reads of what is missing while the link is down: wait for ever, or fail after `lossDeadlineMs`. */
  readonly onSourceLoss: "stall" | "eio";
  readonly lossDeadlineMs?: number;
  /** Bytes per second in the background, for each disk; undefined: no limit. */
  readonly rate?: number;
  /** For `precopy`: what may be left when it counts as ready. Default: 64 MiB in all. */
  readonly tailBytesMax?: number;
  /** This boot of the host. */
  readonly bootId: string;
  /** Makes an upgraded connection to the source's link port, in bounded time: `dialLink`. */
  readonly connect: (signal: AbortSignal) => Promise<Upgraded>;
  readonly log: ServerLog;
  readonly linkLimits?: Partial<LinkLimits>;
  /** The source has opened a tunnel: attach a sink, or destroy it. Without this, none is accepted. */
  readonly onTunnel?: (name: string, channel: Channel) => void;
  /** Resolves when nothing is in a tunnel: until then the link stays, even if the disks do not need it any more. */
  readonly tunnelsIdle?: () => Promise<void>;
  /**
   * Resolves when nobody needs the way back any more: once all is here and this is written down, the disks cannot be given
   * back, and a guest whose memory is still on its way may yet fail to arrive. Default: at once.
   */
  readonly mayComplete?: () => Promise<void>;
}

export interface DestinationExport {
  readonly name: string;
  readonly sizeBytes: number;
  /** For the guest's NBD server; never read-only. Its `close` does nothing. */
  readonly guest: BlockDevice;
  /** From activation on: for contexts (presence), `map` and `missing`. */
  overlay(): Overlay | undefined;
}

export interface DestinationDiskStatus {
  readonly name: string;
  readonly sizeBytes: number;
  /** Before activation: bytes that were pulled, as far as is known still as the source has them. */
  readonly pulledBytes: number;
  /** Before activation: bytes that were pulled in vain, because the guest changed them. */
  readonly pulledAgainBytes: number;
  /** From activation on. */
  readonly hydration: HydrationProgress | undefined;
  readonly stalls: StallTimes | undefined;
  /** What the source's guest used most is fetched first, as soon as the source has told. */
  readonly heat: HeatStatus | undefined;
  readonly guestWrote: boolean;
}

/** As JSON; times are durations. */
export interface DestinationStatus {
  readonly role: "destination";
  readonly phase: DestinationPhase;
  readonly shown: Shown<DestinationPhase>;
  readonly forMs: number;
  readonly migrationId: string | undefined;
  readonly destinationId: string;
  readonly term: number;
  readonly owner: "destination" | "not here";
  readonly mode: Mode;
  /** Pulling, or hydration, was stopped by an operator. */
  readonly paused: boolean;
  readonly disks: readonly DestinationDiskStatus[];
  readonly link: LinkStatus | undefined;
  readonly lastError: string | undefined;
}

export type DestinationEvent = MigrationEvent<DestinationPhase>;
