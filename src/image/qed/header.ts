/**
 * The header of a QED image, and what follows from it. Little-endian (docs/specs/qed_spec of QEMU, "Header").
 *
 * | offset | length | |
 * | --- | --- | --- |
 * | 0 | 4 | magic "QED\0" |
 * | 4 | 4 | cluster_size in bytes: 2^12 … 2^26 |
 * | 8 | 4 | table_size in clusters: 1, 2, 4, 8, 16 |
 * | 12 | 4 | header_size in clusters |
 * | 16 | 8 | features: an unknown bit means that we cannot open the image |
 * | 24 | 8 | compat_features: unknown bits mean nothing |
 * | 32 | 8 | autoclear_features: unknown bits are cleared before anything is written |
 * | 40 | 8 | l1_table_offset in bytes |
 * | 48 | 8 | image_size in bytes: a multiple of 512 |
 * | 56 | 4 | backing_filename_offset in bytes, within the header |
 * | 60 | 4 | backing_filename_size in bytes |
 *
 * Every field is checked here, before anything is sized by it. The name of a backing file is text and nothing else.
 */
import type { HeaderProblem } from "../tables/header-problem.ts";
import { readU64LE, writeU64LE } from "../tables/u64.ts";

export const QED_HEADER_BYTES = 64;
export const QED_MAGIC = 0x0044_4551;
export const QED_F_BACKING_FILE = 0x01n;
export const QED_F_NEED_CHECK = 0x02n;
export const QED_F_BACKING_FORMAT_NO_PROBE = 0x04n;
export const QED_CLUSTER_BYTES_MIN = 2 ** 12;
export const QED_CLUSTER_BYTES_MAX = 2 ** 26;
export const QED_TABLE_CLUSTERS_MAX = 16;
/** Where the features begin, and how many bytes all three words take: what is written to change a flag. */
export const QED_FEATURES_OFFSET = 16;
export const QED_FEATURES_BYTES = 24;
/** QEMU's limit for a path. */
export const QED_BACKING_NAME_BYTES_MAX = 4095;
const SECTOR_BYTES = 512;
const ENTRY_BYTES = 8;
const KNOWN_FEATURES = QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_FORMAT_NO_PROBE;

export interface QedHeader {
  readonly clusterBytes: number;
  readonly tableClusters: number;
  readonly headerClusters: number;
  /** Opaque words. */
  readonly features: bigint;
  readonly compatFeatures: bigint;
  readonly autoclearFeatures: bigint;
  readonly l1Offset: number;
  readonly sizeBytes: number;
  readonly backingNameOffset: number;
  readonly backingNameBytes: number;
}

/** What the tables are like. All derived from the header. */
export interface QedGeometry {
  readonly clusterBytes: number;
  readonly tableBytes: number;
  readonly tableEntries: number;
  /** What one L2 table describes. */
  readonly l2Covers: number;
  /** Entries of the L1 table that the size needs. */
  readonly l1Entries: number;
  readonly headerEnd: number;
  readonly l1Offset: number;
  readonly sizeBytes: number;
}

export function isDirty(header: QedHeader): boolean {
  return (header.features & QED_F_NEED_CHECK) !== 0n;
}

export function namesBacking(header: QedHeader): boolean {
  return (header.features & QED_F_BACKING_FILE) !== 0n;
}

export function geometryOf(header: QedHeader): QedGeometry {
  const { clusterBytes, tableClusters, l1Offset, sizeBytes } = header;
  const tableBytes = clusterBytes * tableClusters;
  const tableEntries = tableBytes / ENTRY_BYTES;
  const l2Covers = tableEntries * clusterBytes;
  const l1Entries = Math.ceil(sizeBytes / l2Covers);
  const headerEnd = header.headerClusters * clusterBytes;
  return { clusterBytes, tableBytes, tableEntries, l2Covers, l1Entries, headerEnd, l1Offset, sizeBytes };
}

/** The largest disk that these tables can describe. */
export function sizeMax(clusterBytes: number, tableClusters: number): number {
  const entries = (clusterBytes * tableClusters) / ENTRY_BYTES;
  return Math.min(entries * entries * clusterBytes, Number.MAX_SAFE_INTEGER);
}

/** Reads and checks the first 64 bytes of a file of `fileBytes`. */
export function parseHeader(bytes: Uint8Array, fileBytes: number): QedHeader | HeaderProblem {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < QED_HEADER_BYTES) return { kind: "other-format", field: "header", at: 0, why: "is cut off" };
  if (view.getUint32(0, true) !== QED_MAGIC) {
    return { kind: "other-format", field: "magic", at: 0, why: 'is not "QED"' };
  }
  const header: QedHeader = {
    clusterBytes: view.getUint32(4, true),
    tableClusters: view.getUint32(8, true),
    headerClusters: view.getUint32(12, true),
    features: view.getBigUint64(16, true),
    compatFeatures: view.getBigUint64(24, true),
    autoclearFeatures: view.getBigUint64(32, true),
    l1Offset: readU64LE(view, 40),
    sizeBytes: readU64LE(view, 48),
    backingNameOffset: view.getUint32(56, true),
    backingNameBytes: view.getUint32(60, true),
  };
  return firstProblem(header, fileBytes) ?? header;
}

/** The first field that is wrong. */
function firstProblem(header: QedHeader, fileBytes: number): HeaderProblem | undefined {
  const unknown = header.features & ~KNOWN_FEATURES;
  if (unknown !== 0n) {
    return { kind: "unsupported", field: "features", at: 16, why: `has the unknown bits 0x${unknown.toString(16)}` };
  }
  const { clusterBytes, tableClusters, headerClusters } = header;
  const wrong = (field: string, at: number, why: string): HeaderProblem => ({ kind: "corrupt", field, at, why });
  if (!isPowerOfTwo(clusterBytes, QED_CLUSTER_BYTES_MIN, QED_CLUSTER_BYTES_MAX)) {
    return wrong("cluster_size", 4, `is ${clusterBytes}: no power of two from 4096 to 67108864`);
  }
  if (!isPowerOfTwo(tableClusters, 1, QED_TABLE_CLUSTERS_MAX)) {
    return wrong("table_size", 8, `is ${tableClusters}: not 1, 2, 4, 8 or 16`);
  }
  const wholeBytes = Math.floor(fileBytes / clusterBytes) * clusterBytes;
  if (headerClusters < 1 || headerClusters * clusterBytes > wholeBytes) {
    return wrong("header_size", 12, `is ${headerClusters} clusters: not within the file`);
  }
  return tableProblem(header, wholeBytes) ?? backingProblem(header);
}

function tableProblem(header: QedHeader, wholeBytes: number): HeaderProblem | undefined {
  const { clusterBytes, tableClusters, headerClusters, l1Offset, sizeBytes } = header;
  const l1End = l1Offset + tableClusters * clusterBytes;
  const aligned = l1Offset % clusterBytes === 0;
  if (!(aligned && l1Offset >= headerClusters * clusterBytes && l1End <= wholeBytes)) {
    const why = `is ${l1Offset}: not at a cluster between the header and the end of the file`;
    return { kind: "corrupt", field: "l1_table_offset", at: 40, why };
  }
  if (sizeBytes % SECTOR_BYTES !== 0 || !(sizeBytes <= sizeMax(clusterBytes, tableClusters))) {
    const why = `is ${sizeBytes}: no multiple of 512, or more than the tables can describe`;
    return { kind: "corrupt", field: "image_size", at: 48, why };
  }
  return undefined;
}

function backingProblem(header: QedHeader): HeaderProblem | undefined {
  if (!namesBacking(header)) return undefined;
  const { backingNameOffset: offset, backingNameBytes: length, headerClusters, clusterBytes } = header;
  if (length > QED_BACKING_NAME_BYTES_MAX || offset + length > headerClusters * clusterBytes) {
    const why = `is ${length} bytes at ${offset}: too long, or not within the header`;
    return { kind: "corrupt", field: "backing_filename", at: 56, why };
  }
  return undefined;
}

function isPowerOfTwo(value: number, min: number, max: number): boolean {
  return value >= min && value <= max && Number.isInteger(Math.log2(value));
}

export function encodeHeader(header: QedHeader): Buffer {
  const bytes = Buffer.alloc(QED_HEADER_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(0, QED_MAGIC, true);
  view.setUint32(4, header.clusterBytes, true);
  view.setUint32(8, header.tableClusters, true);
  view.setUint32(12, header.headerClusters, true);
  view.setBigUint64(16, header.features, true);
  view.setBigUint64(24, header.compatFeatures, true);
  view.setBigUint64(32, header.autoclearFeatures, true);
  writeU64LE(view, 40, header.l1Offset);
  writeU64LE(view, 48, header.sizeBytes);
  view.setUint32(56, header.backingNameOffset, true);
  view.setUint32(60, header.backingNameBytes, true);
  return bytes;
}
