/** Devices that break one rule about extents, lifetime or durability each. */
import type { BlockDevice } from "../../../src/block/device.ts";
import { BlockError } from "../../../src/block/error.ts";
import type { Extent } from "../../../src/block/extents.ts";
import { fakeRawTarget } from "../../support/raw-target.ts";
import type { Doubles } from "./doubles-data.ts";
import { memoryTarget, spoil, spoilt } from "./through.ts";

const CLUSTER = 65_536;
const rawTarget = fakeRawTarget();

export const extentDoubles: Doubles = {
  "extents are at least one, at most as many and as long as asked for, and none is empty": {
    "does not count": spoilt((inner) => ({ extents: (offset, length) => inner.extents(offset, length, 1000) })),
    "answers in whole clusters": spoilt(() => ({
      extents: async (offset) => [{ length: CLUSTER - (offset % CLUSTER), hole: false, zero: false }],
    })),
    "has nothing to say": spoilt(() => ({ extents: async () => [] })),
    "begins with an empty extent": spoilt((inner) => ({
      async extents(offset, length, countMax) {
        const rest = countMax > 1 ? await inner.extents(offset, length, countMax - 1) : [];
        return [{ length: 0, hole: false, zero: false }, ...rest];
      },
    })),
  },
  "one extent at a time or many, a walk tells the same": {
    "forgets holes when asked for one extent": spoilt((inner) => ({
      async extents(offset, length, countMax) {
        const all = await inner.extents(offset, length, countMax);
        return countMax > 1 ? all : all.map((extent) => ({ ...extent, hole: false, zero: false }));
      },
    })),
  },
  "what is said to be zero reads as zeroes": {
    "judges a cluster by its first byte": spoilt((inner) => ({
      extents: (offset, length) => byFirstByte(inner, offset, length),
    })),
    "takes what cannot be told for zero": spoilt(() => ({
      extents: async (_offset, length) => [{ length, hole: false, zero: true }],
    })),
  },
  "data is never said to be a hole or zero once its write has resolved": {
    "remembers its first answers": spoilt((inner) => {
      const answers = new Map<number, Extent[]>();
      return {
        async extents(offset, length, countMax) {
          const known = answers.get(offset) ?? (await inner.extents(offset, length, countMax));
          answers.set(offset, known);
          return known;
        },
      };
    }),
    "says of all data that nothing is behind it": spoilt((inner) => ({
      async extents(offset, length, countMax) {
        const all = await inner.extents(offset, length, countMax);
        return all.map((extent) => ({ ...extent, hole: true }));
      },
    })),
  },
  "a device that cannot tell says that everything is data": {
    "can tell after all": spoilt((inner) => ({ capabilities: { ...inner.capabilities, extents: false } })),
  },
  "asking for no extents, or about no bytes, is invalid": {
    "answers with none": spoilt((inner) => ({
      extents: async (offset, length, countMax) => (length === 0 ? [] : inner.extents(offset, length, countMax)),
    })),
    "answers with one all the same": spoilt((inner) => ({
      extents: (offset, length, countMax) => inner.extents(offset, length, Math.max(countMax, 1)),
    })),
  },
};

export const lifeDoubles: Doubles = {
  "a read-only device refuses every change, is not changed, and can be read, mapped and flushed": {
    "takes writes and forgets them": spoilt(() => ({ write: async () => undefined })),
    "writes through its back door": {
      make: async (wanted) => readOnlyBut(await memoryTarget.make({ ...wanted, readOnly: false }), "writeNow"),
    },
    discards: {
      make: async (wanted) => readOnlyBut(await memoryTarget.make({ ...wanted, readOnly: false }), "discard"),
    },
    "says permission denied": spoilt(() => ({
      writeZeroes: () => Promise.reject(new BlockError("permission", "no")),
    })),
    "cannot be flushed": spoilt(() => ({ flush: () => Promise.reject(new BlockError("read-only", "no")) })),
    "does not say so": spoilt((inner) => ({ capabilities: { ...inner.capabilities, readOnly: false } })),
  },
  "a writable device does not call itself read-only": {
    does: spoilt((inner) => ({ capabilities: { ...inner.capabilities, readOnly: true } })),
  },
  "cache and flush change nothing, and may be under way several at a time": {
    "takes cache for discard": spoilt((inner) => ({ cache: (offset, length) => inner.discard(offset, length) })),
    "flushes once at a time": spoilt((inner) => {
      let busy = false;
      return {
        async flush() {
          if (busy) throw new BlockError("io", "busy");
          busy = true;
          await inner.flush();
          busy = false;
        },
      };
    }),
  },
  "a flush makes durable every write, zero and discard that had resolved before it": {
    "does not flush": spoilt(() => ({ flush: async () => undefined }), rawTarget),
    "flushes before it writes back": spoilt((inner) => {
      const pending: (() => Promise<void>)[] = [];
      return {
        writeNow: () => -1,
        write: async (offset, from) => void pending.push(() => inner.write(offset, from.slice())),
        async flush() {
          await inner.flush();
          for (const write of pending.splice(0)) await write();
        },
      };
    }, rawTarget),
  },
  "a flush covers what had resolved before it even when another flush was already under way": {
    "joins the flush under way": spoilt((inner) => {
      let running: Promise<void> | undefined;
      return {
        flush() {
          running ??= inner.flush().finally(() => {
            running = undefined;
          });
          return running;
        },
      };
    }, rawTarget),
  },
  "a write with FUA is durable when it resolves": {
    "forgets FUA": spoilt((inner) => ({ write: (offset, from) => inner.write(offset, from) }), rawTarget),
    "flushes first": spoilt(
      (inner) => ({
        async write(offset, from, options) {
          if (options?.fua) await inner.flush();
          await inner.write(offset, from);
        },
      }),
      rawTarget,
    ),
  },
  "zeroes with FUA are durable when they resolve": {
    "forgets FUA": spoilt(
      (inner) => ({
        writeZeroes: (offset, length, options) =>
          inner.writeZeroes(offset, length, { noHole: options?.noHole === true }),
      }),
      rawTarget,
    ),
    "forgets FUA where no hole is wanted": spoilt(
      (inner) => ({
        writeZeroes: (offset, length, options) =>
          inner.writeZeroes(offset, length, options?.noHole ? { noHole: true } : options),
      }),
      rawTarget,
    ),
  },
  "a flush that failed is not made good by a later one": {
    "tries again": spoilt((inner) => {
      let failed = false;
      return {
        async flush() {
          if (failed) return;
          failed = true;
          await inner.flush();
          failed = false;
        },
      };
    }, rawTarget),
    "does not tell": spoilt((inner) => ({ flush: () => inner.flush().catch(() => undefined) }), rawTarget),
  },
  "closing waits for what is under way, which still succeeds": {
    "does not wait": spoilt((inner) => ({
      async read(offset, into) {
        await new Promise(setImmediate);
        inner.readNow(offset, into);
      },
    })),
    "breaks off what is under way": spoilt((inner) => {
      let closed = false;
      return {
        async write(offset, from, options) {
          await Promise.resolve();
          if (closed) throw new BlockError("shutting-down", "closed");
          await inner.write(offset, from, options);
        },
        async close() {
          closed = true;
          await inner.close();
        },
      };
    }),
  },
  "closing again, or twice at a time, does nothing more": {
    "fails the second time": spoilt((inner) => {
      let closed = false;
      return {
        async close() {
          if (closed) throw new BlockError("shutting-down", "closed already");
          closed = true;
          await inner.close();
        },
      };
    }),
  },
  "after closing, every call fails as shutting down": {
    "still serves": spoilt(() => ({ close: async () => undefined })),
    "still reads from memory": spoilt((inner) => ({
      readNow: (_offset, into) => into.length,
      close: () => inner.close(),
    })),
    "is not closed by disposal": spoilt(() => ({ [Symbol.asyncDispose]: async () => undefined })),
    "fails as an I/O error": spoilt((inner) => ({
      flush: () => inner.flush().catch(() => Promise.reject(new BlockError("io", "bad file descriptor"))),
    })),
  },
  "two devices know nothing of each other": {
    "share their storage": sharing(),
    "close together": closingTogether(),
  },
};

export const randomDoubles: Doubles = {
  "random operations leave a device as they leave an array of bytes": {
    "loses a byte now and then": spoilt((inner) => {
      let writes = 0;
      return {
        async write(offset, from, options) {
          writes += 1;
          const lost = writes % 3 === 0 && from.length > 1 ? 1 : 0;
          await inner.write(offset + lost, from.subarray(lost), options);
        },
      };
    }),
    "zeroes one byte less before the end of a sector": spoilt((inner) => ({
      async writeZeroes(offset, length, options) {
        const short = length > 0 && (offset + length) % 512 < 4 ? 1 : 0;
        await inner.writeZeroes(offset, length - short, options);
      },
    })),
  },
};

async function byFirstByte(inner: BlockDevice, offset: number, length: number): Promise<Extent[]> {
  const first = new Uint8Array(1);
  await inner.read(offset, first);
  const end = Math.min(offset + length, (Math.floor(offset / CLUSTER) + 1) * CLUSTER);
  return [{ length: end - offset, hole: false, zero: first[0] === 0 }];
}

/** Refuses all changes but one kind. */
function readOnlyBut(inner: BlockDevice, open: "writeNow" | "discard"): BlockDevice {
  const refuse = () => Promise.reject(new BlockError("read-only", "read-only"));
  return spoil(inner, () => ({
    capabilities: { ...inner.capabilities, readOnly: true },
    write: refuse,
    writeZeroes: refuse,
    ...(open === "writeNow" ? { discard: refuse } : { writeNow: () => -1 }),
  }));
}

function sharing() {
  let shared: BlockDevice | undefined;
  return spoilt(() => ({ close: async () => undefined, [Symbol.asyncDispose]: async () => undefined }), {
    async make(wanted) {
      shared ??= await memoryTarget.make(wanted);
      return shared;
    },
  });
}

function closingTogether() {
  const all: BlockDevice[] = [];
  return spoilt((inner) => {
    all.push(inner);
    return {
      async close() {
        for (const device of all.splice(0)) await device.close();
      },
    };
  });
}
