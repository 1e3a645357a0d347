/**
 * The ordering points of QED images at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production;
 * each is known to be caught by a test.
 */
export const QED_CHAOS_POINTS = {
  "qed/no-barrier": "allocating writes do not wait for the table check",
  "qed/entry-before-data": "a table entry is written before the data that it points to is durable",
  "qed/l1-before-l2": "an L1 entry is written before the L2 table that it points to is durable",
  "qed/flag-not-set": "the first allocating write does not set NEED_CHECK",
  "qed/flag-unsynced": "the first allocating write does not wait until NEED_CHECK is durable",
  "qed/clear-without-flush": "NEED_CHECK is cleared before what was written under it is durable",
  "qed/check-trusts-cache": "the check believes the cached tables, from which wrong entries are gone already",
  "qed/repair-unsynced": "allocation begins before the entries that the check has cleared are durable",
  "qed/cluster-unlocked": "two writes to one unallocated cluster may both allocate it",
  "qed/no-copy": "a partly written cluster is not filled from the backing",
} as const;

export type QedChaosPoint = keyof typeof QED_CHAOS_POINTS;

/** The same of images as the stores of overlays. */
export const QED_OVERLAY_CHAOS_POINTS = {
  "qed/space-unsynced": "an overlay's entries point to space that is not durably part of the file",
  "qed/rewrite-skipped": "after an unclean end an overlay's tables are trusted without being written again",
} as const;
