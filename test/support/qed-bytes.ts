/** QED images made by hand, byte by byte, from the specification alone; and ways to damage them. */
import { pattern } from "./patterns.ts";
import type { Prng } from "./seed.ts";

export interface HandMadeQed {
  readonly sizeBytes: number;
  readonly clusterBytes?: number;
  readonly tableClusters?: number;
  readonly features?: bigint;
  readonly autoclearFeatures?: bigint;
  readonly backingName?: string;
  /** Data clusters hold one byte throughout, their salt, instead of a pattern. */
  readonly plain?: boolean;
  /** By cluster of the disk: the salt of its pattern, or "zero" for a zero cluster. */
  readonly clusters?: ReadonlyMap<number, number | "zero">;
}

export interface HandMade {
  readonly bytes: Buffer;
  readonly l1Offset: number;
  /** Where the only L2 table is. */
  readonly l2Offset: number;
  readonly tableBytes: number;
  readonly clusterBytes: number;
  /** Where the data of each cluster is. */
  readonly dataOffsets: ReadonlyMap<number, number>;
  /** What the disk holds. */
  readonly content: Buffer;
}

/** Header, L1 table, one L2 table, data clusters in the order given. The disk must fit one L2 table. */
export function handMadeQed(options: HandMadeQed): HandMade {
  const { sizeBytes, clusterBytes = 4096, tableClusters = 2, clusters = new Map<number, number>() } = options;
  const tableBytes = clusterBytes * tableClusters;
  const [l1Offset, l2Offset] = [clusterBytes, clusterBytes + tableBytes];
  const dataStart = l2Offset + tableBytes;
  const dataClusters = [...clusters.values()].filter((what) => what !== "zero").length;
  const bytes = Buffer.alloc(dataStart + dataClusters * clusterBytes);
  const content = Buffer.alloc(sizeBytes);
  const name = Buffer.from(options.backingName ?? "");
  bytes.write("QED\0", 0, "latin1");
  bytes.writeUInt32LE(clusterBytes, 4);
  bytes.writeUInt32LE(tableClusters, 8);
  bytes.writeUInt32LE(1, 12);
  bytes.writeBigUInt64LE(options.features ?? 0n, 16);
  bytes.writeBigUInt64LE(options.autoclearFeatures ?? 0n, 32);
  bytes.writeBigUInt64LE(BigInt(l1Offset), 40);
  bytes.writeBigUInt64LE(BigInt(sizeBytes), 48);
  if (name.length > 0) {
    bytes.writeUInt32LE(64, 56);
    bytes.writeUInt32LE(name.length, 60);
    name.copy(bytes, 64);
  }
  bytes.writeBigUInt64LE(BigInt(l2Offset), l1Offset);
  const dataOffsets = new Map<number, number>();
  let next = dataStart;
  for (const [cluster, what] of clusters) {
    bytes.writeBigUInt64LE(what === "zero" ? 1n : BigInt(next), l2Offset + cluster * 8);
    if (what === "zero") continue;
    const data = options.plain ? Buffer.alloc(clusterBytes, what) : pattern(cluster * clusterBytes, clusterBytes, what);
    data.copy(bytes, next);
    data.copy(content, cluster * clusterBytes);
    dataOffsets.set(cluster, next);
    next += clusterBytes;
  }
  return { bytes, l1Offset, l2Offset, tableBytes, clusterBytes, dataOffsets, content };
}

/** Where the fields of the header are, and how long. */
const FIELDS: readonly (readonly [number, 4 | 8])[] = [
  [0, 4],
  [4, 4],
  [8, 4],
  [12, 4],
  [16, 8],
  [24, 8],
  [32, 8],
  [40, 8],
  [48, 8],
  [56, 4],
  [60, 4],
];

/** A damaged copy: one to three changes to header, tables or the file's length. */
export function damaged(made: HandMade, rng: Prng): Buffer {
  let bytes: Buffer = Buffer.from(made.bytes);
  for (let count = rng.integer(1, 3); count > 0; count--) bytes = damageOnce(bytes, made, rng);
  return bytes;
}

function damageOnce(bytes: Buffer, made: HandMade, rng: Prng): Buffer {
  const { l1Offset, l2Offset, tableBytes, clusterBytes } = made;
  switch (rng.pick(["field", "flip", "l1", "l2", "l2", "l2", "length"] as const)) {
    case "field": {
      const [at, length] = rng.pick(FIELDS);
      const value = strangeValue(made, rng);
      if (at + length > bytes.length) return bytes;
      if (length === 4) bytes.writeUInt32LE(Number(value & 0xffff_ffffn), at);
      else bytes.writeBigUInt64LE(value, at);
      return bytes;
    }
    case "flip": {
      const at = rng.integer(0, Math.min(bytes.length, l2Offset + tableBytes) - 1);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << rng.integer(0, 7));
      return bytes;
    }
    case "l1":
      return putEntry(bytes, l1Offset + 8 * rng.pick([0, 0, 1, tableBytes / 8 - 1]), strangeValue(made, rng));
    case "l2":
      return putEntry(bytes, l2Offset + 8 * rng.integer(0, 20), strangeValue(made, rng));
    case "length": {
      const length = rng.pick([rng.integer(0, bytes.length), bytes.length + rng.integer(1, 3 * clusterBytes)]);
      const changed = Buffer.alloc(length);
      bytes.copy(changed);
      return changed;
    }
  }
}

function putEntry(bytes: Buffer, at: number, value: bigint): Buffer {
  if (at + 8 <= bytes.length) bytes.writeBigUInt64LE(value, at);
  return bytes;
}

/** Borders of everything that there is in the file, and of the number types. */
function strangeValue(
  { bytes, l1Offset, l2Offset, tableBytes, clusterBytes, dataOffsets }: HandMade,
  rng: Prng,
): bigint {
  const places = [0, clusterBytes, l1Offset, l2Offset, l2Offset + tableBytes, bytes.length, ...dataOffsets.values()];
  const limits = [1n, 2n, 511n, 512n, 2n ** 12n, 2n ** 26n, 2n ** 27n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n, 2n ** 63n];
  const value = rng.chance(0.6) ? BigInt(rng.pick(places)) : rng.pick([...limits, 2n ** 64n - 1n]);
  const shift = BigInt(rng.pick([0, 0, 0, 1, -1, 512, clusterBytes, -clusterBytes]));
  return BigInt.asUintN(64, value + shift);
}
