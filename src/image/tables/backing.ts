/** Reading what lies under an image. A backing device may be shorter than the image: beyond its end there are zeroes. */
import type { BlockDevice } from "../../block/device.ts";
import { appendExtent, type Extent } from "../../block/extents.ts";

export async function readBacking(backing: BlockDevice, offset: number, into: Uint8Array): Promise<void> {
  const within = inside(backing, offset, into.length);
  if (within > 0) await backing.read(offset, into.subarray(0, within));
  into.fill(0, within);
}

/** As `readBacking`, or −1. */
export function readBackingNow(backing: BlockDevice, offset: number, into: Uint8Array): number {
  const within = inside(backing, offset, into.length);
  if (within > 0 && backing.readNow(offset, into.subarray(0, within)) === -1) return -1;
  into.fill(0, within);
  return into.length;
}

/** What the backing says about the range, and a hole beyond its end. */
export async function backingExtents(
  backing: BlockDevice,
  { offset, length, countMax }: { offset: number; length: number; countMax: number },
): Promise<Extent[]> {
  const within = inside(backing, offset, length);
  if (within === 0) return [{ length, hole: true, zero: true }];
  const list = await backing.extents(offset, within, countMax);
  const told = list.reduce((sum, extent) => sum + extent.length, 0);
  if (told === within && within < length && list.length < countMax) {
    appendExtent(list, { length: length - within, hole: true, zero: true });
  }
  return list;
}

function inside(backing: BlockDevice, offset: number, length: number): number {
  return Math.max(0, Math.min(length, backing.sizeBytes - offset));
}
