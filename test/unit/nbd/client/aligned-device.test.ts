import { describe, expect, test } from "vitest";
import type { BlockDevice, WriteOptions, ZeroOptions } from "../../../../src/block/device.ts";
import { BlockError } from "../../../../src/block/error.ts";
import type { Extent } from "../../../../src/block/extents.ts";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import { AlignedDevice, cutToRange } from "../../../../src/nbd/client/aligned-device.ts";
import type { RangeLocking } from "../../../../src/nbd/client/range-lock.ts";
import { describeConformance } from "../../../support/conformance.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded, Prng, runSeed } from "../../../support/seed.ts";
import { outcomeOf } from "./scripted-client.ts";

interface StrictOptions {
  readonly sizeBytes: number;
  readonly block: number;
  readonly rng?: Prng;
  readonly content?: Uint8Array;
  readonly readOnly?: boolean;
}

/** Takes whole blocks only, as a strict server does, and takes its time, so that operations overlap. */
class StrictDevice implements BlockDevice {
  readonly inner: MemoryDevice;
  readonly calls: string[] = [];
  readonly #rng: Prng;

  constructor(options: StrictOptions) {
    const { sizeBytes, block, rng = new Prng(runSeed(), "strict"), ...more } = options;
    const blockSizes = { minimum: block, preferred: Math.max(block, 4096) };
    this.inner = new MemoryDevice({ sizeBytes, blockSizes, ...more });
    this.#rng = rng;
  }

  get sizeBytes(): number {
    return this.inner.sizeBytes;
  }

  get capabilities() {
    return this.inner.capabilities;
  }

  async #enter(call: string, offset: number, length: number): Promise<void> {
    this.calls.push(`${call} ${offset}+${length}`);
    const block = this.capabilities.blockSizes.minimum;
    if (length > 0 && (offset % block !== 0 || length % block !== 0)) throw new BlockError("invalid", "unaligned");
    for (let turn = this.#rng.integer(0, 6); turn > 0; turn--) await Promise.resolve();
  }

  readNow(): number {
    return -1;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#enter("read", offset, into.length);
    await this.inner.read(offset, into);
    await this.#enter("read", offset, into.length);
  }

  writeNow(): number {
    return -1;
  }

  async write(offset: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    await this.#enter(options.fua === true ? "write fua" : "write", offset, from.length);
    await this.inner.write(offset, from, options);
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    await this.#enter("zero", offset, length);
    await this.inner.writeZeroes(offset, length, options);
  }

  async discard(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    await this.#enter("discard", offset, length);
    await this.inner.discard(offset, length, options);
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#enter("cache", offset, length);
    await this.inner.cache(offset, length);
  }

  async flush(): Promise<void> {
    await this.inner.flush();
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    await this.#enter("extents", offset, length);
    return await this.inner.extents(offset, length, countMax);
  }

  async close(): Promise<void> {
    await this.inner.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

for (const block of [512, 4096, 65_536]) {
  describeConformance(`an aligned device with blocks of ${block}`, {
    sizeMultiple: block,
    make: async (wanted) => new AlignedDevice(new StrictDevice({ ...wanted, block })),
  });
}

describe("an aligned device", () => {
  const made = (): { device: AlignedDevice; strict: StrictDevice } => {
    const strict = new StrictDevice({ sizeBytes: 1 << 21, block: 4096, content: pattern(0, 1 << 21) });
    return { device: new AlignedDevice(strict), strict };
  };
  const requests = ({ calls }: StrictDevice): string[] => [...new Set(calls)];

  test("passes whole blocks on as they are", async () => {
    const { device, strict } = made();
    await device.read(4096, new Uint8Array(8192));
    await device.write(4096, pattern(0, 8192), { fua: true });
    await device.writeZeroes(4096, 8192);
    expect(requests(strict)).toEqual(["read 4096+8192", "write fua 4096+8192", "zero 4096+8192"]);
  });

  test("reads a short range with one request, and of a long one only the edges on a detour", async () => {
    const { device, strict } = made();
    const into = new Uint8Array(100);
    await device.read(4090, into);
    expect(pattern(4090, 100).equals(into)).toBe(true);
    const long = new Uint8Array(1_000_000);
    await device.read(100, long);
    expect(pattern(100, 1_000_000).equals(long)).toBe(true);
    expect(requests(strict)).toEqual(["read 0+8192", "read 0+4096", "read 4096+995328", "read 999424+4096"]);
  });

  test("merges the edges of a write, with as few requests as it can", async () => {
    const { device, strict } = made();
    await device.write(4096 + 10, pattern(0, 10));
    await device.write(8192 - 10, pattern(0, 20), { fua: true });
    await device.write(16_384, pattern(0, 5000));
    expect(requests(strict)).toEqual([
      "read 4096+4096",
      "write 4096+4096",
      "read 8192+4096",
      "write fua 4096+8192",
      "read 20480+4096",
      "write 16384+8192",
    ]);
  });

  test("discards whole blocks only, and asks nothing for less than one", async () => {
    const { device, strict } = made();
    await device.discard(1, 8191 + 4096);
    await device.discard(1, 4094);
    expect(requests(strict)).toEqual(["discard 4096+8192", "discard 0+0"]);
  });

  test("refuses fast zeroes of less than a block, which are none", async () => {
    const { device, strict } = made();
    expect(await outcomeOf(device.writeZeroes(1, 4094, { fastOnly: true }))).toMatchObject({ code: "not-supported" });
    expect(strict.calls).toEqual([]);
  });

  test("tells extents of just the range asked for", async () => {
    const { device } = made();
    await device.writeZeroes(65_536, 65_536);
    expect(await device.extents(65_000, 70_000, 10)).toEqual([
      { length: 536, hole: false, zero: false },
      { length: 65_536, hole: true, zero: true },
      { length: 3928, hole: false, zero: false },
    ]);
    expect(await device.extents(65_537, 10, 1)).toEqual([{ length: 10, hole: true, zero: true }]);
  });
});

/**
 * Many writers of neighbouring bytes at once, each byte having one writer only, and writes of whole blocks among them.
 * Returns how many bytes were not what their writer wrote last.
 */
async function lostBytes(rng: Prng, lock?: RangeLocking): Promise<number> {
  const size = 8192;
  const device = new AlignedDevice(new StrictDevice({ sizeBytes: size, block: 512, rng }), lock);
  const expected = new Uint8Array(size);
  // Blocks with an even number belong to writers of parts, the others to writers of wholes.
  const tasks = Array.from({ length: 48 }, async (_, writer) => {
    const wholes = writer % 3 === 0;
    const block = 2 * (writer % 8) + (wholes ? 1 : 0);
    const part = Math.floor(512 / 48);
    const start = wholes ? block * 512 : block * 512 + writer * part;
    const length = wholes ? 512 : part;
    for (let round = 1; round <= 4; round++) {
      // Writers of one whole block write the same, so that their order does not matter.
      const bytes = new Uint8Array(length).fill(wholes ? 200 : (writer * 4 + round) % 255);
      await device.write(start, bytes);
      expected.set(bytes, start);
      for (let turn = rng.integer(0, 5); turn > 0; turn--) await Promise.resolve();
    }
  });
  await Promise.all(tasks);
  const found = new Uint8Array(size);
  await device.read(0, found);
  return found.filter((byte, index) => byte !== expected[index]).length;
}

const noLock: RangeLocking = {
  acquire: async (start, end, alone) => ({ start, end, alone }),
  release: () => {},
};

describe("writers of parts of one block", () => {
  itSeeded("do not undo one another's writes", async (rng) => {
    for (let round = 0; round < 10; round++) expect(await lostBytes(rng)).toBe(0);
  });

  itSeeded("would do so without the lock", async (rng) => {
    expect(await lostBytes(rng, noLock)).toBeGreaterThan(0);
  });

  /** A write of a whole block lands while the old contents of the block are being merged. */
  async function wholeBlockSurvives(rng: Prng, lock?: RangeLocking): Promise<boolean> {
    const device = new AlignedDevice(new StrictDevice({ sizeBytes: 512, block: 512, rng }), lock);
    const whole = new Uint8Array(512).fill(7);
    const part = new Uint8Array(10).fill(9);
    await Promise.all([device.write(100, part), device.write(0, whole)]);
    const found = new Uint8Array(512);
    await device.read(0, found);
    return found.every((byte, index) => byte === 7 || (byte === 9 && index >= 100 && index < 110));
  }

  itSeeded("do not undo the write of the whole block either", async (rng) => {
    for (let round = 0; round < 50; round++) expect(await wholeBlockSurvives(rng)).toBe(true);
    let lost = 0;
    for (let round = 0; round < 50; round++) if (!(await wholeBlockSurvives(rng, noLock))) lost++;
    expect(lost).toBeGreaterThan(0);
  });
});

describe("extents cut to a range", () => {
  test("begin and end where the range does", () => {
    const list = [{ length: 10 }, { length: 20 }, { length: Infinity }];
    expect(cutToRange(list, 0, 5)).toEqual([{ length: 5 }]);
    expect(cutToRange(list, 10, 20)).toEqual([{ length: 20 }]);
    expect(cutToRange(list, 5, 100)).toEqual([{ length: 5 }, { length: 20 }, { length: 75 }]);
    expect(cutToRange([{ length: 4 }], 5, 100)).toEqual([]);
  });
});
