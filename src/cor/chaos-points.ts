/**
 * The ordering points of the overlay at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production;
 * each is known to be caught by a test.
 */
export const COR_CHAOS_POINTS = {
  "cor/map-before-data": "a commit writes and syncs the map before it syncs the store",
  "cor/ack-before-map-sync": "a commit is reported as done before its map sectors are synced",
  "cor/seal-after-barrier": "a commit seals after the store was synced instead of before",
  "cor/live-map": "a commit writes the live presence bits instead of the sealed ones",
  "cor/flush-shortcut-always": "every flush syncs the store alone, whatever the map lacks",
  "cor/retry-sync": "a failed sync is forgotten, and the next flush tries again",
  "cor/bit-at-request": "a cluster counts as present before its data is in the store",
  "cor/fetch-overwrites-newer": "a fetch reply is stored without looking at its claim",
  "cor/check-without-lock": "the lock is given back between the check of the claim and the write",
  "cor/partial-trim-sets-bit": "a discard or zero takes the clusters at its edges as whole",
  "cor/zero-without-punch": "a cluster becomes local zero without its old contents being removed",
  "cor/stale-slot": "the older of two valid map sectors is loaded",
  "cor/rewrite-skipped": "after an unclean end the loaded map sectors are trusted without being written again",
  "cor/log-skipped": "guest writes are acknowledged without a record in the intent log",
  "cor/log-before-data": "a guest write is recorded in the intent log before it is in the store",
  "cor/log-half-too-early": "the half of the intent log whose records are not durable yet is written over",
  "cor/buffer-too-early": "a buffer is handed back while the store still writes from it",
  "cor/replay-not-rewritten": "what an intent log tells of counts as written, although its sync may have failed unseen",
  "cor/log-of-any-boot": "an intent log is replayed although the host has been down since",
} as const;

export type CorChaosPoint = keyof typeof COR_CHAOS_POINTS;
