/** What a hydrator works on, what it is told, and how it ends. */
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import type { ClusterRange } from "./cluster-range.ts";
import type { Order } from "./order.ts";
import type { SourceState } from "./source-session.ts";
import type { WindowStatus } from "./window-control.ts";

/** What is hydrated. `Overlay` is one. Errors that the source answered come as `SourceAnsweredError`. */
export interface HydrationTarget {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly clusters: number;
  readonly localClusters: number;
  /** Runs from `first` on and before `end`. */
  missing(first?: number, end?: number): AsyncGenerator<ClusterRange>;
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

/** How much is fetched at a time, where somebody else counts the bytes under way. `SendWindow` is one. */
export interface Pace {
  /** Of the next fetch. */
  readonly unitBytes: number;
  /** What may be fetched, wait to be fetched, or wait to be stored. */
  readonly bytesMax: number;
  /** Asked for and not answered. */
  readonly bytesAsked: number;
  /** A fixed window in bytes; undefined: it follows the path. */
  fix(bytes: number | undefined): void;
  status(): WindowStatus;
}

export interface HydratorOptions {
  readonly clock: Clock;
  readonly chaos: Chaos;
  /** Stays the caller's; to be closed after the hydrator. */
  readonly target: HydrationTarget;
  /** The background session. Taken over: closed at the end, which also ends the fetches that wait for it. */
  readonly source: HydrationSource;
  /** Without it the window is one of `windowUnits` fetches. */
  readonly pace?: Pace;
  readonly windowUnits?: number;
  readonly fetchUnitBytes?: number;
  /** It does nothing before this resolves; must not reject. Absent: it begins at once. */
  readonly begin?: Promise<void>;
  /** What comes before everything else, the first one first. */
  readonly orders?: readonly Order[];
  /** Somebody else is bringing the range: the cluster behind which to go on. */
  readonly avoid?: (range: ClusterRange) => number | undefined;
  /** Bytes per second; undefined: no limit. */
  readonly rate?: number;
  readonly failedRetryMs?: number;
  readonly noSpaceRetryMs?: number;
}

export type HydrationOutcome =
  | { readonly state: "complete" }
  | { readonly state: "failed"; readonly error: unknown }
  | { readonly state: "closed" };

export const WINDOW_UNITS_DEFAULT = 8;
export const WINDOW_UNITS_MAX = 256;

/** Throws `RangeError`. */
export function checkWindow(units: number): number {
  if (!(Number.isInteger(units) && units >= 1 && units <= WINDOW_UNITS_MAX)) {
    throw new RangeError(`${units} fetches at a time are not within 1 to ${WINDOW_UNITS_MAX}`);
  }
  return units;
}

const FETCH_UNIT_BYTES_DEFAULT = 1024 * 1024;
/** With a rate limit units are what it lets pass in this time, so that data do not come in bursts; but not less than this. */
const LIMITED_UNIT_MS = 100;
const LIMITED_UNIT_BYTES_MIN = 64 * 1024;

/** How long the next unit of data should be; `rate`: the limit in bytes per second. */
export function unitBytesOf({ pace, fetchUnitBytes }: HydratorOptions, rate: number | undefined): number {
  const unit = fetchUnitBytes ?? pace?.unitBytes ?? FETCH_UNIT_BYTES_DEFAULT;
  return rate === undefined ? unit : Math.min(unit, Math.max(LIMITED_UNIT_BYTES_MIN, (rate * LIMITED_UNIT_MS) / 1000));
}
