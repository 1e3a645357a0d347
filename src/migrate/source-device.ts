/**
 * A disk on the source, as its guest uses it. It notes which regions are used (heat), which grains are not clean any more,
 * and holds the guest's changes while the disk is frozen. Reads and flushes are answered in every phase.
 *
 * The rule that all depends on: a grain that a change touches is taken out of the clean set after the change has been done
 * (or has failed, which may have done a part of it) and before anybody is told. So a grain that is clean when nothing is
 * under way has not changed since somebody, having marked it, began to read it.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../block/device.ts";
import type { Extent } from "../block/extents.ts";
import type { HeatMap } from "../stream/heat.ts";
import type { GrainSet } from "./grain-set.ts";
import type { WriteGate } from "./write-gate.ts";

export interface SourceDeviceParts {
  readonly device: BlockDevice;
  readonly clean: GrainSet;
  readonly heat: HeatMap;
  readonly gate: WriteGate;
}

export class SourceDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #parts: SourceDeviceParts;

  /** The device stays the caller's. */
  constructor(parts: SourceDeviceParts) {
    this.#parts = parts;
    this.sizeBytes = parts.device.sizeBytes;
    this.capabilities = parts.device.capabilities;
  }

  readNow(offset: number, into: Uint8Array): number {
    const count = this.#parts.device.readNow(offset, into);
    if (count > 0) this.#parts.heat.touch(offset, count);
    return count;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    this.#touch(offset, into.length);
    return this.#parts.device.read(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    const { device, gate, clean } = this.#parts;
    if (!gate.enterNow()) return -1;
    try {
      const count = device.writeNow(offset, from);
      if (count >= 0) this.#touch(offset, from.length);
      return count;
    } finally {
      clean.removeTouched(offset, from.length);
      gate.leave();
    }
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#change(offset, from.length, (device) => device.write(offset, from, options));
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.#change(offset, length, (device) => device.writeZeroes(offset, length, options));
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#change(offset, length, (device) => device.discard(offset, length, options));
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#parts.device.cache(offset, length);
  }

  flush(): Promise<void> {
    return this.#parts.device.flush();
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#parts.device.extents(offset, length, countMax);
  }

  /** The device below is somebody else's. */
  async close(): Promise<void> {}

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #change(offset: number, length: number, act: (device: BlockDevice) => Promise<void>): Promise<void> {
    const { device, gate, clean } = this.#parts;
    await gate.enter();
    try {
      this.#touch(offset, length);
      await act(device);
    } finally {
      clean.removeTouched(offset, length);
      gate.leave();
    }
  }

  /** Ranges beyond the disk are refused by the device, and are not used. */
  #touch(offset: number, length: number): void {
    if (length > 0 && offset >= 0 && offset + length <= this.sizeBytes) this.#parts.heat.touch(offset, length);
  }
}
