import { expect, test } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { IDENTITY_BYTES_MAX } from "../../../src/cor/map-format.ts";
import { ConnectionLostError } from "../../../src/nbd/client/errors.ts";
import { compareSources, identifySource, samplesOf } from "../../../src/stream/source-identity.ts";
import { pattern } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";

const SIZE_BYTES = 1 << 20;

test("samples lie within the disk, ascend, and take in the first and the last block, whatever the size", () => {
  for (const sizeBytes of [1, 511, 4096, 4097, 65_536, 10_000_001, 2 ** 44, 2 ** 53 - 1]) {
    const samples = samplesOf(sizeBytes);
    expect(samples.length).toBe(Math.min(16, Math.ceil(sizeBytes / 4096)));
    expect(samples[0]?.offset).toBe(0);
    const last = samples.at(-1);
    expect((last?.offset ?? 0) + (last?.length ?? 0)).toBe(sizeBytes);
    for (const [at, { offset }] of samples.entries()) expect(offset).toBeGreaterThan(samples[at - 1]?.offset ?? -1);
  }
  expect(samplesOf(0)).toEqual([]);
});

itSeeded("a change in any sample makes it another source; a disk is the same as itself", async (rng) => {
  const content = pattern(0, SIZE_BYTES);
  const known = await identifySource(new MemoryDevice({ sizeBytes: SIZE_BYTES, content }));
  expect(known).toMatch(/^v1:1048576:[0-9a-f]{128}$/);
  expect(compareSources(known, known)).toBe("same");
  for (const { offset, length } of samplesOf(SIZE_BYTES)) {
    const changed = Buffer.from(content);
    const at = offset + rng.integer(0, length - 1);
    changed[at] = (changed[at] ?? 0) ^ 1;
    const found = await identifySource(new MemoryDevice({ sizeBytes: SIZE_BYTES, content: changed }));
    expect(compareSources(known, found)).toBe("other");
  }
});

test("another size is another source, and so is text that is no identity", async () => {
  const known = await identifySource(new MemoryDevice({ sizeBytes: SIZE_BYTES }));
  expect(compareSources(known, await identifySource(new MemoryDevice({ sizeBytes: SIZE_BYTES + 4096 })))).toBe("other");
  expect(compareSources(known, "")).toBe("other");
  expect(compareSources("", "")).toBe("other");
});

test("a block that the source cannot read is left out of the comparison; nothing to compare is no match", async () => {
  const device = new MemoryDevice({ sizeBytes: SIZE_BYTES, content: pattern(0, SIZE_BYTES) });
  const known = await identifySource(device);
  const partly = (bad: (offset: number) => boolean) =>
    identifySource({
      sizeBytes: SIZE_BYTES,
      read: async (offset, into) => {
        if (bad(offset)) throw new BlockError("io", "a bad block");
        await device.read(offset, into);
      },
    });
  const found = await partly((offset) => offset === 0);
  expect(found).toContain(":--------");
  expect(compareSources(known, found)).toBe("same");
  expect(compareSources(known, await partly(() => true))).toBe("unknown");
});

test("a lost link is no bad block", async () => {
  const lost = new ConnectionLostError("cut", undefined);
  await expect(identifySource({ sizeBytes: 8192, read: () => Promise.reject(lost) })).rejects.toBe(lost);
});

test("an identity fits into the map", async () => {
  const identity = await identifySource(new MemoryDevice({ sizeBytes: 2 ** 53 - 1 }));
  expect(Buffer.byteLength(identity)).toBeLessThanOrEqual(IDENTITY_BYTES_MAX);
});
