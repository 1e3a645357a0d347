import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import type { Extent } from "../../../src/block/extents.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import type { ClusterRange } from "../../../src/stream/cluster-range.ts";
import { SourceAnsweredError } from "../../../src/stream/errors.ts";
import { FailedRanges } from "../../../src/stream/failed-ranges.ts";
import { type Unit, unitsOf } from "../../../src/stream/units.ts";
import { pattern } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";

const CLUSTER_BYTES = 4096;

interface Planned {
  readonly sizeBytes: number;
  readonly unitBytes?: number;
  readonly missing?: readonly ClusterRange[];
  readonly extents: (offset: number, length: number, countMax: number) => Promise<Extent[]>;
}

async function planned({ sizeBytes, unitBytes = 16_384, missing, extents }: Planned): Promise<Unit[]> {
  const all = [{ first: 0, count: Math.ceil(sizeBytes / CLUSTER_BYTES) }];
  const units: Unit[] = [];
  const source = {
    ...{ sizeBytes, clusterBytes: CLUSTER_BYTES, chaos: NO_CHAOS, unitBytes: () => unitBytes, extents },
    missing: async function* () {
      yield* missing ?? all;
    },
  };
  for await (const unit of unitsOf(source)) units.push(unit);
  return units;
}

test("data comes in units that begin at multiples of their size, zeroes in runs as large as they are", async () => {
  const sizeBytes = 100 * CLUSTER_BYTES;
  const device = new MemoryDevice({ sizeBytes, pageBytes: CLUSTER_BYTES });
  device.writeNow(2 * CLUSTER_BYTES, pattern(0, 8 * CLUSTER_BYTES));
  expect(await planned({ sizeBytes, extents: device.extents.bind(device) })).toEqual([
    { kind: "zero", first: 0, count: 2 },
    { kind: "data", first: 2, count: 2 },
    { kind: "data", first: 4, count: 4 },
    { kind: "data", first: 8, count: 2 },
    { kind: "zero", first: 10, count: 90 },
  ]);
});

test("extents are asked for in long strides: once for a small disk, also when what is missing is scattered", async () => {
  const sizeBytes = 1000 * CLUSTER_BYTES;
  const asked: string[] = [];
  const device = new MemoryDevice({ sizeBytes });
  const missing = Array.from({ length: 300 }, (_, run) => ({ first: run * 3, count: 1 }));
  const extents = (offset: number, length: number, countMax: number): Promise<Extent[]> => {
    asked.push(`${offset}+${length} max ${countMax}`);
    return device.extents(offset, length, countMax);
  };
  expect(await planned({ sizeBytes, missing, extents })).toHaveLength(300);
  expect(asked).toEqual([`0+${sizeBytes} max 1024`]);
});

test("16 TiB of zeroes take one unit for each gibibyte", async () => {
  const extents = async (_: number, length: number): Promise<Extent[]> => [{ length, hole: true, zero: true }];
  const units = await planned({ sizeBytes: 2 ** 44, extents });
  expect(units).toHaveLength(2 ** 14);
  expect(units.at(-1)).toEqual({ kind: "zero", first: (2 ** 44 - 2 ** 30) / CLUSTER_BYTES, count: 2 ** 18 });
});

test("where the source cannot tell its extents, everything is data", async () => {
  const extents = (offset: number, length: number): Promise<Extent[]> =>
    Promise.reject(new SourceAnsweredError(new BlockError("io", "no extents"), offset, length));
  expect(await planned({ sizeBytes: 5 * CLUSTER_BYTES, extents })).toEqual([
    { kind: "data", first: 0, count: 4 },
    { kind: "data", first: 4, count: 1 },
  ]);
});

itSeeded("every missing cluster is in one unit, and in a unit of zeroes only if all of it is zeroes", async (rng) => {
  for (let round = 0; round < 200; round++) {
    const sizeBytes = rng.integer(1, 60 * CLUSTER_BYTES);
    const clusters = Math.ceil(sizeBytes / CLUSTER_BYTES);
    const zero = new Uint8Array(sizeBytes).fill(1);
    for (let at = 0; at < sizeBytes; ) {
      const end = Math.min(sizeBytes, at + rng.integer(1, 30_000));
      zero.fill(rng.integer(0, 1), at, end);
      at = end;
    }
    // Tells less than it is asked for, and cuts extents in two.
    const extents = async (offset: number, length: number, countMax: number): Promise<Extent[]> => {
      const list: Extent[] = [];
      for (let at = offset; at < offset + length && list.length < Math.min(countMax, rng.integer(1, 5)); ) {
        let end = at + 1;
        while (end < offset + length && zero[end] === zero[at] && !rng.chance(0.0001)) end += 1;
        list.push({ length: end - at, hole: rng.chance(0.5), zero: zero[at] === 1 });
        at = end;
      }
      return list;
    };
    const seen = new Uint8Array(clusters);
    for (const { kind, first, count } of await planned({ sizeBytes, extents, unitBytes: 8192 })) {
      for (let cluster = first; cluster < first + count; cluster++) seen[cluster] = (seen[cluster] ?? 0) + 1;
      const bytes = zero.subarray(first * CLUSTER_BYTES, (first + count) * CLUSTER_BYTES);
      if (kind === "zero") expect(bytes.every((byte) => byte === 1)).toBe(true);
      else expect(count).toBeLessThanOrEqual(2);
    }
    expect(seen.every((times) => times === 1)).toBe(true);
  }
});

test("the list of failed ranges joins neighbours, counts attempts, and forgets what is well again", () => {
  const failed = new FailedRanges();
  failed.note(8192, 4096, "io");
  failed.note(0, 4096, "io");
  failed.note(4096, 4096, "io");
  failed.note(40_960, 4096, "permission");
  expect(failed.list()).toEqual([
    { offset: 0, length: 12_288, code: "io", attempts: 1 },
    { offset: 40_960, length: 4096, code: "permission", attempts: 1 },
  ]);
  failed.endPass();
  failed.note(0, 4096, "io");
  failed.cleared(0, 12_288);
  failed.note(40_960, 4096, "permission");
  failed.endPass();
  expect(failed.list()).toEqual([{ offset: 40_960, length: 4096, code: "permission", attempts: 2 }]);
  // A guest has written it in the meantime: nobody asked for it in this pass.
  failed.endPass();
  expect(failed.any).toBe(false);
});

test("the list of failed ranges is bounded, and what it has no room for is counted", () => {
  const failed = new FailedRanges();
  for (let range = 0; range < 5000; range++) failed.note(range * 8192, 4096, "io");
  expect(failed.list()).toHaveLength(1000);
  expect(failed.unlisted).toBe(4000);
  expect(failed.totalBytes).toBe(5000 * 4096);
  expect(failed.hasRoom).toBe(false);
});
