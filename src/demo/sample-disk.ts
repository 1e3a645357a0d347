/**
 * A disk to show things with, laid out as a file system lays out its own: at the beginning of each group of 32 MiB some
 * metadata, then files of all sizes with room between them, fewer towards the end of the disk. About two fifths are data.
 */
import { open } from "node:fs/promises";
import type { Random } from "../env/random.ts";
import { BLOCK_BYTES, DiskModel } from "./disk-model.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const GROUP_BYTES = 32 * MIB;
const METADATA_BYTES = 256 * KIB;
const WRITE_BLOCKS_MAX = 256;
/** Files and the room behind them: many small ones, a few large ones. */
const FILE_BYTES = [4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB, 512 * KIB, 4 * MIB];
const FIRST_VERSION = 1;

export interface SampleDisk {
  readonly model: DiskModel;
  readonly path: string;
  /** Without the holes. */
  readonly dataBytes: number;
}

/** Creates `path` (it must not exist), `sizeBytes` long, a multiple of 1 MiB. */
export async function makeSampleDisk(path: string, sizeBytes: number, random: Random): Promise<SampleDisk> {
  const model = new DiskModel(sizeBytes, random);
  layOut(model, random);
  await using file = await open(path, "wx", 0o600);
  await file.truncate(sizeBytes);
  let dataBytes = 0;
  for (let block = 0; block < model.blocks; ) {
    const count = runLength(model, block);
    if (model.versions[block] !== 0) {
      await file.write(model.content(block, count), 0, count * BLOCK_BYTES, block * BLOCK_BYTES);
      dataBytes += count * BLOCK_BYTES;
    }
    block += count;
  }
  return { model, path, dataBytes };
}

function layOut({ versions, sizeBytes }: DiskModel, random: Random): void {
  const put = (offset: number, length: number): void => {
    versions.fill(FIRST_VERSION, offset / BLOCK_BYTES, Math.min(sizeBytes, offset + length) / BLOCK_BYTES);
  };
  const pick = (): number => FILE_BYTES[Math.floor(random.next() * FILE_BYTES.length)] ?? BLOCK_BYTES;
  for (let group = 0; group < sizeBytes; group += GROUP_BYTES) {
    put(group, METADATA_BYTES);
    const fullness = 0.65 - 0.5 * (group / sizeBytes);
    for (let at = group + METADATA_BYTES; at < Math.min(sizeBytes, group + GROUP_BYTES); ) {
      const length = pick();
      if (random.next() < fullness) put(at, length);
      at += length;
    }
  }
}

/** Blocks from `block` on that are data alike, or holes alike. */
function runLength({ versions, blocks }: DiskModel, block: number): number {
  let end = block + 1;
  while (end < blocks && end - block < WRITE_BLOCKS_MAX && versions[end] === versions[block]) end++;
  return end - block;
}
