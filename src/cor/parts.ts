/** What the pieces of an overlay share, and the arithmetic of clusters. */
import type { BlockDevice } from "../block/device.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Chaos } from "../env/chaos.ts";
import type { RangeLock } from "../util/range-lock.ts";
import type { Claims } from "./claims.ts";
import type { Commit } from "./commit.ts";
import type { IntentLog } from "./intent-log.ts";
import type { Presence } from "./presence.ts";

export interface OverlayParts {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly store: OverlayStore;
  /** For what a guest waits for. */
  readonly backing: BlockDevice;
  /** The same contents, over a session whose queue does not delay demand reads. */
  readonly background: BlockDevice;
  /** The same contents, for what is fetched ahead of reads. */
  readonly ahead: BlockDevice;
  readonly presence: Presence;
  readonly commit: Commit;
  readonly log: IntentLog;
  readonly claims: Claims;
  /** Of clusters. Held for every store write; never across a request to the backing. */
  readonly locks: RangeLock;
  readonly chaos: Chaos;
}

type Geometry = Pick<OverlayParts, "sizeBytes" | "clusterBytes">;

/** First and last cluster that [offset, offset + length) touches; `length` is not 0. */
export function clustersOf({ clusterBytes }: Geometry, offset: number, length: number): [first: number, last: number] {
  return [Math.floor(offset / clusterBytes), Math.floor((offset + length - 1) / clusterBytes)];
}

/** Where clusters [first, last] begin and end: the last cluster of the device may be short. */
export function bytesOf(
  { sizeBytes, clusterBytes }: Geometry,
  first: number,
  last: number,
): [start: number, end: number] {
  return [first * clusterBytes, Math.min((last + 1) * clusterBytes, sizeBytes)];
}

/** `presence.run`, once its page is in memory. */
export async function runOf(
  presence: Presence,
  first: number,
  last: number,
): Promise<{ present: boolean; last: number }> {
  for (;;) {
    const run = presence.run(first, last);
    if (run !== undefined) return run;
    await presence.load(first);
  }
}

/** Makes [first, last] present; its store writes have completed, and its lock is held. */
export async function addTo(presence: Presence, first: number, last: number): Promise<void> {
  while (!presence.add(first, last)) for (let at = first; at <= last; ) at = (await runOf(presence, at, last)).last + 1;
}
