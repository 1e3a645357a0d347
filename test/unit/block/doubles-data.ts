/** Devices that break one rule about ranges, data or zeroes each. The key is the title of the rule that must notice. */

import type { ConformanceTarget } from "../../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../../src/block/device.ts";
import { BlockError, checkRange } from "../../../src/block/error.ts";
import { type Change, memoryTarget, spoilt } from "./through.ts";

/** What is wrong with it → the device. */
export type Doubles = Readonly<Record<string, Readonly<Record<string, ConformanceTarget>>>>;

const SECTOR = 512;

export const rangeDoubles: Doubles = {
  "a device has exactly the size it was made with, and keeps it": {
    "rounds its size up to sectors": spoilt((inner) => ({ sizeBytes: Math.ceil(inner.sizeBytes / SECTOR) * SECTOR })),
    "takes another size when flushed": spoilt((inner) => {
      let size = inner.sizeBytes;
      return {
        get sizeBytes() {
          return size;
        },
        async flush() {
          size += 1;
        },
      };
    }),
  },
  "block sizes are powers of two within their limits": {
    "prefers 3000 bytes": spoilt(withBlockSizes(1, 3000)),
    "has a minimum of 128 KiB": spoilt(withBlockSizes(131_072, 131_072)),
    "prefers less than its minimum": spoilt(withBlockSizes(4096, 512)),
  },
  "a range may end at the size and not one byte further": {
    "refuses the last byte": spoilt((inner) => ({
      async read(offset, into) {
        checkRange(offset, into.length + 1, inner.sizeBytes);
        await inner.read(offset, into);
      },
    })),
    "allows one zero byte past the end": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        checkRange(offset, length, inner.sizeBytes + 1);
        await inner.writeZeroes(offset, Math.min(length, inner.sizeBytes - offset), options);
      },
    })),
    "throws instead of rejecting": spoilt((inner) => ({
      write(offset, from, options) {
        checkRange(offset, from.length, inner.sizeBytes);
        return inner.write(offset, from, options);
      },
    })),
    "fails with something else than a BlockError": spoilt((inner) => ({
      async discard(offset, length, options) {
        if (offset + length > inner.sizeBytes) throw Object.assign(new Error("too far"), { code: "out-of-range" });
        await inner.discard(offset, length, options);
      },
    })),
  },
  "a refused range changes nothing": {
    "writes what fits before refusing": spoilt((inner) => ({
      async write(offset, from, options) {
        const fitting = Math.min(from.length, inner.sizeBytes - offset);
        if (offset >= 0) await inner.write(offset, from.subarray(0, fitting), options);
        checkRange(offset, from.length, inner.sizeBytes);
      },
    })),
  },
  "offsets and lengths that overflow 32 or 53 bits, are negative or are no number, are out of range": {
    "folds offsets to 32 bits": spoilt((inner) => ({ read: (offset, into) => inner.read(offset % 2 ** 32, into) })),
    "folds lengths to 32 bits": spoilt((inner) => ({
      writeZeroes: (offset, length, options) => inner.writeZeroes(offset, length % 2 ** 32, options),
    })),
    "lets NaN through": spoilt((inner) => ({
      async cache(offset, length) {
        if (offset < 0 || length < 0 || offset + length > inner.sizeBytes) checkRange(offset, length, inner.sizeBytes);
      },
    })),
  },
  "readNow and writeNow decline bad ranges and leave device and buffer alone": {
    "fills up with zeroes at the end": spoilt((inner) => ({
      readNow(offset, into) {
        const fitting = Math.min(into.length, inner.sizeBytes - offset);
        if (!(offset >= 0 && fitting > 0)) return -1;
        into.fill(0);
        inner.readNow(offset, into.subarray(0, fitting));
        return into.length;
      },
    })),
    "writes what fits": spoilt((inner) => ({
      writeNow(offset, from) {
        const fitting = Math.min(from.length, inner.sizeBytes - offset);
        if (offset >= 0 && fitting > 0) inner.writeNow(offset, from.subarray(0, fitting));
        return inner.writeNow(offset, from);
      },
    })),
    "throws from readNow": spoilt((inner) => ({
      readNow(offset, into) {
        checkRange(offset, into.length, inner.sizeBytes);
        return inner.readNow(offset, into);
      },
    })),
  },
  "zero length succeeds anywhere up to the size, fails behind it, and changes nothing": {
    "calls it invalid": spoilt((inner) => ({
      async write(offset, from, options) {
        if (from.length === 0) throw new BlockError("invalid", "nothing to write");
        await inner.write(offset, from, options);
      },
    })),
    "accepts it anywhere": spoilt((inner) => ({
      async discard(offset, length, options) {
        if (length > 0) await inner.discard(offset, length, options);
      },
    })),
  },
  "every byte of a size that is no multiple of 512 can be read and written": {
    "drops the last, partial sector": spoilt((inner) => ({
      async write(offset, from, options) {
        const lastWhole = Math.floor(inner.sizeBytes / SECTOR) * SECTOR;
        await inner.write(offset, from.subarray(0, Math.max(0, lastWhole - offset)), options);
      },
    })),
  },
  "offsets of terabytes are not folded onto smaller ones": {
    "keeps 32 bits of the offset": spoilt(folding(2 ** 32)),
    "keeps 31 bits of the sector number": spoilt(folding(2 ** 31 * SECTOR)),
  },
};

export const dataDoubles: Doubles = {
  "a fresh device holds what it was made with, and zeroes where that was nothing": {
    "is full of what somebody left": {
      make: async (wanted) => dirtied(await memoryTarget.make(wanted), wanted.content),
    },
    "is empty": { make: ({ sizeBytes }) => memoryTarget.make({ sizeBytes }) },
  },
  "a read sees what was written before it, at any alignment, and nothing else has changed": {
    "writes whole sectors only": spoilt((inner) => ({
      async write(offset, from, options) {
        const start = Math.floor(offset / SECTOR) * SECTOR;
        await inner.write(start, from, options);
      },
    })),
    "reads from a cache that writes do not reach": spoilt((inner) => {
      const cached = new Map<string, Uint8Array>();
      return {
        async read(offset, into) {
          const key = `${offset}+${into.length}`;
          const known = cached.get(key);
          if (known !== undefined) return into.set(known);
          await inner.read(offset, into);
          cached.set(key, into.slice());
        },
      };
    }),
  },
  "a request of several megabytes is answered whole": {
    "stops after 4 MiB": spoilt((inner) => ({
      write: (offset, from, options) => inner.write(offset, from.subarray(0, 4 * 1024 * 1024), options),
    })),
  },
  "a write keeps nothing of the caller's buffer once it has resolved": {
    "stores when it is read": spoilt((inner) => {
      const kept: [number, Uint8Array][] = [];
      return {
        writeNow: () => -1,
        async write(offset, from) {
          kept.push([offset, from]);
        },
        async read(offset, into) {
          for (const [at, from] of kept.splice(0)) await inner.write(at, from);
          await inner.read(offset, into);
        },
      };
    }),
  },
  "a write takes exactly the view it is given and leaves its bytes as they are": {
    "takes the buffer under the view": spoilt((inner) => ({
      write: (offset, from, options) => inner.write(offset, new Uint8Array(from.buffer, 0, from.length), options),
    })),
    "clears what it has taken": spoilt((inner) => ({
      async write(offset, from, options) {
        await inner.write(offset, from, options);
        from.fill(0);
      },
    })),
  },
  "a read fills exactly the view it is given and never touches it afterwards": {
    "writes past the view": spoilt((inner) => ({
      async read(offset, into) {
        const more = new Uint8Array(into.buffer, into.byteOffset);
        more.fill(0);
        await inner.read(offset, into);
      },
    })),
    "uses the buffer again for the next read": spoilt((inner) => {
      let last = new Uint8Array(0);
      return {
        async read(offset, into) {
          await inner.read(offset, into);
          last.set(into.subarray(0, last.length));
          last = into as typeof last;
        },
      };
    }),
  },
  "writes to neighbouring ranges that are under way together do not lose each other": {
    "reads, merges and writes sectors without taking turns": spoilt((inner) => ({
      async write(offset, from, options) {
        const start = Math.floor(offset / SECTOR) * SECTOR;
        const end = Math.min(Math.ceil((offset + from.length) / SECTOR) * SECTOR, inner.sizeBytes);
        const merged = new Uint8Array(end - start);
        await inner.read(start, merged);
        merged.set(from, offset - start);
        await inner.write(start, merged, options);
      },
    })),
  },
  "operations on disjoint ranges that are under way together do not disturb each other": {
    "reads through one buffer": spoilt((inner) => {
      const shared = new Uint8Array(inner.sizeBytes);
      return {
        async read(offset, into) {
          const part = shared.subarray(0, into.length);
          await inner.read(offset, part);
          into.set(part);
        },
      };
    }),
  },
  "where overlapping writes are under way together, every byte is one of theirs": {
    "mixes them": spoilt((inner) => {
      let underWay = 0;
      return {
        async write(offset, from, options) {
          const alone = ++underWay === 1;
          const there = new Uint8Array(from.length);
          await inner.read(offset, there);
          const mixed = alone ? from : from.map((byte, at) => byte | (there[at] ?? 0));
          await inner.write(offset, mixed, options);
          underWay -= 1;
        },
      };
    }),
  },
  "readNow gives all bytes that read gives, or −1": {
    "remembers what it once read": spoilt((inner) => {
      const before = new Uint8Array(inner.sizeBytes);
      inner.readNow(0, before);
      return {
        readNow(offset, into) {
          into.set(before.subarray(offset, offset + into.length));
          return into.length;
        },
      };
    }),
    "stops at the end of a page": spoilt((inner) => ({
      readNow: (offset, into) => inner.readNow(offset, into.subarray(0, 4096 - (offset % 4096))),
    })),
  },
  "writeNow stores all that write would store, at once, or returns −1 and stores nothing": {
    "stores, and says that it did not": spoilt((inner) => ({
      writeNow(offset, from) {
        inner.writeNow(offset, from);
        return -1;
      },
    })),
    "stores the first page": spoilt((inner) => ({
      writeNow(offset, from) {
        inner.writeNow(offset, from.subarray(0, 4096));
        return from.length;
      },
    })),
    "stores later": spoilt((inner) => ({
      writeNow(offset, from) {
        const copy = from.slice();
        queueMicrotask(() => inner.writeNow(offset, copy));
        return from.length;
      },
    })),
  },
};

export const zeroDoubles: Doubles = {
  "written zeroes read as zeroes under every option and at any alignment, and nothing else has changed": {
    "zeroes whole sectors": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        const start = Math.floor(offset / SECTOR) * SECTOR;
        const end = Math.min(Math.ceil((offset + length) / SECTOR) * SECTOR, inner.sizeBytes);
        await inner.writeZeroes(start, end - start, options);
      },
    })),
    "only allocates when no hole is wanted": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        if (!options?.noHole) await inner.writeZeroes(offset, length, options);
      },
    })),
    "refuses as slow what need not be fast": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        if (options?.noHole) throw new BlockError("not-supported", "too slow");
        await inner.writeZeroes(offset, length, options);
      },
    })),
  },
  "zeroes that are refused as slow have changed nothing": {
    "notices half-way that it is slow": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        await inner.writeZeroes(offset, Math.ceil(length / 2), options);
        if (options?.fastOnly) throw new BlockError("not-supported", "too slow");
        await inner.writeZeroes(offset, length, options);
      },
    })),
  },
  "a device without fast zeroes refuses them when only fast ones will do": {
    "writes them slowly": spoilt((inner) => ({
      capabilities: { ...inner.capabilities, fastZero: false },
    })),
  },
  "data written over zeroes or over what was discarded is there, in all of it or in parts": {
    "still takes the page for zero": spoilt((inner) => {
      const zeroed = new Set<number>();
      return {
        async writeZeroes(offset, length, options) {
          await inner.writeZeroes(offset, length, options);
          for (let page = Math.ceil(offset / 4096); (page + 1) * 4096 <= offset + length; page++) zeroed.add(page);
        },
        async read(offset, into) {
          await inner.read(offset, into);
          for (let at = 0; at < into.length; at++) if (zeroed.has(Math.floor((offset + at) / 4096))) into[at] = 0;
        },
      };
    }),
  },
  "a discarded range reads as zeroes or as what it held, byte by byte, and nothing else has changed": {
    "discards whole pages": spoilt((inner) => ({
      async discard(offset, length, options) {
        const start = Math.floor(offset / 4096) * 4096;
        const end = Math.min(Math.ceil((offset + length) / 4096) * 4096, inner.sizeBytes);
        await inner.discard(start, end - start, options);
      },
    })),
    "leaves what a flash chip leaves": spoilt((inner) => ({
      discard: (offset, length, options) => inner.write(offset, new Uint8Array(length).fill(0xff), options),
    })),
  },
};

function withBlockSizes(minimum: number, preferred: number): Change {
  return (inner) => ({ capabilities: { ...inner.capabilities, blockSizes: { minimum, preferred } } });
}

/** Checks ranges properly, then forgets the upper bits. */
function folding(modulus: number): Change {
  return (inner) => ({
    async write(offset, from, options) {
      checkRange(offset, from.length, inner.sizeBytes);
      await inner.write(offset % modulus, from, options);
    },
    async read(offset, into) {
      checkRange(offset, into.length, inner.sizeBytes);
      await inner.read(offset % modulus, into);
    },
  });
}

async function dirtied(device: BlockDevice, content: Uint8Array | undefined): Promise<BlockDevice> {
  if (content === undefined) await device.write(70_000, Uint8Array.of(1));
  return device;
}
