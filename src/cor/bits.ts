/** Sets of small numbers as bits, bit n being bit n % 8 of byte n / 8. Ranges include both ends. */

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) count += 1;
  return count;
});

export function bitAt(bits: Uint8Array, index: number): boolean {
  return (((bits[index >>> 3] ?? 0) >>> (index & 7)) & 1) === 1;
}

/** The last of [from, to] up to which all bits are `set`; `from` − 1: not even the first. */
export function runEnd(bits: Uint8Array, [from, to]: readonly [number, number], set: boolean): number {
  const whole = set ? 0xff : 0;
  let bit = from;
  while (bit <= to) {
    if ((bit & 7) === 0 && bit + 7 <= to && bits[bit >>> 3] === whole) bit += 8;
    else if (bitAt(bits, bit) === set) bit += 1;
    else break;
  }
  return bit - 1;
}

/** Sets [from, to]. Returns how many of them were not set. */
export function setBits(bits: Uint8Array, [from, to]: readonly [number, number]): number {
  let added = 0;
  for (let byte = from >>> 3; byte <= to >>> 3; byte++) {
    const low = Math.max(from - byte * 8, 0);
    const high = Math.min(to - byte * 8, 7);
    const mask = (0xff << low) & (0xff >>> (7 - high)) & 0xff;
    const old = bits[byte] ?? 0;
    added += ONES[mask & ~old] ?? 0;
    bits[byte] = old | mask;
  }
  return added;
}

/** Clears [from, to]. Returns how many of them were set. */
export function clearBits(bits: Uint8Array, [from, to]: readonly [number, number]): number {
  let removed = 0;
  for (let byte = from >>> 3; byte <= to >>> 3; byte++) {
    const low = Math.max(from - byte * 8, 0);
    const high = Math.min(to - byte * 8, 7);
    const mask = (0xff << low) & (0xff >>> (7 - high)) & 0xff;
    const old = bits[byte] ?? 0;
    removed += ONES[mask & old] ?? 0;
    bits[byte] = old & ~mask;
  }
  return removed;
}

export function bitCount(bits: Uint8Array): number {
  let count = 0;
  for (const byte of bits) count += ONES[byte] ?? 0;
  return count;
}
