/**
 * The ordering points of qcow2 images at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production;
 * each is known to be caught by a test.
 */
export const QCOW2_CHAOS_POINTS = {
  "qcow2/count-unsynced": "clusters are used before their counts are durable",
  "qcow2/block-unsynced": "the refcount table points to a block that is not durable",
  "qcow2/table-unsynced": "the header points to a refcount table that is not durable",
  "qcow2/entry-before-data": "a table entry is written before the data that it points to is durable",
  "qcow2/cluster-unlocked": "two writes to one unallocated cluster may both allocate it",
  "qcow2/no-copy": "a partly written cluster is not filled from what lay there before",
  "qcow2/writes-not-drained": "a write in place may land behind the entry of a cluster that was zeroed meanwhile",
  "qcow2/no-barrier": "allocating writes do not wait for the table check",
  "qcow2/repair-unsynced": "the dirty bit goes before what the check has repaired is durable",
  "qcow2/place-not-cleared": "the place of a zero cluster is used as it is",
} as const;

export type Qcow2ChaosPoint = keyof typeof QCOW2_CHAOS_POINTS;

/** The same of images as the stores of overlays. */
export const QCOW2_OVERLAY_CHAOS_POINTS = {
  "qcow2/rewrite-skipped": "after an unclean end an overlay's tables are trusted without being written again",
} as const;
