/**
 * The switches of this room at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production; each is
 * known to be caught by a test.
 */
export const STREAM_CHAOS_POINTS = {
  "stream/answers-from-mismatched-source": "a session is used although its identity or size is another",
  "stream/lost-wake-up": "reads that wait for a session are not told that there is one",
  "stream/lost-read-is-done": "a read whose link was lost counts as answered",
  "stream/lost-read-is-refused": "a read whose link was lost fails instead of being asked again",
  "stream/zero-rounds-out": "a cluster that is zeroes only in part is stored as zeroes",
  "stream/failed-unit-is-fetched": "a range that the source could not give is not listed",
  "stream/no-space-is-final": "hydration is not tried again after the local disk was full",
  "stream/window-wake-up-lost": "requests that wait for the window are not told that there is room",
  "stream/window-unbounded": "background requests do not wait for the window",
  "stream/hydration-before-read-ahead": "hydration goes before what is read ahead of a guest",
  "stream/pressure-ignored": "hydration does not give way when demand reads are late",
} as const;

export type StreamChaosPoint = keyof typeof STREAM_CHAOS_POINTS;
