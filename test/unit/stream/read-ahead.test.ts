import { expect, test } from "vitest";
import type { ClusterRange } from "../../../src/stream/cluster-range.ts";
import { ReadAhead } from "../../../src/stream/read-ahead.ts";
import { itSeeded } from "../../support/seed.ts";

const CLUSTER_BYTES = 4096;
const KIB = 1024;
const SIZE_BYTES = 2 ** 30;

function begin(pathBytes = 1_250_000) {
  const fetched: ClusterRange[] = [];
  const time = { nowMs: 0 };
  const clock = { nowMs: () => time.nowMs };
  const demand = { reads: 0 };
  const target = {
    sizeBytes: SIZE_BYTES,
    clusterBytes: CLUSTER_BYTES,
    isLocal: () => false,
    fetchAhead: async (range: ClusterRange) => void fetched.push(range),
  };
  const path = { pathBytes, windowBytes: pathBytes, unitBytes: 128 * KIB };
  const readAhead = new ReadAhead({ clock, target, path, demandReads: () => demand.reads });
  const end = (): number => Math.max(0, ...fetched.map(({ first, count }) => (first + count) * CLUSTER_BYTES));
  return { readAhead, fetched, end, time, demand };
}

test("three reads in a row make a stream, and its window doubles up to twice what the path holds", async () => {
  const { readAhead, fetched, end } = begin();
  readAhead.noteRead(0, 64 * KIB, true);
  readAhead.noteRead(64 * KIB, 64 * KIB, true);
  expect(fetched).toEqual([]);
  readAhead.noteRead(128 * KIB, 64 * KIB, true);
  expect(end()).toBe((192 + 128) * KIB);
  let most = 0;
  for (let at = 192 * KIB; at < 64 * KIB * KIB; at += 64 * KIB) {
    await Promise.resolve();
    readAhead.noteRead(at, 64 * KIB, true);
    most = Math.max(most, end() - at - 64 * KIB);
  }
  expect(most).toBeGreaterThan(2_000_000);
  expect(most).toBeLessThanOrEqual(2_500_000);
});

test("nothing is fetched twice, and nothing behind the end of the disk", async () => {
  const { readAhead, fetched } = begin();
  for (let at = SIZE_BYTES - 8 * KIB * KIB; at < SIZE_BYTES; at += 128 * KIB) {
    readAhead.noteRead(at, 128 * KIB, true);
    await Promise.resolve();
  }
  const seen = new Set<number>();
  for (const { first, count } of fetched) {
    for (let cluster = first; cluster < first + count; cluster++) {
      expect(seen.has(cluster)).toBe(false);
      seen.add(cluster);
    }
  }
  expect(Math.max(...seen)).toBe(SIZE_BYTES / CLUSTER_BYTES - 1);
});

itSeeded("random reads bring nothing more", async (rng) => {
  const { readAhead, fetched } = begin();
  for (let read = 0; read < 20_000; read++) {
    readAhead.noteRead(rng.integer(0, SIZE_BYTES / CLUSTER_BYTES - 1) * CLUSTER_BYTES, CLUSTER_BYTES, true);
  }
  expect(fetched).toEqual([]);
});

itSeeded(
  "several streams between random reads are all recognised, also when reads overtake each other",
  async (rng) => {
    const { readAhead, fetched, time } = begin();
    const starts = [0, 2 ** 27, 2 ** 28, 2 ** 29];
    const at = starts.map((start) => start);
    for (let round = 0; round < 200; round++) {
      time.nowMs += 1;
      for (const [stream, next] of at.entries()) {
        const swapped = round > 10 && rng.chance(0.2);
        const [one, two] = swapped ? [next + 32 * KIB, next] : [next, next + 32 * KIB];
        readAhead.noteRead(one, 32 * KIB, true);
        readAhead.noteRead(two, 32 * KIB, true);
        at[stream] = next + 64 * KIB;
      }
      for (let read = 0; read < 8; read++) readAhead.noteRead(rng.integer(0, 2 ** 18 - 1) * 4096, 4096, true);
      await Promise.resolve();
    }
    for (const [stream, next] of at.entries()) {
      const ahead = fetched.filter(({ first }) => first * CLUSTER_BYTES >= (starts[stream] ?? 0));
      expect(ahead.some(({ first, count }) => (first + count) * CLUSTER_BYTES > next)).toBe(true);
    }
  },
);

test("a demand read brings little around it when many are under way, and only itself in a stream", () => {
  const { readAhead, demand } = begin();
  expect(readAhead.demandUnit(2 ** 20)).toBe(8 * KIB);
  demand.reads = 1000;
  expect(readAhead.demandUnit(2 ** 20)).toBe(4 * KIB);
  demand.reads = 0;
  for (const at of [0, 1, 2]) readAhead.noteRead(at * 64 * KIB, 64 * KIB, true);
  expect(readAhead.demandUnit(2 * 64 * KIB)).toBe(4 * KIB);
});

test("hydration leaves the neighbourhood of a stream that meets what is missing, and only then", () => {
  const { readAhead, time } = begin();
  const near = { first: 0, count: 1024 };
  expect(readAhead.avoid(near)).toBeUndefined();
  for (const at of [0, 1, 2]) readAhead.noteRead(at * 64 * KIB, 64 * KIB, true);
  expect(readAhead.avoid(near)).toBeGreaterThan(500);
  expect(readAhead.avoid({ first: 240_000, count: 32 })).toBeUndefined();
  time.nowMs += 1000;
  expect(readAhead.avoid(near)).toBeUndefined();
});
