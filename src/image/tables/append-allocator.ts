/**
 * Space at the end of a file, in clusters. Nothing is used twice, with one exception: what was taken last and never got
 * into a table may be given back. Such space may hold anything, and is zeroed before it is taken again.
 */
import { BlockError } from "../../block/error.ts";
import type { ImageFile } from "./image-file.ts";

export class AppendAllocator {
  readonly #file: ImageFile;
  readonly #clusterBytes: number;
  #end: number;
  /** Below this, free space may hold garbage. */
  #touchedEnd: number;

  /** Begins behind the last whole cluster of the file. */
  constructor(file: ImageFile, clusterBytes: number) {
    this.#file = file;
    this.#clusterBytes = clusterBytes;
    this.#touchedEnd = file.sizeBytes;
    this.#end = Math.floor(file.sizeBytes / clusterBytes) * clusterBytes;
  }

  /** Where the next cluster will be; everything that is allocated lies before it. */
  get end(): number {
    return this.#end;
  }

  /** The offset of `count` clusters, which read as zeroes. */
  async take(count: number): Promise<number> {
    const { file } = this.#file;
    if (file.kind !== "regular") {
      throw new BlockError("no-space", `${file.path} is a block device: there is no room behind its last cluster`);
    }
    const offset = this.#end;
    const length = count * this.#clusterBytes;
    const garbage = Math.min(this.#touchedEnd, offset + length) - offset;
    this.#end += length;
    this.#touchedEnd = Math.max(this.#touchedEnd, this.#end);
    try {
      await this.#file.grow(offset + length);
      if (garbage > 0) await this.#file.zero(offset, garbage);
    } catch (error) {
      this.giveBack(offset, count);
      throw error;
    }
    return offset;
  }

  /** `count` clusters that no table on disk can refer to. They are lost unless they are the last ones. */
  giveBack(offset: number, count: number): void {
    if (offset + count * this.#clusterBytes === this.#end) this.#end = offset;
  }
}
