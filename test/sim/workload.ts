/**
 * A guest: several threads that read, write, zero, discard and flush one disk side by side, and tell the oracle before and
 * after. What it does most, how large and how many at a time is drawn from the seed.
 */
import type { BlockDevice } from "../../src/block/device.ts";
import { BlockError } from "../../src/block/error.ts";
import { ConnectionLostError } from "../../src/nbd/client/errors.ts";
import type { Prng } from "../support/seed.ts";
import type { Change, Oracle } from "./oracle.ts";

const KINDS = ["read", "write", "zero", "discard", "flush", "extents", "cache"] as const;
type Kind = (typeof KINDS)[number];

export interface Habits {
  /** For each kind, how often, relative to the others. */
  readonly weights: Readonly<Record<Kind, number>>;
  readonly fua: number;
  readonly threads: number;
  /** Cells of one request, at most. */
  readonly cellsMax: number;
  /** Requests keep to so many cells, so that they meet. */
  readonly regionCells: number;
}

export function drawHabits(rng: Prng, cells: number): Habits {
  const weight = (): number => rng.pick([0, 1, 1, 3, 10]);
  return {
    weights: {
      read: weight(),
      write: rng.pick([3, 10]),
      zero: weight() / 2,
      discard: weight() / 4,
      flush: rng.pick([0.3, 1, 3]),
      extents: 0.1,
      cache: 0.1,
    },
    fua: rng.pick([0, 0, 0.1, 0.5]),
    threads: rng.pick([1, 2, 4, 8]),
    cellsMax: rng.pick([1, 4, cells]),
    regionCells: rng.pick([2, 8, cells]),
  };
}

export interface GuestParts {
  readonly oracle: Oracle;
  readonly rng: Prng;
  readonly habits: Habits;
  /** What failed may still happen until `Oracle.endLingering`: there is a server in between. */
  readonly lingers: boolean;
}

export class Guest {
  readonly #parts: GuestParts;
  /** Requests that were begun and did not settle. After a kill these never do. */
  inFlight = 0;
  requests = 0;
  failures = 0;
  /** A write or flush failed for good: the disk is of no more use until it is opened anew. */
  lost = false;
  /** Called when that is found, each time. */
  onLost: () => void = () => {};
  #stopped = false;

  constructor(parts: GuestParts) {
    this.#parts = parts;
  }

  /** Threads begin nothing more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Runs all threads, spread over `devices`, until `requests` are done or the disk fails. Rejects with `OracleError`. */
  async run(devices: readonly BlockDevice[], requests: number): Promise<void> {
    const { threads } = this.#parts.habits;
    const each = Math.ceil(requests / threads);
    const work = Array.from({ length: threads }, (_, thread) => {
      const device = devices[thread % devices.length];
      if (device === undefined) throw new RangeError("a guest needs a disk");
      return this.#thread(device, each);
    });
    await Promise.all(work);
  }

  async #thread(device: BlockDevice, requests: number): Promise<void> {
    for (let done = 0; done < requests && !this.#stopped && !this.lost; done++) {
      this.requests += 1;
      this.inFlight += 1;
      await this.#request(device, this.#drawKind());
      this.inFlight -= 1;
    }
  }

  #drawKind(): Kind {
    const { rng, habits } = this.#parts;
    let rest = rng.float() * KINDS.reduce((sum, kind) => sum + habits.weights[kind], 0);
    for (const kind of KINDS) {
      rest -= habits.weights[kind];
      if (rest < 0) return kind;
    }
    return "write";
  }

  async #request(device: BlockDevice, kind: Kind): Promise<void> {
    const { oracle, rng, habits } = this.#parts;
    const region = Math.min(habits.regionCells, oracle.cells);
    const first = rng.integer(0, region - 1);
    const count = rng.integer(1, Math.min(habits.cellsMax, region - first));
    const fua = rng.chance(habits.fua);
    const offset = first * oracle.cellBytes;
    const length = count * oracle.cellBytes;
    switch (kind) {
      case "read":
        return await this.#read(device, first, count);
      case "write":
        return await this.#write(device, first, { count, fua });
      case "zero":
        return await this.#change(oracle.beginZero(first, count), fua, () =>
          device.writeZeroes(offset, length, { fua, noHole: rng.chance(0.3), fastOnly: rng.chance(0.1) }),
        );
      case "discard":
        return await this.#change(oracle.beginDiscard(first, count), fua, () =>
          device.discard(offset, length, { fua }),
        );
      case "flush":
        return await this.#flush(device);
      case "extents":
        await this.#attempt(async () => void (await device.extents(offset, length, 8)));
        return;
      case "cache":
        await this.#attempt(() => device.cache(offset, length));
        return;
    }
  }

  async #read(device: BlockDevice, first: number, count: number): Promise<void> {
    const { oracle, rng } = this.#parts;
    const into = new Uint8Array(count * oracle.cellBytes);
    const offset = first * oracle.cellBytes;
    const begunAt = oracle.beginRead();
    await this.#attempt(async () => {
      if (!rng.chance(0.3) || device.readNow(offset, into) < 0) await device.read(offset, into);
      oracle.checkRead(begunAt, first, into);
    });
    oracle.endRead(begunAt);
  }

  async #write(device: BlockDevice, first: number, how: { count: number; fua: boolean }): Promise<void> {
    const { oracle, rng } = this.#parts;
    const from = new Uint8Array(how.count * oracle.cellBytes);
    const offset = first * oracle.cellBytes;
    const change = oracle.beginWrite(first, from);
    await this.#change(change, how.fua, async () => {
      if (!how.fua && rng.chance(0.3) && device.writeNow(offset, from) >= 0) return;
      await device.write(offset, from, { fua: how.fua });
    });
    // Ours again: who still reads it writes garbage.
    from.fill(0xdd);
  }

  async #change(change: Change, fua: boolean, act: () => Promise<void>): Promise<void> {
    const { oracle, lingers } = this.#parts;
    const failure = await this.#attempt(act);
    if (failure === undefined) oracle.acknowledge(change, fua);
    else oracle.fail(change, lingers);
  }

  async #flush(device: BlockDevice): Promise<void> {
    const { oracle } = this.#parts;
    const begunAt = oracle.beginFlush();
    const failure = await this.#attempt(() => device.flush());
    if (failure === undefined) oracle.acknowledgeFlush(begunAt);
    else if (failure.code !== "no-space") this.#lose();
  }

  #lose(): void {
    this.lost = true;
    this.onLost();
  }

  /** What it failed with, if that was a `BlockError`; anything else is a bug, and thrown. */
  async #attempt(act: () => Promise<void>): Promise<BlockError | undefined> {
    try {
      await act();
      return undefined;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.failures += 1;
      if (error.code === "shutting-down" || error instanceof ConnectionLostError) this.#lose();
      return error;
    }
  }
}
