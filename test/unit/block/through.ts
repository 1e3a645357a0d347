/** A device that passes every call on, and a way to spoil one part of it. */

import type { ConformanceTarget } from "../../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";

export const memoryTarget: ConformanceTarget = { make: async (wanted) => new MemoryDevice(wanted) };

function through(inner: BlockDevice): BlockDevice {
  return {
    sizeBytes: inner.sizeBytes,
    capabilities: inner.capabilities,
    readNow: (offset, into) => inner.readNow(offset, into),
    read: (offset, into) => inner.read(offset, into),
    writeNow: (offset, from) => inner.writeNow(offset, from),
    write: (offset, from, options) => inner.write(offset, from, options),
    writeZeroes: (offset, length, options) => inner.writeZeroes(offset, length, options),
    discard: (offset, length, options) => inner.discard(offset, length, options),
    cache: (offset, length) => inner.cache(offset, length),
    flush: () => inner.flush(),
    extents: (offset, length, countMax) => inner.extents(offset, length, countMax),
    close: () => inner.close(),
    [Symbol.asyncDispose]: () => inner[Symbol.asyncDispose](),
  };
}

/** What is different about a spoilt device. */
export type Change = (inner: BlockDevice) => Partial<BlockDevice>;

/** `inner`, passed through and changed. */
export function spoil(inner: BlockDevice, change: Change): BlockDevice {
  return Object.defineProperties(through(inner), Object.getOwnPropertyDescriptors(change(inner)));
}

/** Devices of `base`, each passed through and changed. */
export function spoilt(change: Change, base: ConformanceTarget = memoryTarget): ConformanceTarget {
  const inners = new WeakMap<BlockDevice, BlockDevice>();
  const wrap = (inner: BlockDevice): BlockDevice => {
    const device = spoil(inner, change);
    inners.set(device, inner);
    return device;
  };
  const innerOf = (device: BlockDevice): BlockDevice => inners.get(device) ?? device;
  const { afterPowerLoss, failNextSync } = base;
  return {
    ...base,
    make: async (wanted) => wrap(await base.make(wanted)),
    ...(afterPowerLoss && { afterPowerLoss: (device: BlockDevice) => afterPowerLoss(innerOf(device)) }),
    ...(failNextSync && { failNextSync: (device: BlockDevice) => failNextSync(innerOf(device)) }),
  };
}
