/** An order that is learnt while hydration is under way: the source's heat comes when the destination is active. */
import { BlockError } from "../block/error.ts";
import type { ClusterRange } from "../stream/cluster-range.ts";
import { heatOrder } from "../stream/heat.ts";
import type { Order } from "../stream/order.ts";

export interface HeatMessage {
  readonly regionBytes: number;
  /** Numbers of regions, u32 big-endian, hottest first. */
  readonly regions: Uint8Array;
}

export class LateOrder implements Order {
  #order: Order | undefined;

  next(): ClusterRange | undefined {
    return this.#order?.next();
  }

  /** Throws `BlockError("invalid")` for what is no such list. */
  learn({ regionBytes, regions }: HeatMessage, disk: { clusterBytes: number; sizeBytes: number }): void {
    const bytes = Buffer.from(regions.buffer, regions.byteOffset, regions.byteLength);
    if (bytes.length % 4 !== 0) throw new BlockError("invalid", "a list of regions is cut off");
    const count = bytes.length / 4;
    const ranked = Array.from({ length: count }, (_, index) => [bytes.readUInt32BE(4 * index), count - index] as const);
    this.#order = heatOrder({ version: 1, regionBytes, regions: ranked }, disk);
  }
}
