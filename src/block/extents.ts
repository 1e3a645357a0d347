/** Descriptions of what a range of a device holds. */

export interface Extent {
  readonly length: number;
  /** No storage is behind it. */
  readonly hole: boolean;
  /** It reads as zeroes. */
  readonly zero: boolean;
}

/** Appends an extent, joining it to the last one when both are of the same kind. */
export function appendExtent(list: Extent[], next: Extent): void {
  const last = list.at(-1);
  if (last !== undefined && last.hole === next.hole && last.zero === next.zero) {
    list[list.length - 1] = { length: last.length + next.length, hole: last.hole, zero: last.zero };
  } else {
    list.push(next);
  }
}
