/**
 * The bytes of `IMAGE.map`. Numbers are little-endian; every record ends in the CRC-32 of all bytes before it.
 *
 * | offset | length | what it is |
 * | --- | --- | --- |
 * | 0 | 512 | superblock 0; the rest of its 4 KiB is zero |
 * | 4096 | 512 | superblock 1 |
 * | 8192 | pages × 4096 | slot A of the bitmap: 8 sectors a page |
 * | 8192 + pages × 4096 | pages × 4096 | slot B |
 *
 * | superblock | length | |
 * | --- | --- | --- |
 * | 0 | 8 | magic "BFERRYMP" |
 * | 8 | 4 | version, 1 |
 * | 12 | 4 | state: 0 new, 1 open, 2 clean, 3 complete |
 * | 16 | 16 | uuid, which the image carries too |
 * | 32 | 8 | generation; of two valid superblocks the greater one holds |
 * | 40 | 8 | size of the disk in bytes |
 * | 48 | 4 | cluster size in bytes |
 * | 52 | 2 | length of the source's identity in bytes |
 * | 56 | 8 | term |
 * | 64 | 256 | the source's identity, UTF-8, zeroes after it |
 * | 508 | 4 | CRC-32 |
 *
 * | bitmap sector | length | |
 * | --- | --- | --- |
 * | 0 | 496 | bits, cluster n of the sector being bit n % 8 of byte n / 8 |
 * | 496 | 4 | sector number |
 * | 500 | 8 | generation; of two valid sectors the greater one holds |
 * | 508 | 4 | CRC-32 |
 *
 * A sector of zeroes is valid and has generation 0. A page of 8 sectors is always written whole, to the slot that does
 * not hold it: whatever a power cut does to 4 KiB, what was durable before lies in other 4 KiB.
 */
import { crc32 } from "node:zlib";
import type { MapState } from "../block/overlay-store.ts";
import { isZero } from "../util/zeroes.ts";

export const MAP_VERSION = 1;
export const SECTOR_BYTES = 512;
export const SECTOR_BITS_BYTES = 496;
export const PAGE_BYTES = 4096;
export const PAGE_SECTORS = PAGE_BYTES / SECTOR_BYTES;
export const PAGE_BITS_BYTES = SECTOR_BITS_BYTES * PAGE_SECTORS;
/** Clusters that one page tells of. */
export const PAGE_CLUSTERS = PAGE_BITS_BYTES * 8;
export const SLOTS_OFFSET = 2 * PAGE_BYTES;
export const UUID_BYTES = 16;
export const IDENTITY_BYTES_MAX = 256;

const MAGIC = Buffer.from("BFERRYMP", "latin1");
const CRC_AT = 508;
const STATES: readonly MapState[] = ["new", "open", "clean", "complete"];

/** 0 is A, 1 is B. */
export type Slot = 0 | 1;

export interface Superblock {
  readonly state: MapState;
  readonly uuid: Uint8Array;
  readonly generation: number;
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly sourceIdentity: string;
  readonly term: number;
}

export function encodeSuperblock(fields: Superblock): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  const identity = Buffer.from(fields.sourceIdentity, "utf8");
  if (identity.length > IDENTITY_BYTES_MAX) throw new RangeError("the source's identity is longer than 256 bytes");
  if (fields.uuid.length !== UUID_BYTES) throw new RangeError("a uuid has 16 bytes");
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32LE(MAP_VERSION, 8);
  bytes.writeUInt32LE(STATES.indexOf(fields.state), 12);
  bytes.set(fields.uuid, 16);
  putU64(bytes, 32, fields.generation);
  putU64(bytes, 40, fields.sizeBytes);
  bytes.writeUInt32LE(fields.clusterBytes, 48);
  bytes.writeUInt16LE(identity.length, 52);
  putU64(bytes, 56, fields.term);
  identity.copy(bytes, 64);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, CRC_AT)), CRC_AT);
  return bytes;
}

/** `undefined`: not a valid superblock. "later": one of a version that we do not know. */
export function decodeSuperblock(source: Uint8Array): Superblock | "later" | undefined {
  const bytes = asBuffer(source);
  if (bytes.length < SECTOR_BYTES || !bytes.subarray(0, 8).equals(MAGIC)) return undefined;
  if (crc32(bytes.subarray(0, CRC_AT)) !== bytes.readUInt32LE(CRC_AT)) return undefined;
  if (bytes.readUInt32LE(8) !== MAP_VERSION) return "later";
  const state = STATES[bytes.readUInt32LE(12)];
  const sizeBytes = getU64(bytes, 40);
  const clusterBytes = bytes.readUInt32LE(48);
  const identityLength = bytes.readUInt16LE(52);
  if (state === undefined || !Number.isSafeInteger(sizeBytes) || !isClusterSize(clusterBytes)) return undefined;
  if (identityLength > IDENTITY_BYTES_MAX) return undefined;
  return {
    state,
    uuid: Uint8Array.from(bytes.subarray(16, 32)),
    generation: getU64(bytes, 32),
    sizeBytes,
    clusterBytes,
    sourceIdentity: bytes.toString("utf8", 64, 64 + identityLength),
    term: getU64(bytes, 56),
  };
}

/** A power of two from 512 bytes to 2 MiB. */
export function isClusterSize(bytes: number): boolean {
  return bytes >= 512 && bytes <= 2 ** 21 && (bytes & (bytes - 1)) === 0;
}

export function clusterCount(sizeBytes: number, clusterBytes: number): number {
  return Math.ceil(sizeBytes / clusterBytes);
}

export function pageCount(clusters: number): number {
  return Math.ceil(clusters / PAGE_CLUSTERS);
}

/** One page of 8 sectors from `PAGE_BITS_BYTES` of bits. */
export function encodePage(bits: Uint8Array, page: number, generation: number): Buffer {
  const bytes = Buffer.alloc(PAGE_BYTES);
  for (let index = 0; index < PAGE_SECTORS; index++) {
    const sector = bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
    sector.set(bits.subarray(index * SECTOR_BITS_BYTES, (index + 1) * SECTOR_BITS_BYTES));
    sector.writeUInt32LE(page * PAGE_SECTORS + index, 496);
    putU64(sector, 500, generation);
    sector.writeUInt32LE(crc32(sector.subarray(0, CRC_AT)), CRC_AT);
  }
  return bytes;
}

/** The generation of a sector that should be number `sector`; −1: bad. */
export function sectorGeneration(source: Uint8Array, sector: number): number {
  if (isZero(source)) return 0;
  const bytes = asBuffer(source);
  if (crc32(bytes.subarray(0, CRC_AT)) !== bytes.readUInt32LE(CRC_AT)) return -1;
  if (bytes.readUInt32LE(496) !== sector) return -1;
  const generation = getU64(bytes, 500);
  return Number.isSafeInteger(generation) ? generation : -1;
}

export interface LoadedPage {
  readonly bits: Uint8Array;
  /** The slot that holds the greatest generation. */
  readonly slot: Slot;
  readonly generation: number;
  /** Some sectors had to be taken from the other slot: the last write of the page did not reach the disk whole. */
  readonly torn: boolean;
}

/** The newest valid sectors of both slots of a page; `undefined` when both copies of a sector are bad. `stale` is a mutant. */
export function decodePage(
  slots: readonly [Uint8Array, Uint8Array],
  page: number,
  stale = false,
): LoadedPage | undefined {
  const bits = new Uint8Array(PAGE_BITS_BYTES);
  const from: Slot[] = [];
  const generations: number[] = [];
  for (let index = 0; index < PAGE_SECTORS; index++) {
    const start = index * SECTOR_BYTES;
    const a = sectorGeneration(slots[0].subarray(start, start + SECTOR_BYTES), page * PAGE_SECTORS + index);
    const b = sectorGeneration(slots[1].subarray(start, start + SECTOR_BYTES), page * PAGE_SECTORS + index);
    if (a < 0 && b < 0) return undefined;
    const pick: Slot = stale && a >= 0 && b >= 0 ? (b < a ? 1 : 0) : b > a ? 1 : 0;
    bits.set(slots[pick].subarray(start, start + SECTOR_BITS_BYTES), index * SECTOR_BITS_BYTES);
    from.push(pick);
    generations.push(pick === 1 ? b : a);
  }
  const generation = Math.max(...generations);
  const slot = from[generations.indexOf(generation)] ?? 0;
  return { bits, slot, generation, torn: generations.some((each) => each !== generation) };
}

function putU64(bytes: Buffer, offset: number, value: number): void {
  bytes.writeUInt32LE(value % 2 ** 32, offset);
  bytes.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4);
}

/** `Infinity` above 2^53 − 1. */
function getU64(bytes: Buffer, offset: number): number {
  const value = bytes.readUInt32LE(offset + 4) * 2 ** 32 + bytes.readUInt32LE(offset);
  return Number.isSafeInteger(value) ? value : Infinity;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
