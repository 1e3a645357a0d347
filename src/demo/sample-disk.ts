/**
 * A disk to show things with: a sparse file of which one MiB in four is a hole, and whose every 4 KiB block is different,
 * for it carries its own offset. Reading a block from the wrong place, or a block of zeroes, cannot go unnoticed.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import type { Random } from "../env/random.ts";

export const BLOCK_BYTES = 4096;
const UNIT_BYTES = 1024 * 1024;
const HOLE_EVERY = 4;

export interface SampleDisk {
  readonly path: string;
  readonly sizeBytes: number;
  /** Without the holes. */
  readonly dataBytes: number;
}

/** Creates `path` (it must not exist), `sizeBytes` long, a multiple of 1 MiB. */
export async function makeSampleDisk(path: string, sizeBytes: number, random: Random): Promise<SampleDisk> {
  await using file = await open(path, "wx", 0o600);
  await file.truncate(sizeBytes);
  const unit = Buffer.allocUnsafe(UNIT_BYTES);
  random.fill(unit);
  let dataBytes = 0;
  for (let offset = 0; offset < sizeBytes; offset += UNIT_BYTES) {
    if ((offset / UNIT_BYTES) % HOLE_EVERY === HOLE_EVERY - 1) continue;
    for (let at = 0; at < UNIT_BYTES; at += BLOCK_BYTES) stamp(unit, at, offset + at);
    await file.write(unit, 0, UNIT_BYTES, offset);
    dataBytes += UNIT_BYTES;
  }
  return { path, sizeBytes, dataBytes };
}

/** Marks the block at `at` in `buffer` as the one that belongs at byte `offset` of the disk. Never all zeroes. */
export function stamp(buffer: Buffer, at: number, offset: number): void {
  buffer.write("blockfry", at, "latin1");
  buffer.writeBigUInt64LE(BigInt(offset), at + 8);
}

/** SHA-256 of the whole file, holes as zeroes. */
export async function hashOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  await using file = await open(path, "r");
  await eachPiece(file, (piece) => hash.update(piece));
  return hash.digest("hex");
}

async function eachPiece(file: FileHandle, take: (piece: Buffer) => void): Promise<void> {
  const buffer = Buffer.allocUnsafe(UNIT_BYTES);
  for (;;) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, null);
    if (bytesRead === 0) return;
    take(buffer.subarray(0, bytesRead));
  }
}
