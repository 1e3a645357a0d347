/**
 * Entries of L2 tables (docs/interop/qcow2, "Cluster mapping"), held as two halves of 32 bits: an offset with flags above
 * and below it is no number.
 *
 * | bit | standard cluster | compressed cluster |
 * | --- | --- | --- |
 * | 63 | nothing else refers to it (COPIED) | 0 |
 * | 62 | 0 | 1 |
 * | 0 | reads as zeroes (version 3) | |
 * | 9–55 | offset in the file, 0: none | bits 0…: offset, then sectors beyond the first one |
 */
const HIGH = 2 ** 32;
export const QCOW2_ENTRY_BYTES = 8;
export const QCOW2_OFLAG_COPIED_HIGH = 0x8000_0000;
const COMPRESSED_HIGH = 0x4000_0000;
const ZERO_LOW = 1;
const OFFSET_HIGH = 0x00ff_ffff;
const OFFSET_LOW = 0xffff_fe00;
const RESERVED_HIGH = 0x3f00_0000;
const RESERVED_LOW = 0x1fe;
/** Stands for an entry that is wrong: no entry has these bits, all of the reserved ones among them. */
export const CORRUPT_HIGH = 0xffff_ffff;
const SECTOR_BYTES = 512;

/** What an entry says of one cluster. */
export type Entry =
  | { readonly kind: "unallocated" }
  /** `offset` 0: no place of its own. */
  | { readonly kind: "data" | "zero"; readonly offset: number; readonly copied: boolean }
  /** `length`: as far as its last sector goes. */
  | { readonly kind: "compressed"; readonly offset: number; readonly length: number }
  | { readonly kind: "corrupt" };

/** As the specification has it; whether the place can be right is not looked at. */
export function decodeEntry(high: number, low: number, clusterBits: number): Entry {
  if (high === 0 && low === 0) return { kind: "unallocated" };
  if (high >>> 0 === CORRUPT_HIGH) return { kind: "corrupt" };
  const copied = (high & QCOW2_OFLAG_COPIED_HIGH) !== 0;
  if ((high & COMPRESSED_HIGH) !== 0) return copied ? { kind: "corrupt" } : decodeCompressed(high, low, clusterBits);
  if ((high & RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0) return { kind: "corrupt" };
  const offset = (high & OFFSET_HIGH) * HIGH + ((low & OFFSET_LOW) >>> 0);
  if ((low & ZERO_LOW) === 0) return offset === 0 ? { kind: "corrupt" } : { kind: "data", offset, copied };
  if (offset === 0 && copied) return { kind: "corrupt" };
  return { kind: "zero", offset, copied };
}

function decodeCompressed(high: number, low: number, clusterBits: number): Entry {
  // 62 bits: the upper ones count sectors, `clusterBits - 8` of them, and the others are the offset.
  const offsetBits = 62 - (clusterBits - 8);
  const descriptor = ((BigInt(high) & 0x3fff_ffffn) << 32n) | BigInt(low >>> 0);
  const offset = Number(descriptor & ((1n << BigInt(offsetBits)) - 1n));
  const more = Number(descriptor >> BigInt(offsetBits));
  if (offset >= 2 ** 53) return { kind: "corrupt" };
  return { kind: "compressed", offset, length: (more + 1) * SECTOR_BYTES - (offset % SECTOR_BYTES) };
}

/** Of a standard cluster that nothing else refers to. `offset` 0 with `zero`: without a place of its own. */
export function standardEntry(offset: number, zero: boolean): { high: number; low: number } {
  const high = Math.floor(offset / HIGH) | (offset === 0 ? 0 : QCOW2_OFLAG_COPIED_HIGH);
  return { high: high >>> 0, low: ((offset % HIGH) | (zero ? ZERO_LOW : 0)) >>> 0 };
}
