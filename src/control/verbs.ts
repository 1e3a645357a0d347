/** What can be asked on a control socket: parameters and result of every verb. Both ends check both. */
import * as z from "zod";
import { RECENT_EVENTS_MAX, RUNS_PER_PAGE_MAX } from "./limits.ts";
import { ControlEvent } from "./messages.ts";
import { Status, SwitchoverReport } from "./status.ts";

/** Stages that `wait` knows, in the order in which an instance comes to them. */
export const MILESTONES = ["listening", "ready", "active", "hydrated", "complete"] as const;
export type Milestone = (typeof MILESTONES)[number];

const offset = z.int().min(0);
/** May be left out where there is one disk. */
const disk = z.string().max(4096).optional();
const rate = z.int().min(1).nullable();
const nothing = z.object({});

/** A page begins at `cursor`; `next` is where the following one begins, null after the last. Each page is as of its own instant. */
const pageParams = z.strictObject({ disk, cursor: offset.default(0) });

const page = { disk: z.string().max(4096), sizeBytes: offset, next: offset.nullable() };

export const VERBS = {
  status: { params: z.strictObject({ disk }), result: Status },
  /** The newest events; with `follow`, those to come as well, as messages of their own. */
  events: {
    params: z.strictObject({ follow: z.boolean().default(false) }),
    result: z.object({ recent: z.array(ControlEvent).max(RECENT_EVENTS_MAX) }),
  },
  /** `[offset, length, type]`, without gaps; type 0: local, 1: missing. */
  map: {
    params: pageParams,
    result: z.object({
      ...page,
      runs: z.array(z.tuple([offset, offset, z.union([z.literal(0), z.literal(1)])])).max(RUNS_PER_PAGE_MAX),
    }),
  },
  /** `[offset, length]` of what is not here. */
  missing: {
    params: pageParams,
    result: z.object({ ...page, runs: z.array(z.tuple([offset, offset])).max(RUNS_PER_PAGE_MAX) }),
  },
  /** Answers when the milestone is reached, or with `reached: false` after `timeoutMs` (null: waits as long as it takes). */
  wait: {
    params: z.strictObject({ for: z.enum(MILESTONES), timeoutMs: offset.nullable().default(null) }),
    result: z.object({ reached: z.boolean() }),
  },
  pause: { params: z.strictObject({ disk }), result: nothing },
  resume: { params: z.strictObject({ disk }), result: nothing },
  /** Limits the background copy; null lifts the limit. */
  "set-speed": { params: z.strictObject({ disk, bytesPerSecond: rate }), result: z.object({ bytesPerSecond: rate }) },
  /**
   * Gives the disks of a migration to its destination, and answers when it has them. `wait`: waits for `ready` first, as
   * long as it takes. `force`: although clients are writing. `dryRun`: only tells what would happen.
   */
  switchover: {
    params: z.strictObject({
      dryRun: z.boolean().default(false),
      wait: z.boolean().default(false),
      force: z.boolean().default(false),
    }),
    result: SwitchoverReport,
  },
  /** Calls a migration off; answers when the source has its disks. */
  cancel: { params: z.strictObject({ reason: z.string().min(1).max(200) }), result: nothing },
  /** Takes the disks back without asking a destination that cannot be running any more. */
  reclaim: { params: z.strictObject({ destinationIsFenced: z.literal(true) }), result: nothing },
  /** The instance ends as after SIGTERM; answered before that. */
  quit: { params: z.strictObject({}), result: nothing },
} as const;

export type VerbName = keyof typeof VERBS;
export type ParamsOf<V extends VerbName> = z.input<(typeof VERBS)[V]["params"]>;
export type ResultOf<V extends VerbName> = z.output<(typeof VERBS)[V]["result"]>;
