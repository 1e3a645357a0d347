/** Where connections are to break, to the byte. */

/** `up`: from whoever dialled the line to the target that the line dials. */
export type Direction = "up" | "down";
export const DIRECTIONS: readonly Direction[] = ["up", "down"];

/** How both ends learn of a cut. A unix socket knows no reset: there, both are an end. */
export type CutHow = "rst" | "fin";

/** A cut that is planned: so many bytes of the direction are delivered, and not one more. */
export interface CutAt {
  readonly direction: Direction;
  readonly afterBytes: number;
  /** `now`: counted from the command on; `start`: from the beginning of each connection. The same for new ones. */
  readonly from: "now" | "start";
  readonly how: CutHow;
  /** False: only the first connection that gets there, then no more. */
  readonly every: boolean;
}

/** Of the next `length` bytes of a connection: how many are delivered, and whether it is cut then. */
export interface Fate {
  readonly deliverBytes: number;
  readonly cut: boolean;
}

/**
 * The fate of `length` more bytes when `passed` have been counted. A cut is due as soon as its last byte has passed,
 * without waiting for another; when so many had already passed before it was planned, at the next byte.
 */
export function fateOf(length: number, passed: number, cutAfter: number): Fate {
  if (passed + length < cutAfter) return { deliverBytes: length, cut: false };
  return { deliverBytes: Math.max(0, cutAfter - passed), cut: true };
}
