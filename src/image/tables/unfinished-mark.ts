/**
 * The name of the backing file that an unfinished copy has in its header. QEMU knows no such protocol, and refuses the image
 * rather than read zeroes where blocks are missing. It carries the uuid of the map that the image belongs to.
 */
import type { BackingReference } from "../image.ts";

const PROTOCOL = "blockferry-unfinished";

export function unfinishedMark(uuid: Uint8Array): string {
  return `${PROTOCOL}:${Buffer.from(uuid).toString("hex")}`;
}

export function isUnfinishedMark({ name }: BackingReference): boolean {
  return name.startsWith(`${PROTOCOL}:`);
}
