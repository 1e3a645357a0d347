/**
 * What the disk of the demo has to hold: a version for each block of 4 KiB. Version 0 reads as zeroes; every other one
 * carries its block and its version, so that an old block, one from the wrong place, or one of zeroes cannot go unnoticed.
 */
import type { Random } from "../env/random.ts";

export const BLOCK_BYTES = 4096;
const NOISE_BLOCKS = 256;
const STAMP = "blockfry";

export class DiskModel {
  readonly sizeBytes: number;
  readonly versions: Uint32Array;
  /** Does not compress, and is the same for all versions of a block but for its stamp. */
  readonly #noise = Buffer.allocUnsafe(NOISE_BLOCKS * BLOCK_BYTES);

  constructor(sizeBytes: number, random: Random) {
    this.sizeBytes = sizeBytes;
    this.versions = new Uint32Array(sizeBytes / BLOCK_BYTES);
    random.fill(this.#noise);
  }

  get blocks(): number {
    return this.versions.length;
  }

  /** What `count` blocks hold in `version`; of their present versions unless it is given. */
  content(block: number, count: number, version?: number): Buffer {
    const into = Buffer.allocUnsafe(count * BLOCK_BYTES);
    for (let index = 0; index < count; index++) {
      this.#fill(into, index * BLOCK_BYTES, block + index, version ?? this.versions[block + index] ?? 0);
    }
    return into;
  }

  #fill(into: Buffer, at: number, block: number, version: number): void {
    if (version === 0) {
      into.fill(0, at, at + BLOCK_BYTES);
      return;
    }
    const from = (block % NOISE_BLOCKS) * BLOCK_BYTES;
    this.#noise.copy(into, at, from, from + BLOCK_BYTES);
    into.write(STAMP, at, "latin1");
    into.writeDoubleLE(block * BLOCK_BYTES, at + 8);
    into.writeUInt32LE(version, at + 16);
  }
}
