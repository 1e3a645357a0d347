/** A device whose changes are counted: whether anybody is writing just now. */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../../block/device.ts";
import type { Extent } from "../../block/extents.ts";
import type { Clock } from "../../env/clock.ts";

export class WriteMeter {
  /** Since the start. */
  begun = 0;
  /** Begun, and not done or failed. Those that are held are among them. */
  underWay = 0;
  readonly #clock: Pick<Clock, "nowMs">;
  readonly #onFirst: () => void;
  #lastMs = Number.NEGATIVE_INFINITY;

  /** `onFirst` is called once, in the turn of the first change. Must not throw. */
  constructor(clock: Pick<Clock, "nowMs">, onFirst: () => void = () => undefined) {
    this.#clock = clock;
    this.#onFirst = onFirst;
  }

  /** Since the last change was begun; without end when there was none. */
  get quietMs(): number {
    return this.#clock.nowMs() - this.#lastMs;
  }

  begin(): void {
    this.begun += 1;
    this.#lastMs = this.#clock.nowMs();
    if (this.begun === 1) this.#onFirst();
  }
}

/** Closing it does nothing: the device below is somebody else's. */
export class MeteredDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #device: BlockDevice;
  readonly #meter: WriteMeter;

  constructor(device: BlockDevice, meter: WriteMeter) {
    this.#device = device;
    this.#meter = meter;
    this.sizeBytes = device.sizeBytes;
    this.capabilities = device.capabilities;
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#device.readNow(offset, into);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#device.read(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    const count = this.#device.writeNow(offset, from);
    // What is not done here comes again, as `write`.
    if (count >= 0) this.#meter.begin();
    return count;
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#counted(this.#device.write(offset, from, options));
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.#counted(this.#device.writeZeroes(offset, length, options));
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#counted(this.#device.discard(offset, length, options));
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#device.cache(offset, length);
  }

  flush(): Promise<void> {
    return this.#device.flush();
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#device.extents(offset, length, countMax);
  }

  async close(): Promise<void> {}

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #counted(change: Promise<void>): Promise<void> {
    const meter = this.#meter;
    meter.begin();
    meter.underWay += 1;
    try {
      await change;
    } finally {
      meter.underWay -= 1;
    }
  }
}
