/**
 * Space at the end of a file, in clusters. Nothing is used twice, with one exception: what was taken last and never got
 * into a table may be given back. Such space may hold anything, and is zeroed, durably, before it is taken again: where
 * nothing orders data before entries, an entry may survive a crash that the zeroes do not.
 */
import type { Place, Space } from "./cluster-pool.ts";
import { checkGrowable, type ImageFile } from "./image-file.ts";

export class AppendAllocator implements Space {
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

  take(wanted: number): Promise<Place> {
    return this.takeWhole(wanted);
  }

  async takeWhole(count: number): Promise<Place> {
    checkGrowable(this.#file);
    const place = { offset: this.#end, count };
    const length = count * this.#clusterBytes;
    const garbage = Math.min(this.#touchedEnd, place.offset + length) - place.offset;
    this.#end += length;
    this.#touchedEnd = Math.max(this.#touchedEnd, this.#end);
    try {
      await this.#file.grow(place.offset + length);
      if (garbage > 0) {
        await this.#file.zero(place.offset, garbage);
        await this.#file.sync();
      }
    } catch (error) {
      this.giveBack(place);
      throw error;
    }
    return place;
  }

  /** They are lost unless they are the last ones. */
  giveBack({ offset, count }: Place): void {
    if (offset + count * this.#clusterBytes === this.#end) this.#end = offset;
  }
}
