/**
 * A set of grains, the units in which the two sides agree on what has been pulled: a bit each, in pages that can be sent.
 * The source has one of what is clean; the destination a copy of that, and one of what has landed there.
 */
import { crc32 } from "node:zlib";
import { bitAt, bitCount, clearBits, runEnd, setBits } from "../cor/bits.ts";
import { MigrationProtocolError } from "./errors.ts";
import { CLEAN_PAGE_BYTES } from "./messages.ts";

const PAGE_GRAINS = CLEAN_PAGE_BYTES * 8;
const GRAIN_BYTES_MIN = 16 * 1024;
/** Together 8 MiB of bits, however large the disk. */
const GRAINS_MAX = 2 ** 26;

/** What the source chooses unless it is told otherwise. */
export function grainBytesFor(sizeBytes: number): number {
  let grainBytes = GRAIN_BYTES_MIN;
  while (sizeBytes / grainBytes > GRAINS_MAX) grainBytes *= 2;
  return grainBytes;
}

/** Throws `MigrationProtocolError` for grains that would take too much memory, or are no power of two. */
export function checkGrain(sizeBytes: number, grainBytes: number): void {
  const power = Math.log2(grainBytes);
  if (Number.isInteger(power) && sizeBytes / grainBytes <= GRAINS_MAX) return;
  throw new MigrationProtocolError(`grains of ${grainBytes} bytes do not suit a disk of ${sizeBytes}`);
}

export class GrainSet {
  readonly sizeBytes: number;
  readonly grainBytes: number;
  readonly grains: number;
  readonly #bits: Uint8Array<ArrayBuffer>;
  /** Pages that were not taken since they changed. */
  readonly #changed = new Set<number>();
  #count = 0;
  #sealed = false;

  constructor(sizeBytes: number, grainBytes: number) {
    this.sizeBytes = sizeBytes;
    this.grainBytes = grainBytes;
    this.grains = Math.ceil(sizeBytes / grainBytes);
    this.#bits = new Uint8Array(Math.ceil(this.grains / PAGE_GRAINS) * CLEAN_PAGE_BYTES);
  }

  get count(): number {
    return this.#count;
  }

  /** As if the last grain were as long as the others. */
  get bytes(): number {
    return Math.min(this.sizeBytes, this.#count * this.grainBytes);
  }

  has(grain: number): boolean {
    return bitAt(this.#bits, grain);
  }

  /** The last of the grains from `first` on, up to `last`, that are all in the set, or all not; `first` − 1: not even that. */
  runEnd(first: number, last: number, inSet: boolean): number {
    return runEnd(this.#bits, [first, last], inSet);
  }

  /** Adds the grains that lie within [offset, offset + length) as a whole. Nothing, while sealed. */
  addWithin(offset: number, length: number): void {
    const end = offset + length;
    const first = Math.ceil(offset / this.grainBytes);
    const last = end === this.sizeBytes ? this.grains - 1 : Math.floor(end / this.grainBytes) - 1;
    if (first <= last && !this.#sealed) this.add(first, last);
  }

  /** Removes every grain that [offset, offset + length) touches. */
  removeTouched(offset: number, length: number): void {
    if (length <= 0) return;
    const first = Math.max(0, Math.floor(offset / this.grainBytes));
    const last = Math.min(this.grains - 1, Math.floor((offset + length - 1) / this.grainBytes));
    if (first <= last) this.remove(first, last);
  }

  add(first: number, last: number): void {
    const added = setBits(this.#bits, [first, last]);
    this.#count += added;
    if (added > 0) this.#noteChanged(first, last);
  }

  remove(first: number, last: number): void {
    const removed = clearBits(this.#bits, [first, last]);
    this.#count -= removed;
    if (removed > 0) this.#noteChanged(first, last);
  }

  /** Nothing is added until `unseal`. */
  seal(): void {
    this.#sealed = true;
  }

  unseal(): void {
    this.#sealed = false;
  }

  /** Empties it, and forgets what has changed: whoever has a copy begins with an empty one too. */
  clear(): void {
    this.#bits.fill(0);
    this.#changed.clear();
    this.#count = 0;
  }

  /** Removes what is not in `other` too. Returns how much that was. */
  intersect(other: GrainSet): number {
    let removed = 0;
    for (let at = 0; at < this.grains; ) {
      const kept = other.runEnd(at, this.grains - 1, true) + 1;
      if (kept >= this.grains) break;
      const last = other.runEnd(kept, this.grains - 1, false);
      const before = this.#count;
      this.remove(kept, last);
      removed += before - this.#count;
      at = last + 1;
    }
    return removed;
  }

  /** At most so many pages that have changed, as they are now. */
  takeChanged(countMax: number): [page: number, bits: Uint8Array<ArrayBuffer>][] {
    const taken: [number, Uint8Array<ArrayBuffer>][] = [];
    for (const page of this.#changed) {
      if (taken.length === countMax) break;
      taken.push([page, this.#bits.slice(page * CLEAN_PAGE_BYTES, (page + 1) * CLEAN_PAGE_BYTES)]);
      this.#changed.delete(page);
    }
    return taken;
  }

  /** Takes over a page of the peer's set. Throws `MigrationProtocolError`. */
  putPage(page: number, bits: Uint8Array): void {
    const start = page * CLEAN_PAGE_BYTES;
    if (bits.length !== CLEAN_PAGE_BYTES || start >= this.#bits.length) {
      throw new MigrationProtocolError("a page of the clean set is not of this disk");
    }
    const within = this.grains - page * PAGE_GRAINS;
    if (within < PAGE_GRAINS && runEnd(bits, [within, PAGE_GRAINS - 1], false) < PAGE_GRAINS - 1) {
      throw new MigrationProtocolError("a page of the clean set goes beyond the disk");
    }
    this.#count += bitCount(bits) - bitCount(this.#bits.subarray(start, start + CLEAN_PAGE_BYTES));
    this.#bits.set(bits, start);
  }

  /** Sets in a page of presence bits those of the clusters whose grains are in the set; a grain is some clusters, whole. */
  fillClusters({ bits, first, count }: { bits: Uint8Array; first: number; count: number }, clusterBytes: number): void {
    const perGrain = this.grainBytes / clusterBytes;
    const end = first + count;
    for (let at = first; at < end; ) {
      const grain = Math.floor(at / perGrain);
      const lastGrain = Math.floor((end - 1) / perGrain);
      const inSet = this.has(grain);
      const run = this.runEnd(grain, lastGrain, inSet);
      const next = Math.min(end, (run + 1) * perGrain);
      if (inSet) setBits(bits, [at - first, next - 1 - first]);
      at = next;
    }
  }

  checksum(): number {
    return crc32(this.#bits);
  }

  #noteChanged(first: number, last: number): void {
    for (let page = Math.floor(first / PAGE_GRAINS); page <= Math.floor(last / PAGE_GRAINS); page++) {
      this.#changed.add(page);
    }
  }
}
