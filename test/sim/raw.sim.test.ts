import { expect } from "vitest";
import type { BlockDevice } from "../../src/block/device.ts";
import { BlockError } from "../../src/block/error.ts";
import { counts, itSeeded } from "../support/seed.ts";
import { OracleError } from "./oracle.ts";
import { type HistoryOptions, rawHistory, type Wrap } from "./raw-history.ts";
import { withoutStacks } from "./without-stacks.ts";

/** Runs histories one after the other; says which seed failed. */
async function histories(first: number, count: number, options: HistoryOptions): Promise<number> {
  let requests = 0;
  for (let seed = first; seed < first + count; seed++) {
    try {
      requests += (await withoutStacks(() => rawHistory(seed, options))).requests;
    } catch (error) {
      throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
    }
    if (seed % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  return requests;
}

for (const overNbd of [false, true]) {
  const where = overNbd ? "over NBD" : "directly";
  itSeeded(`a raw image used ${where} loses nothing it acknowledged, whatever the crash`, async (rng) => {
    const first = rng.integer(1, 1e9);
    const count = overNbd ? counts({ local: 150, ci: 4000 }) : counts({ local: 1500, ci: 30_000 });
    const startedMs = performance.now();
    const requests = await histories(first, count, { overNbd });
    const perSecond = Math.round(count / ((performance.now() - startedMs) / 1000));
    console.info(`${count} histories ${where} from seed ${first}: ${requests} requests, ${perSecond} histories/s`);
    expect(requests).toBeGreaterThan(count);
  });

  itSeeded(`a history ${where} is the same each time its seed is run`, async (rng) => {
    for (let round = 0; round < 30; round++) {
      const seed = rng.integer(1, 1e9);
      const once = await rawHistory(seed, { overNbd });
      expect(await rawHistory(seed, { overNbd })).toEqual(once);
    }
  });
}

/** The device with some methods replaced. */
function changed(device: BlockDevice, methods: Partial<BlockDevice>): BlockDevice {
  return new Proxy(device, {
    get: (target, key) => {
      const value: unknown = Reflect.get(methods, key) ?? Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** Each breaks one rule. */
const doubles: Record<string, Wrap> = {
  "acknowledges a flush before the sync": (image) => [
    changed(image, { flush: async () => void image.flush().catch(() => {}) }),
  ],
  "loses a write": (image) => {
    let writes = 0;
    const write: BlockDevice["write"] = async (offset, from, how) => {
      if (++writes % 7 !== 0) await image.write(offset, from, how);
    };
    return [changed(image, { write })];
  },
  "syncs only for a connection that has written": (image) =>
    [0, 1].map(() => {
      let dirty = false;
      const write: BlockDevice["write"] = (offset, from, how) => {
        dirty = true;
        return image.write(offset, from, how);
      };
      const flush = async (): Promise<void> => {
        if (dirty) await image.flush();
        dirty = false;
      };
      return changed(image, { write, flush, writeNow: () => -1 });
    }),
  "retries a failed sync": (image, file) => {
    const flush = (): Promise<void> =>
      file
        .dataSync()
        .catch(() => file.dataSync())
        .catch(asBlockError);
    return [changed(image, { flush })];
  },
  "calls a write durable of which only the first sector was synced": (image) => {
    const write: BlockDevice["write"] = async (offset, from, how) => {
      await image.write(offset, from.subarray(0, 512), how);
      if (from.length > 512) await image.write(offset + 512, from.subarray(512));
    };
    return [changed(image, { write })];
  },
  "joins a flush to a sync that had begun earlier": (image) => {
    let running: Promise<void> | undefined;
    const flush = (): Promise<void> => {
      running ??= image.flush().finally(() => {
        running = undefined;
      });
      return running;
    };
    return [changed(image, { flush })];
  },
  "forgets FUA": (image) => [changed(image, { write: (offset, from) => image.write(offset, from) })],
};

function asBlockError(cause: unknown): never {
  throw new BlockError("io", "the sync failed", { cause });
}

for (const [name, wrap] of Object.entries(doubles)) {
  itSeeded(`the oracle notices a device that ${name}`, async (rng) => {
    const first = rng.integer(1, 1e9);
    const caught = await firstCaught(first, 3000, wrap);
    expect(caught, "no seed caught it").toBeDefined();
    console.info(`${name}: caught at seed ${caught}, history ${(caught ?? 0) - first + 1}`);
  });
}

async function firstCaught(first: number, count: number, wrap: Wrap): Promise<number | undefined> {
  for (let seed = first; seed < first + count; seed++) {
    try {
      await withoutStacks(() => rawHistory(seed, { wrap }));
    } catch (error) {
      if (error instanceof OracleError) return seed;
      throw error;
    }
  }
  return undefined;
}
