/** What formats with tables share: the slice cache, the gate, windows of references, allocation, scanning. */
import { expect, test } from "vitest";
import { checkTables } from "../../../src/image/qed/check.ts";
import { EntryRules } from "../../../src/image/qed/entry-rules.ts";
import { geometryOf, parseHeader } from "../../../src/image/qed/header.ts";
import { AppendAllocator } from "../../../src/image/tables/append-allocator.ts";
import { Gate } from "../../../src/image/tables/gate.ts";
import { ImageFile } from "../../../src/image/tables/image-file.ts";
import { References } from "../../../src/image/tables/references.ts";
import { SCAN_BYTES, scanTable } from "../../../src/image/tables/scan.ts";
import { SliceCache } from "../../../src/image/tables/slice-cache.ts";
import { Turns } from "../../../src/image/tables/turns.ts";
import { readU64LE } from "../../../src/image/tables/u64.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { handMadeQed } from "../../support/qed-bytes.ts";
import { itSeeded } from "../../support/seed.ts";

async function imageFile(files: FakeFiles, path: string): Promise<ImageFile> {
  const file = await files.open({ path, writable: true });
  return new ImageFile(file, await file.sizeBytes());
}

async function get<T>(cache: SliceCache<T>, key: number): Promise<T> {
  const slice = await cache.pin(key);
  cache.unpin(key);
  return slice;
}

test("a slice is loaded once however many ask, the one unused for longest goes, a pinned one stays", async () => {
  const loads: number[] = [];
  const cache = new SliceCache<{ key: number }>({
    slicesMax: 2,
    load: async (key) => {
      loads.push(key);
      return { key };
    },
  });
  const [one, other] = await Promise.all([get(cache, 1), get(cache, 1)]);
  expect(one).toBe(other);
  await get(cache, 2);
  await get(cache, 1);
  await get(cache, 3);
  expect([cache.peek(1)?.key, cache.peek(2), cache.peek(3)?.key]).toEqual([1, undefined, 3]);
  const pinned = await cache.pin(1);
  for (const key of [4, 5, 6]) await get(cache, key);
  expect(await get(cache, 1)).toBe(pinned);
  expect(cache.size).toBe(2);
  cache.unpin(1);
  for (const key of [7, 8]) await get(cache, key);
  expect(cache.peek(1)).toBeUndefined();
  expect(loads).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

test("the memory of a slice that was forgotten is used again, and never that of one that is held", async () => {
  interface Slice {
    key: number;
  }
  let made = 0;
  const cache = new SliceCache<Slice>({
    slicesMax: 2,
    reuse: true,
    load: async (key, old) => {
      if (old === undefined) made += 1;
      const slice = old ?? { key };
      await Promise.resolve();
      slice.key = key;
      return slice;
    },
  });
  const pinned = await cache.pin(0);
  for (let key = 1; key < 100; key++) {
    expect((await get(cache, key)).key).toBe(key);
    expect([pinned.key, cache.peek(0)?.key, cache.peek(key)?.key]).toEqual([0, 0, key]);
    expect(cache.peek(key - 1)?.key).toBe(key === 1 ? 0 : undefined);
  }
  // The two that are held, and one that is loaded meanwhile.
  expect(made).toBe(3);
  cache.unpin(0);
  await Promise.all(Array.from({ length: 50 }, (_, index) => get(cache, 200 + index)));
  expect(cache.size).toBe(2);
  await Promise.all([300, 301].map((key) => get(cache, key)));
  expect([cache.peek(300)?.key, cache.peek(301)?.key]).toEqual([300, 301]);
});

test("a slice that could not be loaded is loaded anew", async () => {
  let failures = 2;
  const cache = new SliceCache<string>({
    slicesMax: 2,
    load: async () => {
      if (failures-- > 0) throw new Error("no");
      return "yes";
    },
  });
  const outcomes = await Promise.allSettled([get(cache, 1), get(cache, 1), get(cache, 1)]);
  expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected", "rejected"]);
  await expect(get(cache, 1)).rejects.toThrow("no");
  expect(await get(cache, 1)).toBe("yes");
  expect(cache.size).toBe(1);
});

test("a gate lets nobody in while it is held, and holds only once everybody has left", async () => {
  const gate = new Gate();
  await gate.enter();
  const order: string[] = [];
  const held = gate.hold().then(() => order.push("held"));
  const entered = gate.enter().then(() => order.push("entered"));
  await Promise.resolve();
  expect(order).toEqual([]);
  gate.leave();
  await held;
  expect(gate.status.waiting).toBe(1);
  gate.release();
  await entered;
  expect(order).toEqual(["held", "entered"]);
  const retired = gate.retire();
  await expect(gate.enter()).rejects.toMatchObject({ name: "RetiredError" });
  gate.leave();
  await retired;
});

test("references are counted once each, window by window", () => {
  const references = new References(100, 10);
  const marks = [5, 15, 25, 5, 99, 15];
  const twice: number[] = [];
  do {
    for (const cluster of marks) if (!references.mark(cluster)) twice.push(cluster);
  } while (references.nextWindow());
  expect([references.used, twice]).toEqual([4, [5, 15]]);
});

itSeeded("a check window by window comes to the same as one in a single window", async (rng) => {
  const clusters = new Map(
    Array.from({ length: 20 }, (_, index) => [index, index % 5 === 4 ? ("zero" as const) : 1 + index]),
  );
  const made = handMadeQed({ sizeBytes: 64 * 4096, clusters });
  let doubles = 0;
  for (let round = 0; round < 300; round++) {
    const bytes = Buffer.from(made.bytes);
    for (let count = rng.integer(1, 4); count > 0; count--) {
      const offset = rng.pick([...made.dataOffsets.values(), bytes.length, made.l1Offset, made.l2Offset, 77]);
      bytes.writeBigUInt64LE(BigInt(offset), made.l2Offset + 8 * rng.integer(0, 63));
    }
    const header = parseHeader(bytes.subarray(0, 64), bytes.length);
    if ("kind" in header) throw new Error(header.why);
    const files = new FakeFiles();
    files.add("/a", bytes);
    const file = await imageFile(files, "/a");
    const geometry = geometryOf(header);
    const rules = new EntryRules(geometry, () => bytes.length);
    await rules.setL2Tables(Float64Array.of(made.l2Offset), new Turns(file));
    const whole = await checkTables({ file, geometry, rules, repair: false });
    const byWindow = await checkTables({ file, geometry, rules, repair: false, windowClusters: rng.integer(1, 9) });
    expect(byWindow).toEqual(whole);
    if (whole.corruptions > whole.badEntries.length) doubles += 1;
  }
  expect(doubles).toBeGreaterThan(20);
});

test("space is taken from the end, given back only from the end, and zeroed when it was used before", async () => {
  const files = new FakeFiles();
  // Half a cluster of something at the end.
  files.add("/a", Buffer.alloc(4096 + 2048, 0xaa));
  const file = await imageFile(files, "/a");
  const allocator = new AppendAllocator(file, 4096);
  const found = Buffer.alloc(4096);
  expect(await allocator.take(1)).toEqual({ offset: 4096, count: 1 });
  await file.read(4096, found);
  expect(found.equals(Buffer.alloc(4096))).toBe(true);
  const [second, third] = await Promise.all([allocator.take(1), allocator.take(2)]);
  expect([second.offset, third.offset, file.sizeBytes]).toEqual([8192, 12_288, 20_480]);
  await file.write(12_288, Buffer.alloc(8192, 0xbb));
  allocator.giveBack(second);
  expect(allocator.end).toBe(20_480);
  allocator.giveBack(third);
  expect((await allocator.take(1)).offset).toBe(12_288);
  await file.read(12_288, found);
  expect(found.equals(Buffer.alloc(4096))).toBe(true);
  expect(allocator.end).toBe(16_384);
});

test("space that was used before reads as zeroes when it is taken again, also after a crash", async () => {
  const files = new FakeFiles();
  const disk = files.add("/a", Buffer.alloc(4096 + 2048, 0xaa));
  const file = await imageFile(files, "/a");
  const allocator = new AppendAllocator(file, 4096);
  await allocator.take(1);
  disk.losePower();
  const found = Buffer.alloc(4096, 0xee);
  await file.readPadded(4096, found);
  expect(found.equals(Buffer.alloc(4096))).toBe(true);
  const place = await allocator.take(2);
  await file.write(place.offset, Buffer.alloc(8192, 0xbb));
  await file.sync();
  allocator.giveBack(place);
  expect(await allocator.take(1)).toEqual({ offset: place.offset, count: 1 });
  disk.losePower();
  await file.read(place.offset, found);
  expect(found.equals(Buffer.alloc(4096))).toBe(true);
  // What was never used needs no sync.
  await allocator.take(1);
  const syncs = files.count("dataSync");
  await allocator.take(1);
  expect(files.count("dataSync")).toBe(syncs);
});

test("a scan sees every entry once, and does not read holes", async () => {
  const files = new FakeFiles();
  const length = 8 * SCAN_BYTES;
  const disk = files.add("/a", length);
  const marked = [0, 4088, SCAN_BYTES, 3 * SCAN_BYTES - 8, 5 * SCAN_BYTES + 4096, length - 8];
  for (const at of marked) disk.put(at, Buffer.from([1, 2, 3, 4, 5, 6, 0, 0]));
  const file = await imageFile(files, "/a");
  const seen: number[] = [];
  await scanTable(file, { offset: 0, length }, async ({ at, bytes }) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < bytes.length; i += 8) if (readU64LE(view, i) !== 0) seen.push(at + i);
  });
  expect(seen).toEqual(marked);
  const readBytes = files.log
    .filter((line) => line.startsWith("read "))
    .reduce((sum, line) => sum + Number(line.split("+")[1]), 0);
  // In five blocks of the file system.
  expect(readBytes).toBe(5 * 4096);
});
