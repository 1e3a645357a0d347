/**
 * The ordering points of a migration at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production;
 * each is known to be caught by a test.
 */
export const MIGRATE_CHAOS_POINTS = {
  "migrate/grant-before-fence": "the source grants its disks before the fences are durable",
  "migrate/active-before-dirty-set": "the destination takes all that has landed as local, changed since or not",
  "migrate/clean-bit-after-read": "the source marks a grain as clean after it has read it for the destination",
  "migrate/release-before-complete": "the source is told of completion before it is durable on the destination",
  "migrate/tracking-ignored": "the destination keeps what it knows of a source that was restarted since",
  "migrate/held-writes-fail-on-thaw": "writes that were held fail when the source goes on after all",
  "migrate/landed-kept-while-pulling":
    "a grain that is pulled again counts as landed while its new bytes are on the way",
  "migrate/owner-before-returned": "the destination gives the disks back before that is durable",
  "migrate/first-write-not-noted": "a destination's guest may write before that is written down",
  "migrate/heat-ignored": "the destination brings a disk from its beginning to its end, whatever its guest used",
  "migrate/records-not-rewritten": "a restarted side relies on records that may be in the page cache only",
} as const;

export type MigrateChaosPoint = keyof typeof MIGRATE_CHAOS_POINTS;
