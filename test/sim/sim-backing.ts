/**
 * The source's disk as an overlay sees it over the network: right, but late, in any order, at times with an error, and at
 * times not at all until `reconnect`. A buffer that is being filled holds garbage until its read has ended.
 */
import type { BlockCapabilities, BlockDevice } from "../../src/block/device.ts";
import { BlockError } from "../../src/block/error.ts";
import type { Extent } from "../../src/block/extents.ts";
import type { MemoryDevice } from "../../src/block/memory.ts";
import type { Prng } from "../support/seed.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimProcess } from "./sim-process.ts";

const GARBAGE = 0xbb;

export interface BackingHabits {
  readonly latencyMs: number;
  /** The chance that a read fails. */
  error: number;
}

export interface SimBackingParts {
  readonly content: MemoryDevice;
  readonly scheduler: Scheduler;
  readonly rng: Prng;
  /** Whose session this is. */
  readonly process: SimProcess;
  readonly habits: BackingHabits;
}

export class SimBacking implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #parts: SimBackingParts;
  readonly #parked: (() => void)[] = [];
  #connected = true;
  #aborted = false;
  /** Reads that have not been answered. */
  pending = 0;

  constructor(parts: SimBackingParts) {
    this.#parts = parts;
    this.sizeBytes = parts.content.sizeBytes;
    this.capabilities = { ...parts.content.capabilities, readOnly: true };
  }

  /** What was asked, and will be asked, is not answered until `reconnect`. */
  disconnect(): void {
    this.#connected = false;
  }

  reconnect(): void {
    this.#connected = true;
    for (const answer of this.#parked.splice(0)) this.#later(answer);
  }

  /** As the owner of a session does who wants to be rid of it: everything fails, soon. */
  abort(): void {
    this.#aborted = true;
    this.reconnect();
  }

  readNow(): number {
    return -1;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    const { content, process, rng, habits } = this.#parts;
    into.fill(GARBAGE);
    this.pending += 1;
    return new Promise((resolve, reject) => {
      const answer = (): void => {
        if (!process.alive) return;
        if (!this.#connected) {
          this.#parked.push(answer);
          return;
        }
        this.pending -= 1;
        if (this.#aborted) reject(new BlockError("shutting-down", "the session was closed"));
        else if (rng.chance(habits.error)) reject(new BlockError("io", "the source cannot read this"));
        else resolve(content.read(offset, into));
      };
      this.#later(answer);
    });
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#parts.content.extents(offset, length, countMax);
  }

  writeNow(): number {
    return -1;
  }

  async write(): Promise<void> {
    refuse();
  }

  async writeZeroes(): Promise<void> {
    refuse();
  }

  async discard(): Promise<void> {
    refuse();
  }

  async cache(): Promise<void> {}

  async flush(): Promise<void> {}

  async close(): Promise<void> {
    this.abort();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #later(answer: () => void): void {
    const { scheduler, rng, habits } = this.#parts;
    const tail = rng.chance(0.05) ? 20 : 1;
    scheduler.after(rng.float() * habits.latencyMs * tail, "backing", answer);
  }
}

function refuse(): never {
  throw new BlockError("read-only", "nobody writes to the source");
}
