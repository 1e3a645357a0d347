/** The states of a link, as a table. */

/**
 * - `connecting`: there was no connection yet. `connected`: there is one, and both sides know who the other is.
 * - `disconnected`: it was lost; channels wait. (Not "paused", which is what an operator does.)
 * - `closed`: over, by either side's wish. `refused`: the peer will not have us, or is not who it should be.
 */
export type LinkState = "connecting" | "connected" | "disconnected" | "closed" | "refused";

export const LINK_EDGES: Readonly<Record<LinkState, readonly LinkState[]>> = {
  connecting: ["connected", "closed", "refused"],
  connected: ["disconnected", "closed", "refused"],
  disconnected: ["connected", "closed", "refused"],
  closed: [],
  refused: [],
};
