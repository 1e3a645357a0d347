/**
 * The states of a hydration, as a table.
 * - `running`: fetching, or about to. `paused`: by an operator, and by nobody else. `disconnected`: the source is away, or
 *   is another disk. `no-space`: the local disk is full. `incomplete`: all that is still missing is what the source could
 *   not give; it is asked again slowly. The last four end by themselves, but for `paused`.
 * - `completing`: everything is local, and is being made durable. `complete`: it is, and the source may go.
 * - `failed`: the local disk failed, or a bug. `closed`: stopped before it was complete.
 */
export type HydrationState =
  | "running"
  | "paused"
  | "disconnected"
  | "no-space"
  | "incomplete"
  | "completing"
  | "complete"
  | "failed"
  | "closed";

const ENDS = ["failed", "closed"] as const;

export const HYDRATION_EDGES: Readonly<Record<HydrationState, readonly HydrationState[]>> = {
  running: ["paused", "disconnected", "no-space", "incomplete", "completing", ...ENDS],
  paused: ["running", "disconnected", "no-space", "incomplete", "completing", ...ENDS],
  disconnected: ["running", "paused", "no-space", "incomplete", "completing", ...ENDS],
  "no-space": ["running", "paused", "disconnected", "incomplete", "completing", ...ENDS],
  incomplete: ["running", "paused", "disconnected", "no-space", "completing", ...ENDS],
  completing: ["running", "paused", "disconnected", "no-space", "incomplete", "complete", ...ENDS],
  complete: [],
  failed: [],
  closed: [],
};
