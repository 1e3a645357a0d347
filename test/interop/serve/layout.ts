/** Images that several interop files serve, and readers of what the tools say about them. */
import type { Region } from "../../support/patterns.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;

/** A run of a map, as every tool can tell it. */
export interface Run {
  readonly start: number;
  readonly length: number;
  readonly hole: boolean;
  readonly zero: boolean;
}

/** Data at the start, in the middle, one block alone; a hole at the end, and everywhere else. */
export const SPARSE_BYTES = 8 * MiB;
export const SPARSE_REGIONS: readonly Region[] = [
  { offset: 0, length: 64 * KiB, salt: 1 },
  { offset: 1 * MiB, length: 4 * KiB, salt: 1 },
  { offset: 4 * MiB, length: 512 * KiB, salt: 1 },
];

/** The runs that `regions` (sorted, apart, block-aligned) make of a file. */
export function runsOf(sizeBytes: number, regions: readonly Region[]): Run[] {
  const runs: Run[] = [];
  let at = 0;
  for (const { offset, length } of regions) {
    if (offset > at) runs.push({ start: at, length: offset - at, hole: true, zero: true });
    runs.push({ start: offset, length, hole: false, zero: false });
    at = offset + length;
  }
  if (at < sizeBytes) runs.push({ start: at, length: sizeBytes - at, hole: true, zero: true });
  return runs;
}

/** `qemu-img map --output=json`. Over NBD, QEMU says "not present" of nothing; a hole is what has no data. */
export function parseQemuMap(json: string): Run[] {
  const entries = JSON.parse(json) as { start: number; length: number; zero: boolean; data: boolean }[];
  return entries.map(({ start, length, zero, data }) => ({ start, length, hole: !data, zero }));
}

/** `nbdinfo --map --json`; the type is the flags of base:allocation. */
export function parseNbdinfoMap(json: string): Run[] {
  const entries = JSON.parse(json) as { offset: number; length: number; type: number }[];
  return entries.map(({ offset, length, type }) => ({
    start: offset,
    length,
    hole: (type & 1) !== 0,
    zero: (type & 2) !== 0,
  }));
}
