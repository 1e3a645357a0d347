/**
 * The source's heat on the destination: an order that is learnt while hydration is under way, for it comes when the
 * destination is active. It says what is fetched first, and nothing else: a map that is wrong costs time at most.
 */
import type { Chaos } from "../env/chaos.ts";
import type { ClusterRange } from "../stream/cluster-range.ts";
import { heatOrder } from "../stream/heat.ts";
import type { Order } from "../stream/order.ts";
import { MigrationProtocolError, messageOf } from "./errors.ts";
import { HEAT_REGION_NUMBER_BYTES, HEAT_REGIONS_MAX } from "./messages.ts";

export interface HeatMessage {
  readonly regionBytes: number;
  /** Numbers of regions, u32 big-endian, hottest first. */
  readonly regions: Uint8Array;
}

export interface HeatStatus {
  readonly regionBytes: number;
  /** That the source has named. */
  readonly regions: number;
  /** Of them, those whose turn has come: what was missing of them was fetched, or is being fetched. */
  readonly taken: number;
}

export class LateOrder implements Order {
  readonly #chaos: Chaos;
  #order: Order | undefined;
  #status: HeatStatus | undefined;

  constructor(chaos: Chaos) {
    this.#chaos = chaos;
  }

  /** Undefined: nothing has been learnt. */
  get status(): HeatStatus | undefined {
    return this.#status;
  }

  next(): ClusterRange | undefined {
    const range = this.#order?.next();
    if (this.#status !== undefined) {
      const { taken, regions } = this.#status;
      this.#status = { ...this.#status, taken: range === undefined ? regions : taken + 1 };
    }
    return range;
  }

  /** In place of what was learnt before. Throws `MigrationProtocolError` for what is no list of the disk's regions. */
  learn({ regionBytes, regions }: HeatMessage, disk: { clusterBytes: number; sizeBytes: number }): void {
    const numbers = decodeHeat(regions);
    if (this.#chaos.on("migrate/heat-ignored")) return;
    const ranked = numbers.map((region, index) => [region, numbers.length - index] as const);
    try {
      this.#order = heatOrder({ version: 1, regionBytes, regions: ranked }, disk);
    } catch (error) {
      throw new MigrationProtocolError(`the source's heat map is of no use: ${messageOf(error)}`, { cause: error });
    }
    this.#status = { regionBytes, regions: numbers.length, taken: 0 };
  }
}

export function encodeHeat(regions: readonly number[]): Uint8Array<ArrayBuffer> {
  const bytes = Buffer.alloc(HEAT_REGION_NUMBER_BYTES * regions.length);
  for (const [index, region] of regions.entries()) bytes.writeUInt32BE(region, HEAT_REGION_NUMBER_BYTES * index);
  return bytes;
}

function decodeHeat(regions: Uint8Array): number[] {
  const bytes = Buffer.from(regions.buffer, regions.byteOffset, regions.byteLength);
  const count = bytes.length / HEAT_REGION_NUMBER_BYTES;
  if (!(Number.isInteger(count) && count <= HEAT_REGIONS_MAX)) {
    throw new MigrationProtocolError(
      `the source's heat map is of no use: ${bytes.length} bytes are no list of regions`,
    );
  }
  return Array.from({ length: count }, (_, index) => bytes.readUInt32BE(HEAT_REGION_NUMBER_BYTES * index));
}
