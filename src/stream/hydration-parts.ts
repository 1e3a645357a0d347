/** What a hydrator works on, what it is told, and how it ends. */
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import type { SourceState } from "./source-session.ts";
import type { ClusterRange } from "./units.ts";

/** What is hydrated. `Overlay` is one. Errors that the source answered come as `SourceAnsweredError`. */
export interface HydrationTarget {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly clusters: number;
  readonly localClusters: number;
  missing(first?: number): AsyncGenerator<ClusterRange>;
  /** Fetches and stores what is missing of the clusters. Resolves to the bytes stored. */
  fetchBackground(range: ClusterRange): Promise<number>;
  zeroBackground(range: ClusterRange): Promise<number>;
  /** Rejects with `BlockError("invalid")` while anything is missing. */
  complete(): Promise<void>;
}

/** Where the target fetches from, as far as hydration has to know. `ReconnectingSource` is one. */
export interface HydrationSource {
  readonly state: SourceState;
  onState(listener: (state: SourceState) => void): () => void;
  extents(offset: number, length: number, countMax: number): Promise<Extent[]>;
  close(): Promise<void>;
}

export interface HydratorOptions {
  readonly clock: Clock;
  readonly chaos: Chaos;
  /** Stays the caller's; to be closed after the hydrator. */
  readonly target: HydrationTarget;
  /** The background session. Taken over: closed at the end, which also ends the fetches that wait for it. */
  readonly source: HydrationSource;
  readonly windowUnits?: number;
  readonly fetchUnitBytes?: number;
  /** Bytes per second; undefined: no limit. */
  readonly rate?: number;
  readonly failedRetryMs?: number;
  readonly noSpaceRetryMs?: number;
}

export type HydrationOutcome =
  | { readonly state: "complete" }
  | { readonly state: "failed"; readonly error: unknown }
  | { readonly state: "closed" };
