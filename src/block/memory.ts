/**
 * A device in memory: for tests, the demo and the documentation. Sparse: what was never written takes no memory and is
 * reported as a hole. Nothing survives the process, so `flush` and FUA have nothing to do.
 *
 * Invariant: a page that is absent from the table reads as zeroes and is a hole; a page that is there is data.
 */
import type { BlockCapabilities, BlockDevice, BlockSizes, WriteOptions, ZeroOptions } from "./device.ts";
import { BlockError, checkRange } from "./error.ts";
import { appendExtent, type Extent } from "./extents.ts";

const PAGE_BYTES_DEFAULT = 64 * 1024;
/** What one device may hold before writes fail with "no-space". */
const HELD_BYTES_MAX_DEFAULT = 1024 * 1024 * 1024;
/** Pages looked at by one call of `extents`: a walk over 16 TiB of hole stays short. */
const EXTENT_PAGES_MAX = 65_536;

export interface MemoryDeviceOptions {
  /** Any whole number below 2^53. */
  readonly sizeBytes: number;
  /** What the device holds at first, from offset 0 on; copied. */
  readonly content?: Uint8Array;
  readonly readOnly?: boolean;
  readonly rotational?: boolean;
  readonly blockSizes?: BlockSizes;
  /** How finely holes are told from data. */
  readonly pageBytes?: number;
  readonly heldBytesMax?: number;
}

export class MemoryDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #pages = new Map<number, Uint8Array>();
  readonly #pageBytes: number;
  readonly #pagesMax: number;
  #closed = false;

  constructor(options: MemoryDeviceOptions) {
    const { sizeBytes, content, pageBytes = PAGE_BYTES_DEFAULT, heldBytesMax = HELD_BYTES_MAX_DEFAULT } = options;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) throw new RangeError(`bad device size ${sizeBytes}`);
    this.sizeBytes = sizeBytes;
    this.#pageBytes = pageBytes;
    this.#pagesMax = Math.floor(heldBytesMax / pageBytes);
    this.capabilities = {
      readOnly: options.readOnly ?? false,
      discard: true,
      fastZero: true,
      extents: true,
      rotational: options.rotational ?? false,
      blockSizes: options.blockSizes ?? { minimum: 1, preferred: 4096 },
    };
    if (content !== undefined) {
      checkRange(0, content.length, sizeBytes);
      this.#store(0, content);
    }
  }

  /** Memory that the pages take. */
  get heldBytes(): number {
    return this.#pages.size * this.#pageBytes;
  }

  readNow(offset: number, into: Uint8Array): number {
    if (this.#closed || !(offset >= 0 && offset + into.length <= this.sizeBytes)) return -1;
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const within = at % this.#pageBytes;
      const count = Math.min(this.#pageBytes - within, into.length - done);
      const page = this.#pages.get((at - within) / this.#pageBytes);
      if (page === undefined) into.fill(0, done, done + count);
      else into.set(page.subarray(within, within + count), done);
      done += count;
    }
    return into.length;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#check(offset, into.length);
    this.readNow(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    if (this.#closed || this.capabilities.readOnly) return -1;
    if (!(offset >= 0 && offset + from.length <= this.sizeBytes)) return -1;
    this.#store(offset, from);
    return from.length;
  }

  async write(offset: number, from: Uint8Array, _options?: WriteOptions): Promise<void> {
    this.#checkWritable(offset, from.length);
    this.#store(offset, from);
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    this.#checkWritable(offset, length);
    if (options.noHole) this.#reserve(offset, length);
    this.#zero(offset, length, !options.noHole);
  }

  async discard(offset: number, length: number, _options?: WriteOptions): Promise<void> {
    this.#checkWritable(offset, length);
    this.#zero(offset, length, true);
  }

  async cache(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
  }

  async flush(): Promise<void> {
    this.#check(0, 0);
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    this.#check(offset, length);
    if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
    const list: Extent[] = [];
    const end = offset + length;
    let at = offset;
    for (let visited = 0; at < end && visited < EXTENT_PAGES_MAX; visited++) {
      const page = Math.floor(at / this.#pageBytes);
      const stop = Math.min((page + 1) * this.#pageBytes, end);
      const hole = !this.#pages.has(page);
      if (list.length === countMax && list.at(-1)?.hole !== hole) break;
      appendExtent(list, { length: stop - at, hole, zero: hole });
      at = stop;
    }
    return list;
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new BlockError("shutting-down", "the device is closed");
    checkRange(offset, length, this.sizeBytes);
  }

  #checkWritable(offset: number, length: number): void {
    this.#check(offset, length);
    if (this.capabilities.readOnly) throw new BlockError("read-only", "the device is read-only");
  }

  #store(offset: number, from: Uint8Array): void {
    this.#reserve(offset, from.length);
    for (let done = 0; done < from.length; ) {
      const within = (offset + done) % this.#pageBytes;
      const count = Math.min(this.#pageBytes - within, from.length - done);
      const page = this.#pages.get((offset + done - within) / this.#pageBytes);
      page?.set(from.subarray(done, done + count), within);
      done += count;
    }
  }

  /** Makes pages for the whole range, or none and throws "no-space". */
  #reserve(offset: number, length: number): void {
    if (length === 0) return;
    const first = Math.floor(offset / this.#pageBytes);
    const last = Math.floor((offset + length - 1) / this.#pageBytes);
    const free = this.#pagesMax - this.#pages.size;
    // More pages than could ever be held are not worth counting one by one.
    const missing = last - first + 1 > this.#pagesMax ? Infinity : this.#countMissing(first, last);
    if (missing > free) throw new BlockError("no-space", `the device may hold ${this.#pagesMax} pages in memory`);
    for (let page = first; page <= last; page++) {
      if (!this.#pages.has(page)) this.#pages.set(page, new Uint8Array(this.#pageBytes));
    }
  }

  #countMissing(first: number, last: number): number {
    let missing = 0;
    for (let page = first; page <= last; page++) if (!this.#pages.has(page)) missing += 1;
    return missing;
  }

  #zero(offset: number, length: number, dropPages: boolean): void {
    const end = offset + length;
    for (const [page, bytes] of this.#within(offset, end)) {
      const start = page * this.#pageBytes;
      const whole = offset <= start && Math.min(start + this.#pageBytes, this.sizeBytes) <= end;
      if (whole && dropPages) this.#pages.delete(page);
      else bytes.fill(0, Math.max(offset - start, 0), Math.min(end - start, this.#pageBytes));
    }
  }

  /** The pages held that [offset, end) touches, by whichever way is shorter: along the range, or through the table. */
  *#within(offset: number, end: number): Generator<[number, Uint8Array]> {
    if (offset >= end) return;
    const first = Math.floor(offset / this.#pageBytes);
    const last = Math.floor((end - 1) / this.#pageBytes);
    if (last - first > this.#pages.size) {
      for (const entry of this.#pages) if (entry[0] >= first && entry[0] <= last) yield entry;
      return;
    }
    for (let page = first; page <= last; page++) {
      const bytes = this.#pages.get(page);
      if (bytes !== undefined) yield [page, bytes];
    }
  }
}
