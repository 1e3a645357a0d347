/**
 * Makes requests of any offset and length fit a device that takes whole blocks only: reads take a detour through a
 * buffer, writes read the blocks at their edges, change them, and write them back. proto.md, "Size constraints".
 *
 * Invariant: no other write through this object touches a block while its old contents are being merged. Writes of
 * whole blocks share their range; a merging write has it alone. Writers elsewhere cannot be kept out.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../../block/device.ts";
import { BlockError, checkRange } from "../../block/error.ts";
import type { Extent } from "../../block/extents.ts";
import { InFlight } from "../../util/in-flight.ts";
import { allOf } from "./pieces.ts";
import { RangeLock, type RangeLocking } from "./range-lock.ts";

/** Unaligned requests up to this are copied whole, into one request; longer ones only at their edges. */
const DETOUR_BYTES_MAX = 256 * 1024;

/** The blocks that a range touches. */
interface Span {
  readonly start: number;
  readonly end: number;
  /** The range itself consists of whole blocks. */
  readonly exact: boolean;
}

export class AlignedDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #device: BlockDevice;
  readonly #blockBytes: number;
  readonly #lock: RangeLocking;
  readonly #inFlight = new InFlight();

  /** `device` takes multiples of its minimum block size, which its size is a multiple of; it becomes ours. */
  constructor(device: BlockDevice, lock: RangeLocking = new RangeLock()) {
    this.#device = device;
    this.#lock = lock;
    this.sizeBytes = device.sizeBytes;
    this.capabilities = device.capabilities;
    this.#blockBytes = device.capabilities.blockSizes.minimum;
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#span(offset, into.length).exact ? this.#device.readNow(offset, into) : -1;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    checkRange(offset, into.length, this.sizeBytes);
    const span = this.#span(offset, into.length);
    if (span.exact) return this.#device.read(offset, into);
    await this.#underWay(() => this.#readUnaligned(span, offset, into));
  }

  async #readUnaligned(span: Span, offset: number, into: Uint8Array): Promise<void> {
    if (span.end - span.start <= DETOUR_BYTES_MAX) return this.#readAround(span, offset, into);
    const { start, end } = this.#inner(offset, into.length);
    const length = end - offset;
    await allOf([
      this.#readEdge(offset, into.subarray(0, start - offset)),
      this.#device.read(start, into.subarray(start - offset, length)),
      this.#readEdge(end, into.subarray(length)),
    ]);
  }

  /** Always −1: the locks may have to be waited for. */
  writeNow(_offset: number, _from: Uint8Array): number {
    return -1;
  }

  async write(offset: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    this.#checkWritable(offset, from.length);
    await this.#locked(this.#span(offset, from.length), async (span) => {
      if (span.exact) return this.#device.write(offset, from, options);
      if (span.end - span.start <= DETOUR_BYTES_MAX) return this.#merge(span, offset, from, options);
      const { start, end } = this.#inner(offset, from.length);
      await allOf([
        this.#mergeEdge(offset, from.subarray(0, start - offset), options),
        this.#device.write(start, from.subarray(start - offset, end - offset), options),
        this.#mergeEdge(end, from.subarray(end - offset), options),
      ]);
    });
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    this.#checkWritable(offset, length);
    await this.#locked(this.#span(offset, length), async (span) => {
      if (span.exact) return this.#device.writeZeroes(offset, length, options);
      const inner = this.#inner(offset, length);
      if (inner.end <= inner.start) {
        // Merging zeroes into a block is a write, and no faster than one.
        if (options.fastOnly === true) throw new BlockError("not-supported", "only parts of blocks are to be zeroed");
        return this.#merge(span, offset, new Uint8Array(length), options);
      }
      // First what may fail without having changed anything.
      await this.#device.writeZeroes(inner.start, inner.end - inner.start, options);
      await this.#mergeEdge(offset, new Uint8Array(inner.start - offset), options);
      await this.#mergeEdge(inner.end, new Uint8Array(offset + length - inner.end), options);
    });
  }

  /** Whole blocks only: a hint about parts of blocks is of no use. */
  async discard(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    this.#checkWritable(offset, length);
    const { start, end } = this.#inner(offset, length);
    const within = Math.max(end - start, 0);
    const whole = { start, end: start + within, exact: true };
    await this.#locked(whole, () => this.#device.discard(within === 0 ? 0 : start, within, options));
  }

  async cache(offset: number, length: number): Promise<void> {
    checkRange(offset, length, this.sizeBytes);
    const { start, end } = this.#span(offset, length);
    await this.#device.cache(start, end - start);
  }

  flush(): Promise<void> {
    return this.#device.flush();
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    checkRange(offset, length, this.sizeBytes);
    if (length < 1) throw new BlockError("invalid", "no extents were asked for");
    const { start, end } = this.#span(offset, length);
    const found = cutToRange(await this.#device.extents(start, end - start, countMax), offset - start, length);
    // An answer that ends before our range begins is no answer; "data" always is one.
    return found.length > 0 ? found : [{ length, hole: false, zero: false }];
  }

  async close(): Promise<void> {
    await this.#inFlight.close();
    await this.#device.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #span(offset: number, length: number): Span {
    const block = this.#blockBytes;
    const start = offset - (offset % block);
    const last = offset + length;
    // No bytes at all are whole blocks too; nothing is sent for them.
    if (length === 0) return { start: offset, end: offset, exact: true };
    const end = last + ((block - (last % block)) % block);
    return { start, end, exact: start === offset && end === last };
  }

  /** The whole blocks within a range; none when `end` ≤ `start`. */
  #inner(offset: number, length: number): { start: number; end: number } {
    const block = this.#blockBytes;
    const last = offset + length;
    return { start: offset + ((block - (offset % block)) % block), end: last - (last % block) };
  }

  async #readAround(span: Span, offset: number, into: Uint8Array): Promise<void> {
    const detour = new Uint8Array(span.end - span.start);
    await this.#device.read(span.start, detour);
    into.set(detour.subarray(offset - span.start, offset - span.start + into.length));
  }

  async #readEdge(offset: number, into: Uint8Array): Promise<void> {
    if (into.length > 0) await this.#readAround(this.#span(offset, into.length), offset, into);
  }

  /** Writes `from` into the blocks of `span`, which the caller has locked, keeping what else is in them. */
  async #merge(span: Span, offset: number, from: Uint8Array, options: WriteOptions): Promise<void> {
    const block = this.#blockBytes;
    const merged = new Uint8Array(span.end - span.start);
    const lastBlock = merged.length - block;
    const reads: Promise<void>[] = [];
    if (offset > span.start || lastBlock === 0) {
      reads.push(this.#device.read(span.start, merged.subarray(0, block)));
    }
    if (offset + from.length < span.end && lastBlock > 0) {
      reads.push(this.#device.read(span.end - block, merged.subarray(lastBlock)));
    }
    await allOf(reads);
    merged.set(from, offset - span.start);
    await this.#device.write(span.start, merged, fuaOf(options));
  }

  async #mergeEdge(offset: number, from: Uint8Array, options: WriteOptions): Promise<void> {
    if (from.length > 0) await this.#merge(this.#span(offset, from.length), offset, from, options);
  }

  async #locked(span: Span, work: (span: Span) => Promise<void>): Promise<void> {
    await this.#underWay(async () => {
      const hold = await this.#lock.acquire(span.start, span.end, !span.exact);
      try {
        await work(span);
      } finally {
        this.#lock.release(hold);
      }
    });
  }

  /** `close` waits for it. */
  async #underWay(work: () => Promise<void>): Promise<void> {
    if (!this.#inFlight.enter()) throw new BlockError("shutting-down", "the connection is closed");
    try {
      await work();
    } finally {
      this.#inFlight.leave();
    }
  }

  #checkWritable(offset: number, length: number): void {
    if (this.capabilities.readOnly) throw new BlockError("read-only", "the server exports this read-only");
    checkRange(offset, length, this.sizeBytes);
  }
}

/** Drops the first `skip` bytes of consecutive extents and cuts the rest to `length` bytes. */
export function cutToRange<T extends { readonly length: number }>(
  list: readonly T[],
  skip: number,
  length: number,
): T[] {
  const kept: T[] = [];
  let at = -skip;
  for (const extent of list) {
    const start = Math.max(at, 0);
    const end = Math.min(at + extent.length, length);
    if (end > start) kept.push({ ...extent, length: end - start });
    at += extent.length;
  }
  return kept;
}

function fuaOf(options: WriteOptions): WriteOptions {
  return options.fua === true ? { fua: true } : {};
}
