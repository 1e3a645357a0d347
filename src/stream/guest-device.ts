/**
 * An overlay as guests use it while it is being hydrated: their reads are looked at, so that what they will want is brought
 * ahead, and the time that they wait for what is missing is measured. Once everything is local it only passes on.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../block/device.ts";
import type { Extent } from "../block/extents.ts";
import type { Clock } from "../env/clock.ts";
import { StallHistogram, type StallTimes } from "./stall-times.ts";

export interface GuestTarget extends BlockDevice {
  /** As far as memory can tell at once. */
  isLocal(offset: number, length: number): boolean;
}

export interface GuestWatchers {
  /** Before the read is begun: what is on its way for it should hurry. */
  readonly onMissing?: (offset: number, length: number) => void;
  /** After it was begun. */
  readonly onRead: (offset: number, length: number, missing: boolean) => void;
}

export class GuestDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #target: GuestTarget;
  readonly #clock: Pick<Clock, "nowMs">;
  readonly #stalls = new StallHistogram();
  #watchers: GuestWatchers | undefined;

  /** The target stays the caller's, but for `close`, which closes it. */
  constructor(target: GuestTarget, clock: Pick<Clock, "nowMs">, watchers: GuestWatchers) {
    this.#target = target;
    this.#clock = clock;
    this.#watchers = watchers;
    this.sizeBytes = target.sizeBytes;
    this.capabilities = target.capabilities;
  }

  /** Of reads that met something missing. */
  stalls(): StallTimes {
    return this.#stalls.summary();
  }

  /** Everything is local. */
  stopWatching(): void {
    this.#watchers = undefined;
  }

  isLocal(offset: number, length: number): boolean {
    return this.#target.isLocal(offset, length);
  }

  readNow(offset: number, into: Uint8Array): number {
    const count = this.#target.readNow(offset, into);
    if (count > 0 && this.#watchers !== undefined) this.#watchers.onRead(offset, count, false);
    return count;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    const watchers = this.#watchers;
    const { length } = into;
    const watched = watchers !== undefined && length > 0 && offset >= 0 && offset + length <= this.sizeBytes;
    if (!watched) return this.#target.read(offset, into);
    const missing = !this.#target.isLocal(offset, length);
    if (missing) watchers.onMissing?.(offset, length);
    const startMs = this.#clock.nowMs();
    const done = this.#target.read(offset, into);
    watchers.onRead(offset, length, missing);
    return missing ? this.#measured(done, startMs) : done;
  }

  writeNow(offset: number, from: Uint8Array): number {
    return this.#target.writeNow(offset, from);
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#target.write(offset, from, options);
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.#target.writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#target.discard(offset, length, options);
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#target.cache(offset, length);
  }

  flush(): Promise<void> {
    return this.#target.flush();
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#target.extents(offset, length, countMax);
  }

  close(): Promise<void> {
    return this.#target.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #measured(done: Promise<void>, startMs: number): Promise<void> {
    try {
      await done;
    } finally {
      this.#stalls.add(this.#clock.nowMs() - startMs);
    }
  }
}
