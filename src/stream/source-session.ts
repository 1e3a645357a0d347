/** A session with a source, and the states of having one, as a table. */
import type { BlockDevice } from "../block/device.ts";

/**
 * - `connecting`: since the start, not once connected. `connected`: reads are answered.
 * - `disconnected`: lost, or out of reach; tried again with growing pauses. `mismatch`: what answers is another disk;
 *   somebody has to look, and it is tried again slowly. `closed`: by us, for good.
 */
export type SourceState = "connecting" | "connected" | "disconnected" | "mismatch" | "closed";

export const SOURCE_EDGES: Readonly<Record<SourceState, readonly SourceState[]>> = {
  connecting: ["connected", "disconnected", "mismatch", "closed"],
  connected: ["disconnected", "closed"],
  disconnected: ["connected", "mismatch", "closed"],
  mismatch: ["connected", "disconnected", "closed"],
  closed: [],
};

/** A device over a link that can be lost; operations that this cuts off reject with `ConnectionLostError`. `NbdClient` is one. */
export interface SourceSession extends BlockDevice {
  onLost(listener: (error: Error) => void): () => void;
  /** Breaks the link at once; whatever is pending fails. Idempotent. */
  drop(why: string): void;
}

/** As JSON in a status. Times are durations. */
export interface SourceStatus {
  readonly state: SourceState;
  readonly forMs: number;
  /** Sessions after the first one. */
  readonly reconnects: number;
  /** Attempts that have failed since there was a session. */
  readonly failedAttempts: number;
  readonly bytesRead: number;
  /** Reads that wait for a session. */
  readonly waiting: number;
  /** Why the last session ended or the last attempt failed. */
  readonly lastError?: string;
}
