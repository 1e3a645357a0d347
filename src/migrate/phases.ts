/**
 * The phases of a migration, as tables: one for each role. A state changes along the edges of its table and in no other way.
 *
 * That the link is down is not a phase: whatever the phase is, it stays, and everything resumes by itself. A status shows
 * it as "disconnected" (`shownPhase`), because that is what an operator wants to know first.
 */

/**
 * - `setup`: waits for a destination. `precopy`: there is one, and it may pull. `ready`: a switchover would succeed now.
 * - `frozen`: writes are held; reads and flushes are answered. It is still the owner, and can go back.
 * - `granted`: the fence is durable on every disk. The destination may be the owner, or not know it yet.
 * - `serving`: the destination is the owner and fetches the rest. `released`: it has everything, durably.
 * - `cancelled`: this source is the owner again, of disks that nobody else may write; `setup` follows at once.
 * - `failed`: the records cannot be written or do not go together; somebody has to look.
 */
export type SourcePhase =
  | "setup"
  | "precopy"
  | "ready"
  | "frozen"
  | "granted"
  | "serving"
  | "released"
  | "cancelled"
  | "failed";

export const SOURCE_EDGES: Readonly<Record<SourcePhase, readonly SourcePhase[]>> = {
  setup: ["precopy", "cancelled", "failed"],
  precopy: ["ready", "cancelled", "failed"],
  ready: ["precopy", "frozen", "cancelled", "failed"],
  frozen: ["ready", "granted", "cancelled", "failed"],
  granted: ["serving", "released", "cancelled", "failed"],
  serving: ["released", "cancelled", "failed"],
  released: ["cancelled", "failed"],
  cancelled: ["setup"],
  failed: [],
};

/**
 * - `setup`: the sizes of the disks are learnt, the images made. `precopy`: pulls; what it has pulled is provisional.
 * - `ready`: a grant would be taken up at once. `active`: the owner; what is missing is fetched. `hydrated`: all of it is
 *   here, durably. `complete`: and the source knows it.
 * - `returning`: it has let go of the disks, declined or given back. The source does not know it yet: it is told once that is
 *   durable, and while it cannot be written down, `lastError` says why.
 * - `cancelled`: the source has the disks, and nothing is left of the images here.
 */
export type DestinationPhase =
  | "setup"
  | "precopy"
  | "ready"
  | "active"
  | "hydrated"
  | "complete"
  | "returning"
  | "cancelled"
  | "failed";

export const DESTINATION_EDGES: Readonly<Record<DestinationPhase, readonly DestinationPhase[]>> = {
  setup: ["precopy", "returning", "cancelled", "failed"],
  precopy: ["ready", "active", "returning", "cancelled", "failed"],
  ready: ["precopy", "active", "returning", "cancelled", "failed"],
  active: ["hydrated", "returning", "failed"],
  hydrated: ["complete", "failed"],
  complete: [],
  returning: ["cancelled", "failed"],
  cancelled: [],
  failed: [],
};

/** What a status calls the phase while the link is down. */
export type Shown<Phase extends string> = Phase | "disconnected";

const NEEDS_NO_LINK: ReadonlySet<string> = new Set(["setup", "released", "complete", "cancelled", "failed"]);

export function shownPhase<Phase extends string>(phase: Phase, connected: boolean): Shown<Phase> {
  return connected || NEEDS_NO_LINK.has(phase) ? phase : "disconnected";
}
