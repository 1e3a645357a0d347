import { describe, expect, test } from "vitest";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import { MESSAGE_BYTES_MAX } from "../../../src/link/message-stream.ts";
import { MigrationProtocolError } from "../../../src/migrate/errors.ts";
import { encodeHeat, LateOrder } from "../../../src/migrate/late-order.ts";
import { decodeMessage, encodeMessage, FromSource, HEAT_REGIONS_MAX } from "../../../src/migrate/messages.ts";
import { HeatMap } from "../../../src/stream/heat.ts";
import { unitsOf } from "../../../src/stream/units.ts";

const MIB = 2 ** 20;
const CLUSTER = 4096;
const PER_REGION = MIB / CLUSTER;
const DISK = { clusterBytes: CLUSTER, sizeBytes: 64 * MIB + 512 };
const CLUSTERS = Math.ceil(DISK.sizeBytes / CLUSTER);

function learnt(regions: readonly number[], order = new LateOrder(NO_CHAOS)): LateOrder {
  order.learn({ regionBytes: MIB, regions: encodeHeat(regions) }, DISK);
  return order;
}

/** The first clusters of what is fetched of a disk of which nothing is here, unit by unit. */
async function fetched(order: LateOrder): Promise<{ starts: number[]; clusters: number }> {
  const starts: number[] = [];
  let clusters = 0;
  const here = new Uint8Array(CLUSTERS);
  const source = {
    ...{ sizeBytes: DISK.sizeBytes, clusterBytes: CLUSTER, chaos: NO_CHAOS, orders: [order], unitBytes: () => MIB },
    extents: async (_offset: number, length: number) => [{ length, hole: false, zero: false }],
    async *missing(first: number, end = CLUSTERS) {
      for (let at = first; at < end; at++) {
        if (here[at] === 1) continue;
        let next = at;
        while (next < end && here[next] === 0) next++;
        yield { first: at, count: next - at };
        at = next;
      }
    },
  };
  for await (const { first, count } of unitsOf(source)) {
    const wanted = here.subarray(first, first + count).filter((it) => it === 0).length;
    here.fill(1, first, first + count);
    clusters += wanted;
    if (wanted > 0) starts.push(first);
  }
  return { starts, clusters };
}

describe("the source's heat on the destination", () => {
  test("is what is fetched first, hottest first; then comes the rest, and nothing is left out", async () => {
    const { starts, clusters } = await fetched(learnt([64, 9, 33]));
    expect(starts.slice(0, 5)).toEqual([64 * PER_REGION, 9 * PER_REGION, 33 * PER_REGION, 0, PER_REGION]);
    expect(clusters).toBe(CLUSTERS);
  });

  test("is noticed to be in use: with the mutant migrate/heat-ignored the order is another one", async () => {
    const order = new LateOrder({ on: (point) => point === "migrate/heat-ignored" });
    const { starts } = await fetched(learnt([64, 9, 33], order));
    expect(starts.slice(0, 3)).toEqual([0, PER_REGION, 2 * PER_REGION]);
    expect(order.status).toBeUndefined();
  });

  test("says how far it has been followed", () => {
    const order = new LateOrder(NO_CHAOS);
    expect([order.next(), order.status]).toEqual([undefined, undefined]);
    learnt([7, 3], order);
    expect(order.status).toEqual({ regionBytes: MIB, regions: 2, taken: 0 });
    order.next();
    expect(order.status?.taken).toBe(1);
    expect([order.next()?.first, order.next(), order.next()]).toEqual([3 * PER_REGION, undefined, undefined]);
    expect(order.status?.taken).toBe(2);
  });

  test("is replaced by a later one", () => {
    const order = learnt([7, 3]);
    order.next();
    learnt([5], order);
    expect([order.next()?.first, order.next()]).toEqual([5 * PER_REGION, undefined]);
  });

  const hostile: readonly [why: string, regionBytes: number, regions: Uint8Array][] = [
    ["a region beyond the disk", MIB, encodeHeat([0, 65])],
    ["the highest number there is", MIB, encodeHeat([0xffffffff])],
    ["a region named twice", MIB, encodeHeat([3, 4, 3])],
    ["a part of a number", MIB, encodeHeat([3, 4]).subarray(0, 7)],
    ["too many regions", 512, encodeHeat(Array.from({ length: HEAT_REGIONS_MAX + 1 }, (_, region) => region))],
    ["regions smaller than a sector", 511, encodeHeat([1])],
    ["regions of half a byte", 1024.5, encodeHeat([1])],
    ["regions larger than can be", 2 ** 52, encodeHeat([0])],
  ];
  for (const [why, regionBytes, regions] of hostile) {
    test(`is refused, and the order stays as it is, when it has ${why}`, () => {
      const order = learnt([9]);
      expect(() => order.learn({ regionBytes, regions }, DISK)).toThrow(MigrationProtocolError);
      expect(order.status).toEqual({ regionBytes: MIB, regions: 1, taken: 0 });
      expect(order.next()?.first).toBe(9 * PER_REGION);
    });
  }

  test("fits into a message at its longest, and comes out as it was", () => {
    const regions = encodeHeat(Array.from({ length: HEAT_REGIONS_MAX }, (_, index) => 0xffffffff - index));
    const message = { type: "heat", disk: "x".repeat(48), regionBytes: MIB, regions } as const;
    const bytes = encodeMessage(message);
    expect(bytes.length).toBeLessThan(MESSAGE_BYTES_MAX);
    const back = decodeMessage(FromSource, bytes);
    expect(back.type === "heat" && Buffer.from(back.regions).equals(Buffer.from(regions))).toBe(true);
  });
});

test("a heat map that is full of equally cold regions forgets the oldest of them, and keeps the hot ones", () => {
  const heat = new HeatMap({ nowMs: () => 0 }, { regionsMax: 64 });
  for (let region = 0; region < 10_000; region++) heat.touch(region * MIB, region === 5 ? 8192 : 4096);
  expect(heat.regions).toBeLessThanOrEqual(64);
  expect(heat.heatOf(5 * MIB)).toBe(8192);
  expect(heat.heatOf(9999 * MIB)).toBe(4096);
  expect(heat.heatOf(6 * MIB)).toBe(0);
});
