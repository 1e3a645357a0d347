/**
 * The header of a qcow2 image, and what follows from it. Big-endian (docs/interop/qcow2 of QEMU, "Header").
 *
 * | offset | length | |
 * | --- | --- | --- |
 * | 0 | 4 | magic "QFI\xfb" |
 * | 4 | 4 | version: 2 or 3 |
 * | 8 | 8 | backing_file_offset, within the first cluster; 0 without a backing file |
 * | 16 | 4 | backing_file_size in bytes |
 * | 20 | 4 | cluster_bits: 9 … 21 |
 * | 24 | 8 | size of the disk in bytes |
 * | 32 | 4 | crypt_method |
 * | 36 | 4 | l1_size in entries |
 * | 40 | 8 | l1_table_offset in bytes |
 * | 48 | 8 | refcount_table_offset in bytes |
 * | 56 | 4 | refcount_table_clusters |
 * | 60 | 4 | nb_snapshots |
 * | 64 | 8 | snapshots_offset in bytes |
 * | 72 | 8 | incompatible_features (from here on version 3): an unknown bit means that we cannot open the image |
 * | 80 | 8 | compatible_features: unknown bits mean nothing |
 * | 88 | 8 | autoclear_features: cleared before anything is written |
 * | 96 | 4 | refcount_order: a reference count has 2^order bits |
 * | 100 | 4 | header_length in bytes |
 * | 104 | 1 | compression_type: 0 zlib, 1 zstd |
 *
 * Every field is checked here, before anything is sized by it. The name of a backing file is text and nothing else.
 */
import type { HeaderProblem } from "../tables/header-problem.ts";
import { readU64BE, writeU64BE } from "../tables/u64-big.ts";

export const QCOW2_HEADER_V2_BYTES = 72;
export const QCOW2_HEADER_V3_BYTES = 104;
/** What is read first: everything that has a meaning here. */
export const QCOW2_HEADER_BYTES = 112;
export const QCOW2_MAGIC = 0x5146_49fb;
export const QCOW2_INCOMPAT_DIRTY = 0x01n;
export const QCOW2_INCOMPAT_CORRUPT = 0x02n;
export const QCOW2_INCOMPAT_DATA_FILE = 0x04n;
export const QCOW2_INCOMPAT_COMPRESSION = 0x08n;
export const QCOW2_INCOMPAT_EXTL2 = 0x10n;
export const QCOW2_AUTOCLEAR_DATA_FILE_RAW = 0x02n;
export const QCOW2_COMPAT_LAZY_REFCOUNTS = 0x01n;
export const QCOW2_INCOMPAT_OFFSET = 72;
export const QCOW2_AUTOCLEAR_OFFSET = 88;
export const QCOW2_REFCOUNT_TABLE_FIELD = 48;
/** backing_file_offset and backing_file_size. */
export const QCOW2_BACKING_FIELDS = 8;
export const QCOW2_BACKING_FIELDS_BYTES = 12;
export const QCOW2_CLUSTER_BITS_MIN = 9;
export const QCOW2_CLUSTER_BITS_MAX = 21;
export const QCOW2_BACKING_NAME_BYTES_MAX = 1023;
/** QEMU's limits, and ours. */
export const QCOW2_L1_BYTES_MAX = 32 * 1024 * 1024;
export const QCOW2_REFCOUNT_TABLE_BYTES_MAX = 8 * 1024 * 1024;
const SNAPSHOTS_MAX = 65_536;
const ENTRY_BYTES = 8;
const KNOWN_INCOMPATIBLE = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION;
const CRYPT_METHODS = ["none", "AES", "LUKS"];
const COMPRESSIONS = ["zlib", "zstd"] as const;

export type Compression = (typeof COMPRESSIONS)[number];

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly backingNameOffset: number;
  readonly backingNameBytes: number;
  readonly clusterBits: number;
  readonly sizeBytes: number;
  readonly l1Entries: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly snapshots: number;
  readonly snapshotsOffset: number;
  /** Opaque words. */
  readonly incompatibleFeatures: bigint;
  readonly compatibleFeatures: bigint;
  readonly autoclearFeatures: bigint;
  readonly refcountOrder: number;
  readonly headerBytes: number;
  readonly compression: Compression;
}

/** What the tables are like. All derived from the header. */
export interface Qcow2Geometry {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Of an L2 table. */
  readonly tableEntries: number;
  /** What one L2 table describes. */
  readonly l2Covers: number;
  /** Entries of the L1 table that the size needs. */
  readonly l1Entries: number;
  /** All that the L1 table takes. */
  readonly l1Bytes: number;
  readonly l1Offset: number;
  readonly sizeBytes: number;
  readonly refcountOrder: number;
  readonly compression: Compression;
}

export function isDirty(header: Qcow2Header): boolean {
  return (header.incompatibleFeatures & QCOW2_INCOMPAT_DIRTY) !== 0n;
}

export function isCorrupt(header: Qcow2Header): boolean {
  return (header.incompatibleFeatures & QCOW2_INCOMPAT_CORRUPT) !== 0n;
}

export function namesBacking(header: Qcow2Header): boolean {
  return header.backingNameOffset !== 0;
}

export function clusterBytesOf({ clusterBits }: Pick<Qcow2Header, "clusterBits">): number {
  return 2 ** clusterBits;
}

export function geometryOf(header: Qcow2Header): Qcow2Geometry {
  const { version, clusterBits, sizeBytes, l1Offset, refcountOrder, compression } = header;
  const clusterBytes = clusterBytesOf(header);
  const tableEntries = clusterBytes / ENTRY_BYTES;
  const l2Covers = tableEntries * clusterBytes;
  const l1Entries = Math.ceil(sizeBytes / l2Covers);
  const l1Bytes = header.l1Entries * ENTRY_BYTES;
  const table = { l1Entries, l1Bytes, l1Offset, sizeBytes };
  return { version, clusterBits, clusterBytes, tableEntries, l2Covers, ...table, refcountOrder, compression };
}

/** The largest disk that QEMU's limits allow with such clusters. */
export function sizeMax(clusterBits: number): number {
  const clusterBytes = 2 ** clusterBits;
  return Math.min((QCOW2_L1_BYTES_MAX / ENTRY_BYTES) * (clusterBytes / ENTRY_BYTES) * clusterBytes, 2 ** 53 - 512);
}

/** Reads and checks the first bytes (`QCOW2_HEADER_BYTES`, or what there is) of a file of `fileBytes`. */
export function parseHeader(bytes: Uint8Array, fileBytes: number): Qcow2Header | HeaderProblem {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < QCOW2_HEADER_V2_BYTES) return { kind: "other-format", field: "header", at: 0, why: "is cut off" };
  if (view.getUint32(0) !== QCOW2_MAGIC)
    return { kind: "other-format", field: "magic", at: 0, why: 'is not "QFI\\xfb"' };
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) {
    return { kind: "unsupported", field: "version", at: 4, why: `is ${version}: only 2 and 3 are known` };
  }
  if (version === 3 && bytes.length < QCOW2_HEADER_V3_BYTES) {
    return { kind: "corrupt", field: "header", at: QCOW2_HEADER_V2_BYTES, why: "is cut off" };
  }
  const crypt = view.getUint32(32);
  if (crypt !== 0) {
    const why = `says that the image is encrypted (${CRYPT_METHODS[crypt] ?? crypt}), which is not supported`;
    return { kind: "unsupported", field: "crypt_method", at: 32, why };
  }
  const header = { ...readFields(view, version), ...readVersion3(view, version) };
  const problem = featureProblem(header) ?? firstProblem(header, fileBytes);
  if (problem !== undefined) return problem;
  return withCompression(header, view);
}

type Fields = Omit<Qcow2Header, "compression">;

function readFields(view: DataView, version: 2 | 3): Omit<Fields, keyof ReturnType<typeof readVersion3>> {
  return {
    version,
    backingNameOffset: readU64BE(view, 8),
    backingNameBytes: view.getUint32(16),
    clusterBits: view.getUint32(20),
    sizeBytes: readU64BE(view, 24),
    l1Entries: view.getUint32(36),
    l1Offset: readU64BE(view, 40),
    refcountTableOffset: readU64BE(view, 48),
    refcountTableClusters: view.getUint32(56),
    snapshots: view.getUint32(60),
    snapshotsOffset: readU64BE(view, 64),
  };
}

function readVersion3(view: DataView, version: 2 | 3) {
  if (version === 2) {
    const none = { incompatibleFeatures: 0n, compatibleFeatures: 0n, autoclearFeatures: 0n };
    return { ...none, refcountOrder: 4, headerBytes: QCOW2_HEADER_V2_BYTES };
  }
  return {
    incompatibleFeatures: view.getBigUint64(72),
    compatibleFeatures: view.getBigUint64(80),
    autoclearFeatures: view.getBigUint64(88),
    refcountOrder: view.getUint32(96),
    headerBytes: view.getUint32(100),
  };
}

function featureProblem({ incompatibleFeatures: features, autoclearFeatures }: Fields): HeaderProblem | undefined {
  const unsupported = (why: string): HeaderProblem => {
    return { kind: "unsupported", field: "incompatible_features", at: QCOW2_INCOMPAT_OFFSET, why };
  };
  if ((features & QCOW2_INCOMPAT_DATA_FILE) !== 0n) {
    return unsupported("asks for an external data file, which is not supported");
  }
  if ((features & QCOW2_INCOMPAT_EXTL2) !== 0n) return unsupported("asks for extended L2 entries: not supported");
  if ((autoclearFeatures & QCOW2_AUTOCLEAR_DATA_FILE_RAW) !== 0n) {
    const why = "speaks of an external data file, and there is none";
    return { kind: "corrupt", field: "autoclear_features", at: QCOW2_AUTOCLEAR_OFFSET, why };
  }
  const unknown = features & ~KNOWN_INCOMPATIBLE;
  return unknown === 0n ? undefined : unsupported(`has the unknown bits 0x${unknown.toString(16)}`);
}

/** The first field that is wrong. */
function firstProblem(header: Fields, fileBytes: number): HeaderProblem | undefined {
  const { clusterBits, refcountOrder, headerBytes, version } = header;
  const wrong = (field: string, at: number, why: string): HeaderProblem => ({ kind: "corrupt", field, at, why });
  if (clusterBits < QCOW2_CLUSTER_BITS_MIN || clusterBits > QCOW2_CLUSTER_BITS_MAX) {
    return wrong("cluster_bits", 20, `is ${clusterBits}: not 9 to 21`);
  }
  if (refcountOrder > 6) return wrong("refcount_order", 96, `is ${refcountOrder}: more than 6`);
  const lengthFits = headerBytes >= QCOW2_HEADER_V3_BYTES && headerBytes % 8 === 0;
  if (version === 3 && !(lengthFits && headerBytes <= Math.min(clusterBytesOf(header), fileBytes))) {
    return wrong("header_length", 100, `is ${headerBytes}: no multiple of 8 from 104 to the end of the cluster`);
  }
  return tableProblem(header, fileBytes) ?? snapshotProblem(header, fileBytes) ?? backingProblem(header);
}

function tableProblem(header: Fields, fileBytes: number): HeaderProblem | undefined {
  const { l1Entries, l1Offset, sizeBytes, refcountTableOffset, refcountTableClusters } = header;
  const wrong = (field: string, at: number, why: string): HeaderProblem => ({ kind: "corrupt", field, at, why });
  const clusterBytes = clusterBytesOf(header);
  const l1Bytes = l1Entries * ENTRY_BYTES;
  if (l1Bytes > QCOW2_L1_BYTES_MAX) return wrong("l1_size", 36, `is ${l1Entries}: more than 4194304`);
  if (!(sizeBytes <= l1Entries * (clusterBytes / ENTRY_BYTES) * clusterBytes && sizeBytes < 2 ** 53)) {
    return wrong("size", 24, `is ${sizeBytes}: more than the ${l1Entries} entries of the L1 table can describe`);
  }
  const isTable = (offset: number): boolean => offset >= clusterBytes && offset % clusterBytes === 0;
  if (l1Entries > 0 && !(isTable(l1Offset) && l1Offset + l1Bytes <= fileBytes)) {
    return wrong("l1_table_offset", 40, `is ${l1Offset}: not at a cluster of the file with room for the table`);
  }
  const refcountBytes = refcountTableClusters * clusterBytes;
  if (refcountTableClusters < 1 || refcountBytes > QCOW2_REFCOUNT_TABLE_BYTES_MAX) {
    return wrong("refcount_table_clusters", 56, `is ${refcountTableClusters}: none, or more than 8 MiB`);
  }
  if (!(isTable(refcountTableOffset) && refcountTableOffset + refcountBytes <= fileBytes)) {
    const why = `is ${refcountTableOffset}: not at a cluster of the file with room for the table`;
    return wrong("refcount_table_offset", 48, why);
  }
  return undefined;
}

function snapshotProblem(header: Fields, fileBytes: number): HeaderProblem | undefined {
  const { snapshots, snapshotsOffset } = header;
  if (snapshots > SNAPSHOTS_MAX) {
    return { kind: "corrupt", field: "nb_snapshots", at: 60, why: `is ${snapshots}: more than ${SNAPSHOTS_MAX}` };
  }
  const there = snapshots === 0 || snapshotsOffset < fileBytes;
  if (snapshotsOffset % clusterBytesOf(header) === 0 && there) return undefined;
  const why = `is ${snapshotsOffset}: not at a cluster of the file`;
  return { kind: "corrupt", field: "snapshots_offset", at: 64, why };
}

function backingProblem(header: Fields): HeaderProblem | undefined {
  const { backingNameOffset: offset, backingNameBytes: length } = header;
  if (offset === 0) return undefined;
  if (length <= QCOW2_BACKING_NAME_BYTES_MAX && offset + length <= clusterBytesOf(header)) return undefined;
  const why = `is ${length} bytes at ${offset}: too long, or not within the first cluster`;
  return { kind: "corrupt", field: "backing_file_offset", at: 8, why };
}

function withCompression(header: Fields, view: DataView): Qcow2Header | HeaderProblem {
  const present = header.headerBytes > QCOW2_HEADER_V3_BYTES && view.byteLength > QCOW2_HEADER_V3_BYTES;
  const type = present ? view.getUint8(104) : 0;
  const announced = (header.incompatibleFeatures & QCOW2_INCOMPAT_COMPRESSION) !== 0n;
  const compression = COMPRESSIONS[type];
  if (compression === undefined) {
    return { kind: "unsupported", field: "compression_type", at: 104, why: `is ${type}: only zlib and zstd are known` };
  }
  if (announced === (type !== 0)) return { ...header, compression };
  const why = `is ${type}, and the feature bit says otherwise`;
  return { kind: "corrupt", field: "compression_type", at: 104, why };
}

/** The header alone; what follows it in the first cluster is the caller's. */
export function encodeHeader(header: Qcow2Header): Buffer {
  const bytes = Buffer.alloc(header.headerBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(0, QCOW2_MAGIC);
  view.setUint32(4, header.version);
  writeU64BE(view, 8, header.backingNameOffset);
  view.setUint32(16, header.backingNameBytes);
  view.setUint32(20, header.clusterBits);
  writeU64BE(view, 24, header.sizeBytes);
  view.setUint32(36, header.l1Entries);
  writeU64BE(view, 40, header.l1Offset);
  writeU64BE(view, 48, header.refcountTableOffset);
  view.setUint32(56, header.refcountTableClusters);
  view.setUint32(60, header.snapshots);
  writeU64BE(view, 64, header.snapshotsOffset);
  if (header.version === 2) return bytes;
  view.setBigUint64(72, header.incompatibleFeatures);
  view.setBigUint64(80, header.compatibleFeatures);
  view.setBigUint64(88, header.autoclearFeatures);
  view.setUint32(96, header.refcountOrder);
  view.setUint32(100, header.headerBytes);
  if (header.headerBytes > QCOW2_HEADER_V3_BYTES) view.setUint8(104, COMPRESSIONS.indexOf(header.compression));
  return bytes;
}
