/**
 * The ordering points of the link at which a mutant may misbehave (`env.chaos.on(point)`). All are off in production;
 * each is known to be caught by a test.
 */
export const LINK_CHAOS_POINTS = {
  "link/replay-from-wrong-offset": "after a cut a channel sends on from where it was, not from where the peer is",
  "link/replay-from-credit": "after a cut a channel repeats what is not acknowledged, though the peer has received it",
  "link/credit-counted-twice": "a CREDIT gives twice the room that it says",
  "link/received-as-consumed": "a HELLO tells what the reader has taken instead of what has arrived",
  "link/priority-inverted": "the scheduler serves the last kind of channels first",
  "link/background-starves": "the background gets what the others leave, and no more",
  "link/lost-wake-up": "a channel that gets room again is not looked at",
  "link/paused-reader-is-credited": "bytes count as read when they arrive, whether or not the reader takes them",
  "link/close-before-data": "the end of a channel is sent before what was written before it",
  "link/restart-unnoticed": "a peer that was started anew gets the channels of its predecessor",
} as const;

export type LinkChaosPoint = keyof typeof LINK_CHAOS_POINTS;
