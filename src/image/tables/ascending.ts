/** Numbers in ascending order. */

/** How many of them are less than `limit`. */
export function countBelow(ascending: ArrayLike<number>, limit: number): number {
  let low = 0;
  for (let high = ascending.length; low < high; ) {
    const middle = (low + high) >>> 1;
    if ((ascending[middle] ?? Infinity) < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function isIn(ascending: ArrayLike<number>, wanted: number): boolean {
  return ascending[countBelow(ascending, wanted)] === wanted;
}

/** Quick where most come in order. */
export function insertAscending(ascending: number[], value: number): void {
  if (value >= (ascending.at(-1) ?? -Infinity)) ascending.push(value);
  else ascending.splice(countBelow(ascending, value), 0, value);
}
