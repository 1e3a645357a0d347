/** qcow2 images made by hand, byte by byte, from the specification alone; and ways to damage them. */
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import { pattern } from "./patterns.ts";
import type { Prng } from "./seed.ts";

const CLUSTER = 4096;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** What a cluster of the disk is: the salt of its pattern, zeroes without or with a place, or that salt, compressed. */
export type HandMadeCluster = number | "zero" | "zero, placed" | { readonly compressed: number };

export interface HandMadeQcow2 {
  readonly sizeBytes: number;
  readonly version?: 2 | 3;
  readonly incompatible?: bigint;
  readonly autoclear?: bigint;
  readonly zstd?: boolean;
  readonly backingName?: string;
  readonly snapshots?: number;
  /** Type and data of header extensions. */
  readonly extensions?: readonly (readonly [type: number, data: Buffer])[];
  /** Data clusters hold one byte throughout, their salt, instead of a pattern. */
  readonly plain?: boolean;
  readonly clusters?: ReadonlyMap<number, HandMadeCluster>;
}

export interface HandMade {
  readonly bytes: Buffer;
  readonly refcountTableOffset: number;
  readonly refcountBlockOffset: number;
  readonly l1Offset: number;
  /** Where the only L2 table is. */
  readonly l2Offset: number;
  readonly clusterBytes: number;
  /** Where each cluster is in the file. */
  readonly dataOffsets: ReadonlyMap<number, number>;
  /** What the disk holds. */
  readonly content: Buffer;
}

/** Clusters of 4096 bytes: header, refcount table, refcount block, L1 table, L2 table, data in the order given. */
export function handMadeQcow2(options: HandMadeQcow2): HandMade {
  const {
    sizeBytes,
    version = 3,
    clusters = new Map<number, HandMadeCluster>(),
    zstd = false,
    plain = false,
  } = options;
  const bytes = Buffer.alloc((5 + 2 * clusters.size) * CLUSTER);
  const content = Buffer.alloc(sizeBytes);
  const [table, block, l1, l2] = [CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER];
  writeHeader(bytes, { ...options, version });
  bytes.writeBigUInt64BE(BigInt(block), table);
  bytes.writeBigUInt64BE(BigInt(l2) | COPIED, l1);
  const dataOffsets = new Map<number, number>();
  let next = 5 * CLUSTER;
  for (const [cluster, what] of clusters) {
    const entryAt = l2 + cluster * 8;
    if (what === "zero") {
      bytes.writeBigUInt64BE(1n, entryAt);
      continue;
    }
    dataOffsets.set(cluster, next);
    const salt = typeof what === "number" ? what : typeof what === "object" ? what.compressed : 0xdead;
    const data = plain ? Buffer.alloc(CLUSTER, salt) : pattern(cluster * CLUSTER, CLUSTER, salt);
    if (what !== "zero, placed") data.copy(content, cluster * CLUSTER);
    if (typeof what === "object") {
      const packed = zstd ? zstdCompressSync(data) : deflateRawSync(data, { windowBits: 12 });
      packed.copy(bytes, next);
      const sectors = Math.ceil(packed.length / 512) - 1;
      bytes.writeBigUInt64BE(COMPRESSED | (BigInt(sectors) << 58n) | BigInt(next), entryAt);
      next += Math.ceil(packed.length / CLUSTER) * CLUSTER;
      continue;
    }
    data.copy(bytes, next);
    bytes.writeBigUInt64BE(COPIED | BigInt(next) | (what === "zero, placed" ? 1n : 0n), entryAt);
    next += CLUSTER;
  }
  for (let cluster = 0; cluster < next / CLUSTER; cluster++) bytes.writeUInt16BE(1, block + 2 * cluster);
  return {
    bytes: bytes.subarray(0, next),
    refcountTableOffset: table,
    refcountBlockOffset: block,
    l1Offset: l1,
    l2Offset: l2,
    clusterBytes: CLUSTER,
    dataOffsets,
    content,
  };
}

function writeHeader(bytes: Buffer, options: HandMadeQcow2 & { version: 2 | 3 }): void {
  const {
    sizeBytes,
    version,
    zstd = false,
    incompatible = 0n,
    autoclear = 0n,
    extensions = [],
    snapshots = 0,
  } = options;
  bytes.write("QFI\xfb", 0, "latin1");
  bytes.writeUInt32BE(version, 4);
  bytes.writeUInt32BE(12, 20);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 24);
  bytes.writeUInt32BE(1, 36);
  bytes.writeBigUInt64BE(BigInt(3 * CLUSTER), 40);
  bytes.writeBigUInt64BE(BigInt(CLUSTER), 48);
  bytes.writeUInt32BE(1, 56);
  bytes.writeUInt32BE(snapshots, 60);
  if (snapshots > 0) bytes.writeBigUInt64BE(BigInt(4 * CLUSTER), 64);
  let at = version === 2 ? 72 : 112;
  if (version === 3) {
    bytes.writeBigUInt64BE(incompatible | (zstd ? 8n : 0n), 72);
    bytes.writeBigUInt64BE(autoclear, 88);
    bytes.writeUInt32BE(4, 96);
    bytes.writeUInt32BE(112, 100);
    bytes.writeUInt8(zstd ? 1 : 0, 104);
  }
  for (const [type, data] of extensions) {
    bytes.writeUInt32BE(type, at);
    bytes.writeUInt32BE(data.length, at + 4);
    data.copy(bytes, at + 8);
    at += 8 + Math.ceil(data.length / 8) * 8;
  }
  if (options.backingName === undefined) return;
  const name = Buffer.from(options.backingName);
  bytes.writeBigUInt64BE(BigInt(at + 8), 8);
  bytes.writeUInt32BE(name.length, 16);
  name.copy(bytes, at + 8);
}

/** Where the fields of the header are, and how long. */
const FIELDS: readonly (readonly [number, 1 | 4 | 8])[] = [
  [0, 4],
  [4, 4],
  [8, 8],
  [16, 4],
  [20, 4],
  [24, 8],
  [32, 4],
  [36, 4],
  [40, 8],
  [48, 8],
  [56, 4],
  [60, 4],
  [64, 8],
  [72, 8],
  [80, 8],
  [88, 8],
  [96, 4],
  [100, 4],
  [104, 1],
  [112, 4],
  [116, 4],
];

/** A damaged copy: one to three changes to header, tables, compressed data or the file's length. */
export function damaged(made: HandMade, rng: Prng): Buffer {
  let bytes: Buffer = Buffer.from(made.bytes);
  for (let count = rng.integer(1, 3); count > 0; count--) bytes = damageOnce(bytes, made, rng);
  return bytes;
}

const DAMAGES = ["field", "flip", "l1", "l2", "l2", "l2", "counts", "data", "length"] as const;

function damageOnce(bytes: Buffer, made: HandMade, rng: Prng): Buffer {
  const { l1Offset, l2Offset, refcountTableOffset, refcountBlockOffset, clusterBytes } = made;
  switch (rng.pick(DAMAGES)) {
    case "field": {
      const [at, length] = rng.pick(FIELDS);
      const value = strangeValue(made, rng);
      if (at + length > bytes.length) return bytes;
      if (length === 1) bytes.writeUInt8(Number(value & 0xffn), at);
      else if (length === 4) bytes.writeUInt32BE(Number(value & 0xffff_ffffn), at);
      else bytes.writeBigUInt64BE(value, at);
      return bytes;
    }
    case "flip":
      return flip(bytes, rng.integer(0, Math.min(bytes.length, rng.pick([128, l2Offset + clusterBytes])) - 1), rng);
    case "l1":
      return putEntry(bytes, l1Offset + 8 * rng.pick([0, 0, 1]), strangeValue(made, rng));
    case "l2":
      return putEntry(bytes, l2Offset + 8 * rng.integer(0, 20), strangeValue(made, rng));
    case "counts":
      return putEntry(
        bytes,
        rng.pick([refcountTableOffset, refcountBlockOffset]) + 8 * rng.integer(0, 4),
        strangeValue(made, rng),
      );
    case "data":
      return flip(bytes, rng.pick([...made.dataOffsets.values()]) + rng.integer(0, 100), rng);
    case "length": {
      const length = rng.pick([rng.integer(0, bytes.length), bytes.length + rng.integer(1, 3 * clusterBytes)]);
      const changed = Buffer.alloc(length);
      bytes.copy(changed);
      return changed;
    }
  }
}

function flip(bytes: Buffer, at: number, rng: Prng): Buffer {
  if (at >= 0 && at < bytes.length) bytes[at] = (bytes[at] ?? 0) ^ (1 << rng.integer(0, 7));
  return bytes;
}

function putEntry(bytes: Buffer, at: number, value: bigint): Buffer {
  if (at + 8 <= bytes.length) bytes.writeBigUInt64BE(value, at);
  return bytes;
}

/** Borders of everything that there is in the file, and of the number types; flags above and below. */
function strangeValue({ bytes, l1Offset, l2Offset, clusterBytes, dataOffsets }: HandMade, rng: Prng): bigint {
  const places = [0, clusterBytes, 2 * clusterBytes, l1Offset, l2Offset, bytes.length, ...dataOffsets.values()];
  const limits = [
    1n,
    2n,
    9n,
    21n,
    22n,
    511n,
    512n,
    2n ** 12n,
    2n ** 26n,
    2n ** 31n,
    2n ** 32n - 1n,
    2n ** 53n,
    2n ** 55n,
  ];
  const value = rng.chance(0.6) ? BigInt(rng.pick(places)) : rng.pick([...limits, 2n ** 63n, 2n ** 64n - 1n]);
  const shift = BigInt(rng.pick([0, 0, 0, 0, 1, -1, 512, clusterBytes, -clusterBytes]));
  const flags = rng.pick([0n, 0n, COPIED, COPIED, COMPRESSED, COPIED | 1n, 1n, COMPRESSED | (5n << 58n)]);
  return BigInt.asUintN(64, (value + shift) | flags);
}
